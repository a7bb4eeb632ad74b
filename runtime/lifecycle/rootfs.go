package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// rootFS is a container's prepared root file system.
type rootFS struct {
	path string
	bare bool // the image's tree as it is: no mount point can be made in it
}

// lacking remembers images whose tree lacks what every container needs, so that
// their read-only containers are not tried on the bare tree again.
type lacking struct {
	mu  sync.Mutex
	ids map[string]bool // guarded by mu
}

// maxLacking bounds the memory of images that may be gone by now.
const maxLacking = 4096

func (l *lacking) add(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil || len(l.ids) >= maxLacking {
		l.ids = map[string]bool{}
	}
	l.ids[id] = true
}

func (l *lacking) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[id]
}

// prepareRoot mounts the image for the container. One whose root is read-only
// gets the tree itself, without a writable layer, unless that is known not to do.
func (m *Manager) prepareRoot(ctx context.Context, p runtime.Pod, c *runtime.Container, img runtime.ImageConfig) (rootFS, error) {
	bare := c.Config.Security.ReadOnlyRootfs && !m.lacking.has(img.ID)
	root, err := m.prepare(ctx, p, c, bare)
	if err != nil {
		return rootFS{}, fmt.Errorf("prepare the root file system: %w", err)
	}
	return rootFS{root, bare}, nil
}

func (m *Manager) prepare(ctx context.Context, p runtime.Pod, c *runtime.Container, readOnly bool) (string, error) {
	label, err := m.mountLabel(&p, &c.Config)
	if err != nil {
		return "", err
	}
	return m.o.Images.Prepare(ctx, RootFSRequest{
		ID: string(c.ID), ImageID: c.Config.ImageID, ReadOnly: readOnly, User: p.Config.Namespaces.User, Label: label,
	})
}

// settleRoot replaces a bare tree, now that the spec says what is to be mounted
// where, if something has to be made in it. The path stays the same.
func (m *Manager) settleRoot(ctx context.Context, p runtime.Pod, c *runtime.Container, root rootFS, s *specs.Spec) error {
	if !root.bare {
		return nil
	}
	lack, err := lacks(root.path, s)
	if err != nil || lack == "" {
		return err
	}
	if slices.Contains([]string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/proc", "/sys", "/dev"}, lack) {
		m.lacking.add(c.Config.ImageID)
	}
	if err := m.o.Images.Release(ctx, string(c.ID)); err != nil {
		return fmt.Errorf("replace the read-only root file system: %w", err)
	}
	again, err := m.prepare(ctx, p, c, false)
	if err != nil {
		return fmt.Errorf("replace the read-only root file system: %w", err)
	}
	if again != root.path {
		return fmt.Errorf("the root file system moved from %s to %s", root.path, again)
	}
	return nil
}

// lacks names something that the container needs in its root and that the tree
// does not have, or "". What lies in another mount is made there.
func lacks(root string, s *specs.Spec) (string, error) {
	if h := s.Hooks; h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 { //nolint:staticcheck // prestart is deprecated and in use
		return "what hooks may make", nil
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", root, err)
	}
	defer func() { _ = unix.Close(dir) }()
	var mounted []string
	need := make([]string, 0, len(s.Mounts)+len(s.Linux.Devices)+1)
	for _, m := range s.Mounts {
		need = append(need, filepath.Clean(m.Destination))
	}
	mounted = slices.Clone(need)
	for _, d := range s.Linux.Devices {
		need = append(need, filepath.Clean(d.Path))
	}
	need = append(need, filepath.Clean(s.Process.Cwd))
	for i, p := range need {
		if slices.ContainsFunc(mounted, func(m string) bool { return strings.HasPrefix(p, m+"/") }) {
			continue
		}
		found, isDir, err := look(dir, p)
		if err != nil {
			return "", fmt.Errorf("look for %s in the image: %w", p, err)
		}
		// A mount that does not fit what is there fails on any root.
		if !found || !isDir && i == len(need)-1 {
			return p, nil
		}
	}
	return "", nil
}

// look tells what is at p in the tree at dir, whose links stay in the tree.
func look(dir int, p string) (found, isDir bool, err error) {
	fd, err := unix.Openat2(dir, "./"+strings.TrimPrefix(p, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return true, st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}
