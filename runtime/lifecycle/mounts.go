package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/patientstat"
	"github.com/ocid-io/ocid/runtime"
)

// mounts returns the container's mounts with every source found on the host:
// host paths checked, images mounted. The record keeps them as they were asked.
func (m *Manager) mounts(ctx context.Context, op *operation, p runtime.Pod, c *runtime.Container) ([]runtime.Mount, error) {
	if len(c.Config.Mounts) == 0 {
		return nil, nil
	}
	if err := m.checkMounts(ctx, c.Config.Mounts); err != nil {
		return nil, err
	}
	out := slices.Clone(c.Config.Mounts)
	ids := c.VolumeIDs()
	if len(ids) == 0 {
		return out, nil
	}
	if len(ids) > runtime.MaxImageVolumes {
		return nil, fmt.Errorf("%w: %d image volumes, more than %d", runtime.ErrInvalid, len(ids), runtime.MaxImageVolumes)
	}
	defer op.enter(ctx, "volumes")()
	label, err := m.mountLabel(&p, &c.Config)
	if err != nil {
		return nil, err
	}
	for i := range out {
		mt := &out[i]
		if mt.Image == "" {
			continue
		}
		var err error
		if mt.HostPath, err = m.mountImage(ctx, ids[0], mt, p.Config.Namespaces.User, label); err != nil {
			return nil, fmt.Errorf("%w at %q: %w", runtime.ErrImageVolume, mt.ContainerPath, err)
		}
		ids = ids[1:]
	}
	return out, nil
}

func (m *Manager) mountImage(ctx context.Context, id string, mt *runtime.Mount, user *runtime.UserNamespace, label string) (string, error) {
	root, err := m.o.Images.Prepare(ctx, RootFSRequest{ID: id, ImageID: mt.ImageID, ReadOnly: true, User: user, Label: label})
	if err != nil {
		return "", fmt.Errorf("mount image %q: %w", mt.Image, err)
	}
	path, err := inside(root, mt.ImageSubPath)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", mt.Image, err)
	}
	return path, nil
}

// inside resolves a path within root, whose links lead nowhere else. The tree
// below root must not change.
func inside(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("%w: sub-path %q does not stay in the image", runtime.ErrInvalid, sub)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", root, err)
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return "", fmt.Errorf("%w: sub-path %q is not there: %w", runtime.ErrInvalid, sub, err)
	case err != nil:
		return "", fmt.Errorf("sub-path %q: %w", sub, err)
	}
	defer func() { _ = unix.Close(fd) }()
	found, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir)); err != nil ||
		found != base && !strings.HasPrefix(found, strings.TrimSuffix(base, "/")+"/") {
		return "", fmt.Errorf("%w: sub-path %q leads out of the image", runtime.ErrInvalid, sub)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFDIR && t != unix.S_IFREG {
		return "", fmt.Errorf("%w: sub-path %q is neither a directory nor a file", runtime.ErrInvalid, sub)
	}
	return found, nil
}

// statTime bounds the look at one mount source, which may be on a dead share.
const statTime = 10 * time.Second

// checkMounts refuses mount sources that are not there. They are looked at side
// by side: a dead share fails this container, in bounded time, and no other.
func (m *Manager) checkMounts(ctx context.Context, mounts []runtime.Mount) error {
	ctx, cancel := context.WithTimeout(ctx, statTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(statWidth)
	for _, mt := range mounts {
		if mt.Image == "" {
			g.Go(func() error { return m.checkSource(ctx, mt.HostPath) })
		}
	}
	return g.Wait()
}

// statWidth bounds the sources that are looked at at once.
const statWidth = 32

func (m *Manager) checkSource(ctx context.Context, path string) error {
	stat := m.o.Stat
	if stat == nil {
		stat = func(_ context.Context, path string) error { _, err := os.Stat(path); return err }
	}
	err := stat(ctx, path)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: mount source %q does not exist on the host", runtime.ErrInvalid, path)
	case errors.Is(err, patientstat.ErrNoAnswer), ctx.Err() != nil:
		return fmt.Errorf("%w: mount source %q: %w", runtime.ErrUnavailable, path, err)
	}
	return fmt.Errorf("%w: mount source %q: %w", runtime.ErrInvalid, path, err)
}
