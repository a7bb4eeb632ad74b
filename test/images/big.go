package images

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// bigLayers gives each layer's number of files and their mean size in bytes:
// one of a few large files, one of many small ones, the rest between.
var bigLayers = []struct{ files, mean int }{
	{12000, 24 << 10}, {20000, 9 << 10}, {9000, 34 << 10}, {10000, 26 << 10}, {5000, 56 << 10}, {3000, 70 << 10}, {1000, 130 << 10},
}

// writeBig streams each layer into the layout; nothing of it is held in memory.
func writeBig(ctx context.Context, dir string) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	layers := make([]*Layer, len(bigLayers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i := range bigLayers {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			layers[i], err = bigLayer(blobs, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	img, err := New(true, v1.Config{Cmd: []string{"/sh"}, Env: []string{pathEnv}}, layers...)
	if err != nil {
		return err
	}
	return out.AppendImage(img, layout.WithAnnotations(map[string]string{RefAnnotation: BigRepo + ":latest"}))
}

func bigLayer(blobs string, n int) (*Layer, error) {
	tmp, err := os.CreateTemp(blobs, "layer")
	if err != nil {
		return nil, err
	}
	defer tmp.Close()
	b := newBuilder(tmp, gzip.BestSpeed)
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	content := newContent(rng)
	spec := bigLayers[n]
	for i := range spec.files {
		size := spec.mean/2 + rng.IntN(spec.mean)
		b.File(fmt.Sprintf("data/l%d/d%03d/s%02d/f%05d", n, i/500, i/50%10, i), content.bytes(size), 0o644)
	}
	if err := b.close(); err != nil {
		return nil, err
	}
	sum := b.gz.sum()
	final := filepath.Join(blobs, sum.Hex)
	if err := os.Rename(tmp.Name(), final); err != nil {
		return nil, err
	}
	return &Layer{
		open:   func() (io.ReadCloser, error) { return os.Open(final) },
		size:   b.gz.n,
		digest: sum,
		diffID: b.raw.sum(),
		media:  types.OCILayer,
	}, nil
}

// content yields bytes that gzip shrinks to about a third, as programs and
// text do: words of a fixed list between runs of noise.
type content struct {
	rng   *rand.Rand
	words [][]byte
	buf   []byte
}

func newContent(rng *rand.Rand) *content {
	c := &content{rng: rng}
	for range 2048 {
		w := make([]byte, 4+rng.IntN(24))
		for i := range w {
			w[i] = byte('a' + rng.IntN(26))
		}
		c.words = append(c.words, w)
	}
	return c
}

func (c *content) bytes(n int) []byte {
	c.buf = c.buf[:0]
	for len(c.buf) < n {
		if c.rng.IntN(12) == 0 {
			for range 4 {
				v := c.rng.Uint64()
				c.buf = append(c.buf, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40))
			}
			continue
		}
		c.buf = append(c.buf, c.words[c.rng.IntN(len(c.words))]...)
	}
	return c.buf[:n]
}
