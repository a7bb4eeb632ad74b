package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
)

// TestReference fails when the committed pages are not what the code says;
// make docs writes them.
func TestReference(t *testing.T) {
	pages, err := reference(newRoot())
	if err != nil {
		t.Fatal(err)
	}
	pages["../../contrib/ocid.toml"] = config.Sample()
	for name, want := range pages {
		p := filepath.Join("../../docs/reference", name)
		got, err := os.ReadFile(p)
		if err != nil {
			t.Errorf("%v: run make docs", err)
		} else if string(got) != want {
			t.Errorf("%s is not what the code says: run make docs and commit it; the code says %q first", p, firstNew(string(got), want))
		}
	}
}

// firstNew is the first line of want that got does not have.
func firstNew(got, want string) string {
	for line := range strings.Lines(want) {
		if !strings.Contains(got, line) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
