package streaming

import (
	"context"
	"io"
	"strings"
	"testing"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// asked remembers the largest piece that was asked for.
type asked struct {
	r    io.Reader
	most int
}

func (a *asked) Read(p []byte) (int, error) {
	a.most = max(a.most, len(p))
	return a.r.Read(p)
}

// TestSizesAreBounded: a size that never ends is not kept, and what follows is
// read, so that the other channels go on.
func TestSizesAreBounded(t *testing.T) {
	const many = 5000 // further sizes than one may have bytes
	for _, c := range []struct {
		name, in string
		want     int
	}{
		{"endless", `{"Width":1,"Height":2}{"Width":1,"x":"` + strings.Repeat("y", 8<<20), 1},
		{"many", strings.Repeat(`{"Width":1,"Height":2}`, many), many},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := &asked{r: strings.NewReader(c.in)}
			to := make(chan remotecommand.TerminalSize)
			go decodeSizes(context.Background(), in, to)
			n := 0
			for range to {
				n++
			}
			if rest, err := io.ReadAll(in.r); n != c.want || len(rest) > 0 || err != nil {
				t.Errorf("%d sizes, want %d; %d bytes are left, %v", n, c.want, len(rest), err)
			}
			if in.most > 64<<10 {
				t.Errorf("%d bytes were asked for at once", in.most)
			}
		})
	}
}
