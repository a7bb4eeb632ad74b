package pull

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/ocid-io/ocid/internal/stages"
)

const (
	maxConfig = 4 << 20
	maxLayers = 500
)

// opened is a reference whose source is open already, so that the manifest is
// fetched once and the mirror chosen once.
type opened struct {
	types.ImageReference
	src types.ImageSource
}

func (o opened) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return o.src, nil
}

// remote is an image as a registry serves it, its manifest checked.
type remote struct {
	src      types.ImageSource
	ref      types.ImageReference
	served   []byte        // manifest or list
	mime     string        // of served
	digest   digest.Digest // of served
	instance *digest.Digest
	man      manifest.Manifest // of the one image for the platform
	imageID  string
}

// pullOne pulls one full name under the watch for stalls.
func (p *Puller) pullOne(ctx context.Context, req Request, name reference.Named, tell func(Progress)) (res Result, err error) {
	tempDir, end, err := p.opts.Dest.Begin(ctx)
	if err != nil {
		return Result{}, explain(err, "")
	}
	defer func() { end(err == nil) }()
	started := time.Now()
	ctx, w := p.watch(ctx, tell)
	defer w.stop()

	sys := p.systemContext(req)
	sys.BigFilesTemporaryDir = tempDir
	if err := credentials(sys, req.Auth, name); err != nil {
		return Result{}, err
	}
	policy, err := p.policy(sys, req.Namespace)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = policy.Destroy() }()
	res, err = p.transfer(ctx, sys, policy, name, w)
	if err != nil {
		// A stall or an overlong blob cancels the context; the reason counts.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		return Result{}, explain(err, tempDir)
	}
	p.log.Info("image pulled", "image", name.String(), "id", res.ImageID, "took", time.Since(started).Round(time.Millisecond))
	return res, nil
}

// transfer brings the image into the sink unless it is there, and names it.
func (p *Puller) transfer(ctx context.Context, sys *types.SystemContext, policy *signature.PolicyContext, name reference.Named, w *watch) (Result, error) {
	rctx, end := stages.Enter(ctx, "pull-resolve")
	r, err := openRemote(rctx, sys, name)
	end(err)
	if err != nil {
		return Result{}, err
	}
	closeSource := true
	defer func() {
		if closeSource {
			_ = r.src.Close()
		}
	}()
	canonical, err := reference.WithDigest(reference.TrimNamed(name), r.digest)
	if err != nil {
		return Result{}, err
	}
	names := []string{canonical.String()}
	if _, ok := name.(reference.Tagged); ok {
		names = append(names, name.String())
	}
	w.expect(r.man.LayerInfos())
	res := Result{ImageID: r.imageID, Digest: r.digest, Reference: name.String()}
	if p.opts.Dest.Has(ctx, r.imageID) {
		// Nothing to copy; but may it be had under this name?
		if err := r.allowed(ctx, policy); err != nil {
			return Result{}, err
		}
		w.finish()
		if err := p.opts.Dest.Commit(ctx, r.imageID, names); err == nil {
			return res, nil
		}
		// It was removed just now: copy it after all.
		w.expect(r.man.LayerInfos())
	}
	closeSource = false // the copy closes it
	cctx, end := stages.Enter(ctx, "pull-copy")
	w.within(cctx)
	err = p.copyImage(cctx, sys, policy, r, canonical, w)
	end(err)
	if err != nil {
		return Result{}, err
	}
	w.finish()
	ctx, end = stages.Enter(ctx, "pull-commit")
	err = p.opts.Dest.Commit(ctx, r.imageID, names)
	end(err)
	return res, err
}

func (p *Puller) copyImage(ctx context.Context, sys *types.SystemContext, policy *signature.PolicyContext, r *remote, canonical reference.Named, w *watch) error {
	dest, err := p.opts.Dest.Destination(canonical)
	if err != nil {
		_ = r.src.Close()
		return err
	}
	_, err = copy.Image(ctx, policy, dest, opened{r.ref, r.src}, &copy.Options{
		// The policy has its say all the same; not storing signatures spares
		// asking for them when it needs none.
		RemoveSignatures:              true,
		SourceCtx:                     sys,
		DestinationCtx:                sys,
		Progress:                      w.events,
		ProgressInterval:              1, // every read counts as life
		ConcurrentBlobCopiesSemaphore: p.slots,
	})
	return err
}

// openRemote finds the image (at a mirror, if one is configured and has it)
// and checks its manifests.
func openRemote(ctx context.Context, sys *types.SystemContext, name reference.Named) (_ *remote, err error) {
	ref, err := docker.NewReference(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	src, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = src.Close()
		}
	}()
	r := &remote{src: src, ref: ref}
	if r.served, r.mime, err = src.GetManifest(ctx, nil); err != nil {
		return nil, err
	}
	if r.digest, err = manifest.Digest(r.served); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", ErrCorrupt, err)
	}
	if want, ok := name.(reference.Digested); ok {
		if match, err := manifest.MatchesDigest(r.served, want.Digest()); err != nil || !match {
			return nil, fmt.Errorf("registry served manifest %s for %s: %w", r.digest, want.Digest(), ErrCorrupt)
		}
		r.digest = want.Digest()
	}
	return r, r.choose(ctx, sys)
}

// choose finds the manifest for the platform and checks what can be checked
// before anything is downloaded.
func (r *remote) choose(ctx context.Context, sys *types.SystemContext) error {
	blob, mime := r.served, r.mime
	if manifest.MIMETypeIsMultiImage(mime) {
		list, err := manifest.ListFromBlob(blob, mime)
		if err != nil {
			return fmt.Errorf("manifest list: %w: %w", ErrCorrupt, err)
		}
		chosen, err := list.ChooseInstance(sys)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		if blob, mime, err = r.src.GetManifest(ctx, &chosen); err != nil {
			return err
		}
		if match, err := manifest.MatchesDigest(blob, chosen); err != nil || !match {
			return fmt.Errorf("manifest %s of the list: %w", chosen, ErrCorrupt)
		}
		r.instance = &chosen
	}
	man, err := manifest.FromBlob(blob, mime)
	if err != nil {
		return fmt.Errorf("manifest: %w: %w", ErrCorrupt, err)
	}
	config := man.ConfigInfo()
	switch {
	case config.Digest == "":
		return fmt.Errorf("manifest of type %s has no config: %w", mime, ErrInvalid)
	case config.Digest.Validate() != nil || config.Digest.Algorithm() != digest.SHA256:
		return fmt.Errorf("config digest %q: %w", config.Digest, ErrInvalid)
	case config.Size > maxConfig:
		return fmt.Errorf("config of %d bytes, more than %d: %w", config.Size, maxConfig, ErrInvalid)
	case len(man.LayerInfos()) > maxLayers:
		return fmt.Errorf("%d layers, more than %d: %w", len(man.LayerInfos()), maxLayers, ErrInvalid)
	}
	r.man, r.imageID = man, config.Digest.String()
	return nil
}

// allowed asks the signature policy, for the list and for the image in it.
func (r *remote) allowed(ctx context.Context, policy *signature.PolicyContext) error {
	instances := []*digest.Digest{nil}
	if r.instance != nil {
		instances = append(instances, r.instance)
	}
	for _, d := range instances {
		if ok, err := policy.IsRunningImageAllowed(ctx, image.UnparsedInstance(r.src, d)); !ok {
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return nil
}
