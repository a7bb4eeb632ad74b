// Package daemon is the composition root: the only place where the concrete
// layers meet. It builds them from the configuration, adapts one layer's types
// to another's, and runs the CRI daemon.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/imagewire"
	"github.com/ocid-io/ocid/cmd/ocid/internal/observe"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layered"
)

// Version is set by the linker.
var Version = "devel"

// OpenImages opens the image store and what pulls into it; no daemon is needed.
func OpenImages(c config.Config, log *slog.Logger) (*layered.Store, *pull.Puller, error) {
	return openImages(c, log, nil)
}

func openImages(c config.Config, log *slog.Logger, m *observe.Metrics) (*layered.Store, *pull.Puller, error) {
	imagewire.Logs(log)
	st, err := layered.Open(layered.Options{Root: c.Root, RunRoot: c.RunRoot})
	if err != nil {
		return nil, nil, fmt.Errorf("open the image store under %s: %w", c.Root, err)
	}
	o := pull.Options{
		Dest: st, Log: log,
		RegistriesConf: c.Image.RegistriesConf, RegistriesConfDir: c.Image.RegistriesConfDir,
		RegistriesDir: c.Image.RegistriesD, PolicyFile: c.Image.Policy, PolicyDir: c.Image.PolicyDir,
		AuthFile: c.Image.AuthFile, CertsDir: c.Image.CertsDir,
		BlobCacheDir: filepath.Join(c.Root, "cache"),
		StallTimeout: time.Duration(c.Image.StallTimeout),
		UserAgent:    "ocid/" + Version,
	}
	if m != nil {
		o.Layer = m.Layer
		o.Pulled = func(err error, took time.Duration) { m.Pulled(pullResult(err), took) }
	}
	return st, pull.New(o), nil
}

// images adapts the store to what lifecycle and runtimesvc ask of it.
type images struct{ st *layered.Store }

// Resolve implements lifecycle.Images.
func (i images) Resolve(ctx context.Context, ref string) (runtime.ImageConfig, error) {
	img, err := i.st.Image(ctx, ref)
	if err != nil {
		return runtime.ImageConfig{}, imageError(err)
	}
	c := img.Config.Config
	out := runtime.ImageConfig{
		ID: img.ID, User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
		WorkingDir: c.WorkingDir, StopSignal: c.StopSignal, Labels: c.Labels,
	}
	for v := range c.Volumes {
		out.Volumes = append(out.Volumes, v)
	}
	return out, nil
}

// Prepare implements lifecycle.Images.
func (i images) Prepare(ctx context.Context, req lifecycle.RootFSRequest) (string, error) {
	r := store.RootFSRequest{ID: req.ID, ImageID: req.ImageID, ReadOnly: req.ReadOnly, Label: req.Label}
	if u := req.User; u != nil {
		r.IDMap = &store.IDMap{UIDs: ranges(u.UIDs), GIDs: ranges(u.GIDs)}
	}
	fs, err := i.st.Prepare(ctx, r)
	if err != nil {
		return "", imageError(err)
	}
	return fs.Path, nil
}

func ranges(in []runtime.IDMapping) []store.IDRange {
	out := make([]store.IDRange, len(in))
	for n, m := range in {
		out[n] = store.IDRange(m)
	}
	return out
}

// Release implements lifecycle.Images.
func (i images) Release(ctx context.Context, id string) error { return i.st.Release(ctx, id) }

// Prepared implements lifecycle.Images.
func (i images) Prepared(ctx context.Context) ([]string, error) { return i.st.List(ctx) }

// imageError says in the runtime's words what the store said in its own.
func imageError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("%w: pull it first: %w", runtime.ErrNotFound, err)
	case errors.Is(err, store.ErrInvalid):
		return fmt.Errorf("%w: %w", runtime.ErrInvalid, err)
	}
	return err
}

// resolver adapts the store to runtimesvc.ImageResolver.
type resolver struct{ st *layered.Store }

// Resolve implements runtimesvc.ImageResolver.
func (r resolver) Resolve(ctx context.Context, ref string) (string, error) {
	img, err := r.st.Image(ctx, ref)
	if err != nil {
		return "", err
	}
	return img.ID, nil
}
