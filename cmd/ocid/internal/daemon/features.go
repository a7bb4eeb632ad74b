package daemon

import (
	"context"
	"slices"
	"strings"

	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layered"
)

// probeIDMap tells whether root file systems can be made for user namespaces.
func (d *parts) probeIDMap() bool {
	if err := d.store.IDMapped(); err != nil {
		d.log.Warn("pods with a user namespace are refused", "error", err)
		return false
	}
	return true
}

// pinning tells clients which images the configuration wants kept. They are
// still removed when a client asks for that, as CRI wants it.
type pinning struct {
	*layered.Store
	patterns []string
}

// Image implements imagesvc.Images.
func (p pinning) Image(ctx context.Context, ref string) (*store.Image, error) {
	img, err := p.Store.Image(ctx, ref)
	if err != nil || !p.pins(img) {
		return img, err
	}
	return pinned(img), nil
}

// Images implements imagesvc.Images.
func (p pinning) Images(ctx context.Context) ([]*store.Image, error) {
	all, err := p.Store.Images(ctx)
	if err != nil || len(p.patterns) == 0 {
		return all, err
	}
	out := slices.Clone(all)
	for i, img := range out {
		if p.pins(img) {
			out[i] = pinned(img)
		}
	}
	return out, nil
}

// pinned copies: what the store returns is shared.
func pinned(img *store.Image) *store.Image {
	c := *img
	c.Pinned = true
	return &c
}

func (p pinning) pins(img *store.Image) bool {
	return slices.ContainsFunc(p.patterns, func(pattern string) bool {
		return slices.ContainsFunc(slices.Concat(img.Tags, img.Digests, []string{img.ID}), func(name string) bool {
			return matchName(pattern, name)
		})
	})
}

// matchName compares a name with one that may have a star at either end.
func matchName(pattern, name string) bool {
	rest, head := strings.CutPrefix(pattern, "*")
	rest, tail := strings.CutSuffix(rest, "*")
	switch {
	case head && tail:
		return strings.Contains(name, rest)
	case head:
		return strings.HasSuffix(name, rest)
	case tail:
		return strings.HasPrefix(name, rest)
	}
	return name == rest
}
