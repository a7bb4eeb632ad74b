package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	xattrRecord = "SCHILY.xattr."
	overlay     = "trusted.overlay."
)

// carried are the extended attributes that go with a file: those that are the
// container's own business. Labels are given anew where it is restored.
func carried(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// Diff writes the writable layer of an overlay as a tar of what was added or
// changed, and returns the paths that were deleted. Whoever applies it deletes
// first. The layer must not change meanwhile.
//
// Sockets are left out: criu makes those that are in use anew. A device node,
// or a layer that uses redirects, wraps ErrUnsupported.
func Diff(ctx context.Context, upper string, w io.Writer, l Limits) (deleted []string, err error) {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	d := differ{root: root, upper: upper, w: tar.NewWriter(w), links: map[inode]string{}, l: l}
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return d.entry(ctx, p, e)
	})
	if err != nil {
		return nil, fmt.Errorf("writable layer: %w", err)
	}
	return d.deleted, d.w.Close()
}

type inode struct{ dev, ino uint64 }

type differ struct {
	root    *os.Root
	upper   string
	w       *tar.Writer
	links   map[inode]string
	deleted []string
	l       Limits
	files   int
	bytes   int64
}

func (d *differ) entry(ctx context.Context, p string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("no stat")
	}
	if d.files++; d.files > d.l.DiffFiles {
		return fmt.Errorf("%w: more than %d files were changed", ErrUnsupported, d.l.DiffFiles)
	}
	h := &tar.Header{
		Name: p, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			d.deleted = append(d.deleted, p)
			return nil
		}
		return fmt.Errorf("%w: %q is a device", ErrUnsupported, p)
	case unix.S_IFBLK:
		return fmt.Errorf("%w: %q is a device", ErrUnsupported, p)
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = d.root.Readlink(p); err != nil {
			return err
		}
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
	default:
		return d.regular(ctx, p, h, st)
	}
	if err := d.xattrs(p, h); err != nil {
		return err
	}
	return d.w.WriteHeader(h)
}

func (d *differ) regular(ctx context.Context, p string, h *tar.Header, st *syscall.Stat_t) error {
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	id := inode{st.Dev, st.Ino}
	if first, ok := d.links[id]; ok && st.Nlink > 1 {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return d.w.WriteHeader(h)
	}
	if st.Nlink > 1 {
		d.links[id] = p
	}
	if d.bytes += st.Size; d.bytes > d.l.DiffBytes {
		return fmt.Errorf("%w: the changed files have more than %d bytes", ErrUnsupported, d.l.DiffBytes)
	}
	if err := d.xattrs(p, h); err != nil {
		return err
	}
	f, err := d.root.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(d.w, reader{ctx, f}, h.Size)
	return err
}

// xattrs reads a file's attributes, by its path: nothing changes the layer now.
func (d *differ) xattrs(p string, h *tar.Header) error {
	full := path.Join(d.upper, p)
	names, err := listXattrs(full)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !carried(n) && !strings.HasPrefix(n, overlay) {
			continue
		}
		v, err := getXattr(full, n)
		if err != nil {
			return fmt.Errorf("%s of %q: %w", n, p, err)
		}
		switch {
		case n == overlay+"opaque" && string(v) == "y":
			d.deleted = append(d.deleted, p)
		case n == overlay+"redirect" || n == overlay+"metacopy":
			return fmt.Errorf("%w: %q has %s: its content is in a layer of the image", ErrUnsupported, p, n)
		case carried(n):
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrRecord+n] = string(v)
		}
	}
	return nil
}

const maxXattr = 64 << 10 // the kernel's bound for a value, and for a list of names

func listXattrs(p string) ([]string, error) {
	b := make([]byte, 1024)
	n, err := unix.Llistxattr(p, b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, maxXattr)
		n, err = unix.Llistxattr(p, b)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: p, Err: err}
	}
	return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00"), nil
}

func getXattr(p, name string) ([]byte, error) {
	b := make([]byte, maxXattr)
	n, err := unix.Lgetxattr(p, name, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}
