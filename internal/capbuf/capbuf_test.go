package capbuf

import (
	"io"
	"strings"
	"testing"
)

func TestBuffer(t *testing.T) {
	b := &Buffer{Limit: 5}
	if _, err := io.Copy(b, strings.NewReader("abc")); err != nil || b.String() != "abc" || b.Over() {
		t.Fatalf("%q %v %v", b, b.Over(), err)
	}
	n, err := io.Copy(b, struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 100_000))})
	if err != nil || n != 100_000 || b.String() != "abcxx" || !b.Over() {
		t.Fatalf("%d %q %v %v", n, b, b.Over(), err)
	}
}
