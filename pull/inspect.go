package pull

import (
	"context"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/image"
)

// Inspection is what a registry tells about an image without its layers.
type Inspection struct {
	Reference string
	Digest    digest.Digest // of Manifest
	MediaType string
	Manifest  []byte // manifest or list, as served
	ImageID   string // of the image for the platform
	Config    []byte
}

// Inspect asks the registry; nothing is pulled or stored.
func (p *Puller) Inspect(ctx context.Context, req Request) (*Inspection, error) {
	names, err := p.candidates(req)
	if err != nil {
		return nil, err
	}
	ctx, w := p.watch(ctx, func(Progress) {})
	defer w.stop()
	var last error
	for _, name := range names {
		sys := p.systemContext(req)
		if err := credentials(sys, req.Auth, name); err != nil {
			return nil, err
		}
		r, err := openRemote(ctx, sys, name)
		if err != nil {
			last = err
			continue
		}
		defer r.src.Close()
		img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(r.src, r.instance))
		if err != nil {
			return nil, explain(err, "")
		}
		config, err := img.ConfigBlob(ctx)
		if err != nil {
			return nil, explain(err, "")
		}
		return &Inspection{
			Reference: name.String(), Digest: r.digest, MediaType: r.mime,
			Manifest: r.served, ImageID: r.imageID, Config: config,
		}, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		last = cause
	}
	return nil, explain(last, "")
}
