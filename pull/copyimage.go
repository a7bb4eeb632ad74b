package pull

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// Holder is a store that images can be copied out of.
type Holder interface {
	// Source finds an image of the store by name or id.
	Source(ctx context.Context, ref string) (types.ImageReference, error)
}

// CopyRequest asks for an image at one place to be at another as well.
type CopyRequest struct {
	Source, Target string // "transport:rest", see Copy
	// All copies every platform of a list; else the one of Platform.
	All              bool
	RemoveSignatures bool
	SourceAuth       *Auth
	TargetAuth       *Auth
	Platform         Platform
	Insecure         bool
	Progress         func(Progress) // one call at a time; must not block
}

// Copy copies an image between registries (docker://), OCI layouts (oci:,
// oci-archive:), Docker archives (docker-archive:), directories (dir:), the
// default store of podman and buildah (containers-storage:) and ocid's own
// (ocid:). The signature policy is asked about the source. It returns the
// digest of the manifest at the target, which is the source's wherever the
// target can hold its form.
func (p *Puller) Copy(ctx context.Context, req CopyRequest) (digest.Digest, error) {
	src, err := locate(req.Source)
	if err != nil {
		return "", err
	}
	dst, err := locate(req.Target)
	if err != nil {
		return "", err
	}
	if req.All && dst.ref == nil {
		return "", fmt.Errorf("ocid's store holds images of one platform: leave --all out, or copy elsewhere: %w", ErrInvalid)
	}
	if src.ref == nil {
		holder, ok := p.opts.Dest.(Holder)
		if !ok {
			return "", fmt.Errorf("nothing can be copied out of this store: %w", ErrInvalid)
		}
		if src.ref, err = holder.Source(ctx, src.own); err != nil {
			return "", err
		}
	}
	if req.Progress == nil {
		req.Progress = func(Progress) {}
	}
	ctx, w := p.watch(ctx, req.Progress)
	defer w.stop()
	w.mayRecode()
	man, err := p.copyTo(ctx, req, src.ref, dst, w)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		return "", explain(fmt.Errorf("copy %s to %s: %w", req.Source, req.Target, err), "")
	}
	w.finish()
	return manifest.Digest(man)
}

// copyTo copies to a place of the image library, or into the sink.
func (p *Puller) copyTo(ctx context.Context, req CopyRequest, src types.ImageReference, dst location, w *watch) ([]byte, error) {
	if dst.ref != nil {
		return p.copyRef(ctx, req, src, dst.ref, w)
	}
	name, err := ownName(dst.own)
	if err != nil {
		return nil, err
	}
	_, end, err := p.opts.Dest.Begin(ctx)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() { end(ok) }()
	ref, err := p.opts.Dest.Destination(name)
	if err != nil {
		return nil, err
	}
	man, err := p.copyRef(ctx, req, src, ref, w)
	if err != nil {
		return nil, err
	}
	parsed, err := manifest.FromBlob(man, manifest.GuessMIMEType(man))
	if err != nil {
		return nil, err
	}
	dgst, err := manifest.Digest(man)
	if err != nil {
		return nil, err
	}
	canonical, err := reference.WithDigest(reference.TrimNamed(name), dgst)
	if err != nil {
		return nil, err
	}
	err = p.opts.Dest.Commit(ctx, parsed.ConfigInfo().Digest.String(), []string{name.String(), canonical.String()})
	ok = err == nil
	return man, err
}

func (p *Puller) copyRef(ctx context.Context, req CopyRequest, src, dst types.ImageReference, w *watch) ([]byte, error) {
	from := p.systemContext(Request{Platform: req.Platform, Insecure: req.Insecure})
	to := p.systemContext(Request{Platform: req.Platform, Insecure: req.Insecure})
	for _, end := range []struct {
		sys  *types.SystemContext
		auth *Auth
		ref  types.ImageReference
	}{{from, req.SourceAuth, src}, {to, req.TargetAuth, dst}} {
		if name := end.ref.DockerReference(); name != nil && end.ref.Transport() == docker.Transport {
			if err := credentials(end.sys, end.auth, name); err != nil {
				return nil, err
			}
		}
	}
	policy, err := p.policy(from, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = policy.Destroy() }()
	o := &copy.Options{
		SourceCtx: from, DestinationCtx: to, RemoveSignatures: req.RemoveSignatures,
		PreserveDigests: keepsDigests(src, dst),
		Progress:        w.events, ProgressInterval: 1,
		ConcurrentBlobCopiesSemaphore: p.slots,
	}
	if req.All {
		o.ImageListSelection = copy.CopyAllImages
	}
	return copy.Image(ctx, policy, dst, src, o)
}

// keepsDigests: registries and directories take any form of manifest, the other
// targets have one of their own; a store has its layers without compression.
func keepsDigests(src, dst types.ImageReference) bool {
	return (dst.Transport() == docker.Transport || dst.Transport() == directory.Transport) &&
		src.Transport().Name() != storage.Transport.Name()
}

// Tags lists the tags of a repository, in the order that the registry has.
func (p *Puller) Tags(ctx context.Context, req Request) ([]string, error) {
	ref, sys, err := p.remoteRef(req)
	if err != nil {
		return nil, err
	}
	tags, err := docker.GetRepositoryTags(ctx, sys, ref)
	return tags, explain(err, "")
}

// Delete removes an image from its registry, under the digest that its tag has.
func (p *Puller) Delete(ctx context.Context, req Request) error {
	ref, sys, err := p.remoteRef(req)
	if err != nil {
		return err
	}
	return explain(ref.DeleteImage(ctx, sys), "")
}

func (p *Puller) remoteRef(req Request) (types.ImageReference, *types.SystemContext, error) {
	names, err := p.candidates(req)
	if err != nil {
		return nil, nil, err
	}
	if len(names) != 1 {
		return nil, nil, fmt.Errorf("reference %q can stand for %d images: write it whole: %w", req.Reference, len(names), ErrInvalid)
	}
	ref, err := docker.NewReference(names[0])
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	sys := p.systemContext(req)
	return ref, sys, credentials(sys, req.Auth, names[0])
}
