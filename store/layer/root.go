package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where an entry goes: a name in an open directory.
type place struct {
	dir  int    // of the parent
	base string // one component
	name string // whole, relative to the root
}

// maxOpenDirs bounds the directories that are kept open for the next entry.
const maxOpenDirs = 128

// root is the directory that a layer is unpacked into. It keeps directories
// open: entries of one directory follow each other in a tar.
type root struct {
	fd    int
	open  map[string]int
	stale bool // something was removed: what is open may not be what its name says
}

func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &root{fd: fd, open: map[string]int{}}, nil
}

func (r *root) close() {
	r.forget()
	_ = unix.Close(r.fd)
}

// forget closes the directories that are kept: what they resolve to may have
// changed.
func (r *root) forget() {
	for _, fd := range r.open {
		_ = unix.Close(fd)
	}
	clear(r.open)
}

// resolve opens name below the root, as if the root were "/".
func (r *root) resolve(name string, flags int) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(r.fd, name, &how)
		// EAGAIN: something was renamed on the machine meanwhile (openat2(2)).
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openDir opens a directory for setting its attributes; a link at the name
// itself is not followed.
func (r *root) openDir(name string) (int, error) {
	return r.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// existing returns a directory that must be there. The descriptor is the
// root's own, good until the next call.
func (r *root) existing(name string) (int, error) {
	if name == "" {
		return r.fd, nil
	}
	if r.stale {
		r.forget()
		r.stale = false
	}
	if fd, ok := r.open[name]; ok {
		return fd, nil
	}
	fd, err := r.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	if len(r.open) >= maxOpenDirs {
		r.forget()
	}
	r.open[name] = fd
	return fd, nil
}

// parent returns a directory, made with its parents if it is not there.
func (r *root) parent(name string) (int, error) {
	fd, err := r.existing(name)
	if !errors.Is(err, unix.ENOENT) {
		if err != nil {
			return -1, fmt.Errorf("parent directory: %w: %w", ErrMalformed, err)
		}
		return fd, nil
	}
	at := ""
	for part := range strings.SplitSeq(name, "/") {
		up, err := r.existing(at)
		if err != nil {
			return -1, fmt.Errorf("parent directory: %w: %w", ErrMalformed, err)
		}
		switch err := unix.Mkdirat(up, part, 0o755); {
		case err == nil:
			// Whatever this process's umask is.
			if err := unix.Fchmodat(up, part, 0o755, 0); err != nil {
				return -1, fmt.Errorf("parent directory: %w", err)
			}
		case !errors.Is(err, unix.EEXIST):
			return -1, fmt.Errorf("parent directory: %w", err)
		}
		if at != "" {
			at += "/"
		}
		at += part
	}
	if fd, err = r.existing(name); err != nil {
		return -1, fmt.Errorf("parent directory: %w: %w", ErrMalformed, err)
	}
	return fd, nil
}

// replace removes what is at p and runs f again.
func (r *root) replace(p place, f func() error) error {
	r.stale = true // it may be a link that names were resolved through
	err := unix.Unlinkat(p.dir, p.base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = removeTree(p.dir, p.base)
	}
	if err != nil {
		return fmt.Errorf("replace what an earlier entry made: %w", err)
	}
	return f()
}

// removeTree removes a directory with all that is in it.
func removeTree(dir int, base string) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Unlinkat(fd, n, 0)
		if errors.Is(err, unix.EISDIR) {
			err = removeTree(fd, n)
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

func lstatAt(p place) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(p.dir, p.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// setOpaque hides all that lower layers have in a directory (overlayfs.rst).
func setOpaque(r *root, name string) error {
	fd, err := r.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opaque directory: %w: %w", ErrMalformed, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("opaque directory: %w", err)
	}
	return nil
}
