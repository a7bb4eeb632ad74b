package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Policy says what a difference may bring.
type Policy struct {
	Limits Limits
	// Root: the container's user is root. Only then may files change who runs
	// them (setuid, setgid, file capabilities): it gains nothing by them.
	Root bool
}

// Apply deletes the deleted paths of a root file system and unpacks a
// difference over it. No process of the container may run yet.
func Apply(ctx context.Context, diff io.Reader, deleted []string, rootfs string, p Policy) error {
	fd, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer unix.Close(fd)
	a := &applier{root: fd, p: p, seen: map[string]byte{}}
	if len(deleted) > p.Limits.DiffFiles {
		return hostile("%d paths are deleted, more than %d", len(deleted), p.Limits.DiffFiles)
	}
	for _, d := range deleted {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := a.delete(d); err != nil {
			return err
		}
	}
	tr := tar.NewReader(reader{ctx, diff})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a.dirTimes()
		}
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return hostile("%s: %v", DiffFile, err)
		}
		if err := a.entry(h, tr); err != nil {
			return fmt.Errorf("%s: %.100q: %w", DiffFile, h.Name, err)
		}
	}
}

type applier struct {
	root  int
	p     Policy
	seen  map[string]byte // path -> type
	bytes int64
	dirs  []dirTime
}

type dirTime struct {
	path string
	at   time.Time
}

// open opens a path below the root that leads through no link and no mount.
func (a *applier) open(p string, flags uint64) (int, error) {
	return unix.Openat2(a.root, p, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func (a *applier) parent(p string) (int, string, error) {
	dir, base := path.Split(p)
	fd, err := a.open(path.Join(".", dir), unix.O_PATH|unix.O_DIRECTORY)
	return fd, base, err
}

func (a *applier) delete(name string) error {
	p, err := local(name)
	if err != nil {
		return err
	}
	dir, base, err := a.parent(p)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return hostile("%s: %.100q leads through what is no directory: %v", DeletedFile, p, err)
	}
	defer unix.Close(dir)
	return removeAt(dir, base)
}

// removeAt removes a tree that nobody else changes.
func removeAt(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "unlink", Path: base, Err: err}
	}
	r, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.RemoveAll(base)
}

func (a *applier) entry(h *tar.Header, r io.Reader) error {
	p, err := local(h.Name)
	if err != nil {
		return err
	}
	if a.seen[p] != 0 {
		return hostile("there twice")
	}
	a.seen[p] = h.Typeflag
	if len(a.seen) > a.p.Limits.DiffFiles {
		return hostile("more than %d files", a.p.Limits.DiffFiles)
	}
	if err := a.allowed(h); err != nil {
		return err
	}
	dir, base, err := a.parent(p)
	if err != nil {
		return hostile("its directory is missing, or leads through what is no directory: %v", err)
	}
	defer unix.Close(dir)
	switch h.Typeflag {
	case tar.TypeDir:
		return a.dir(dir, base, p, h)
	case tar.TypeReg:
		return a.file(dir, base, h, r)
	case tar.TypeLink:
		return a.link(dir, base, h)
	case tar.TypeSymlink:
		if err := removeAt(dir, base); err != nil {
			return err
		}
		if err := unix.Symlinkat(h.Linkname, dir, base); err != nil {
			return err
		}
		return a.finish(dir, base, h)
	case tar.TypeFifo:
		if err := removeAt(dir, base); err != nil {
			return err
		}
		if err := unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		return a.finish(dir, base, h)
	}
	return hostile("type %q", h.Typeflag)
}

// allowed refuses entries before anything is done for them.
func (a *applier) allowed(h *tar.Header) error {
	const suid, sgid = 0o4000, 0o2000
	if h.Mode&^0o7777 != 0 || h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return hostile("mode %o, owner %d:%d", h.Mode, h.Uid, h.Gid)
	}
	if h.Typeflag == tar.TypeReg && h.Mode&(suid|sgid) != 0 && !a.p.Root {
		return hostile("setuid or setgid, and the container does not run as root")
	}
	if h.Typeflag == tar.TypeSymlink && (h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0) {
		return hostile("its target is no path")
	}
	if h.Typeflag == tar.TypeReg {
		if a.bytes += h.Size; h.Size < 0 || a.bytes > a.p.Limits.DiffBytes {
			return hostile("more than %d bytes", a.p.Limits.DiffBytes)
		}
	}
	for k, v := range h.PAXRecords {
		n, ok := strings.CutPrefix(k, xattrRecord)
		switch {
		case strings.HasPrefix(k, "GNU.sparse"):
			return hostile("sparse")
		case !ok:
		case !carried(n) || len(n) > 255 || len(v) > maxXattr:
			return hostile("extended attribute %.80q", n)
		case n == "security.capability" && !a.p.Root:
			return hostile("file capabilities, and the container does not run as root")
		}
	}
	return nil
}

func (a *applier) dir(parent int, base, p string, h *tar.Header) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := removeAt(parent, base); err != nil {
			return err
		}
		err = unix.ENOENT
	}
	if errors.Is(err, unix.ENOENT) {
		err = unix.Mkdirat(parent, base, 0o700)
	}
	if err != nil {
		return err
	}
	a.dirs = append(a.dirs, dirTime{p, h.ModTime})
	return a.finish(parent, base, h)
}

func (a *applier) file(parent int, base string, h *tar.Header, r io.Reader) error {
	if err := removeAt(parent, base); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if n, err := io.Copy(f, r); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return hostile("cut off after %d bytes", n)
		}
		return err
	}
	return a.finish(parent, base, h)
}

// link makes a second name of a file that came earlier.
func (a *applier) link(parent int, base string, h *tar.Header) error {
	to, err := local(h.Linkname)
	if err != nil {
		return err
	}
	if a.seen[to] != tar.TypeReg {
		return hostile("a link to %.100q, which is no file that came before", to)
	}
	dir, name, err := a.parent(to)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := removeAt(parent, base); err != nil {
		return err
	}
	return unix.Linkat(dir, name, parent, base, 0)
}

// finish gives what was made its owner, attributes, mode and time, in the order
// in which none of them takes another one away.
func (a *applier) finish(parent int, base string, h *tar.Header) error {
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: base, Err: err}
	}
	full := "/proc/self/fd/" + strconv.Itoa(parent) + "/" + base
	for k, v := range h.PAXRecords {
		if n, ok := strings.CutPrefix(k, xattrRecord); ok {
			if err := unix.Lsetxattr(full, n, []byte(v), 0); err != nil {
				return &os.PathError{Op: "setxattr " + n, Path: base, Err: err}
			}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// Not a link: it was made here, or is a directory.
		if err := unix.Fchmodat(parent, base, uint32(h.Mode), 0); err != nil {
			return &os.PathError{Op: "chmod", Path: base, Err: err}
		}
	}
	return setTime(parent, base, h.ModTime)
}

func setTime(parent int, base string, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	err := unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimes", Path: base, Err: err}
	}
	return nil
}

// dirTimes sets the times of directories, which their content has changed.
func (a *applier) dirTimes() error {
	for _, d := range a.dirs {
		dir, base, err := a.parent(d.path)
		if err != nil {
			return err
		}
		err = setTime(dir, base, d.at)
		unix.Close(dir)
		if err != nil {
			return err
		}
	}
	return nil
}
