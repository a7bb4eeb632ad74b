package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sys/unix"
)

// Names that stand for what a layer takes away (OCI image specification,
// layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Unpack writes the layer whose tar stream r is into dir, an empty directory
// on a file system that carries trusted extended attributes. After an error
// what was written so far is left for the caller to remove.
func Unpack(ctx context.Context, r io.Reader, dir string, o Options) (Result, error) {
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxKept <= 0 {
		o.MaxKept = DefaultMaxKept
	}
	root, err := openRoot(dir)
	if err != nil {
		return Result{}, err
	}
	defer root.close()
	u := &unpacker{
		ctx: ctx, root: root, o: o, in: newStream(r, o.MaxBytes), split: newSplitter(o.Split),
		buf: make([]byte, copyBuffer), made: map[string]kind{}, uids: map[uint32]bool{}, gids: map[uint32]bool{},
	}
	if err := u.run(); err != nil {
		return Result{}, err
	}
	return Result{
		DiffID: u.in.digest(), Size: u.in.n, Entries: u.entries, RootMode: u.rootMode,
		UIDs: slices.Sorted(maps.Keys(u.uids)), GIDs: slices.Sorted(maps.Keys(u.gids)),
	}, nil
}

// kind is what this layer has put at a name.
type kind uint8

const (
	kindOther kind = iota
	kindDir
	kindWhiteout
)

type unpacker struct {
	ctx     context.Context //nolint:containedctx // of the one call that the value lives for
	root    *root
	o       Options
	in      *stream
	split   *splitter
	buf     []byte
	entries int
	kept    int64 // bytes of names and attributes that wait for the end
	sizes   int64 // of all files
	// made tells what is at a name, for those that whiteouts have to do with.
	made       map[string]kind
	dirs       []dirEntry // their attributes are set at the end
	uids, gids map[uint32]bool
	rootMode   *os.FileMode
}

// dirEntry is a directory whose owner, mode and times wait until nothing more
// is made in it: a set-group-id bit or a default ACL would be inherited.
type dirEntry struct {
	name string
	attr attributes
}

func (u *unpacker) run() error {
	tr := tar.NewReader(u.in)
	tr.RawAccounting = true
	for {
		if err := u.ctx.Err(); err != nil {
			return context.Cause(u.ctx)
		}
		hdr, err := tr.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return u.malformed(err)
		}
		if serr := u.split.segment(tr.RawBytes()); serr != nil {
			return serr
		}
		if err != nil {
			break
		}
		if u.entries++; u.entries > u.o.MaxEntries {
			return fmt.Errorf("more than %d entries: %w", u.o.MaxEntries, ErrTooLarge)
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("layer entry %q: %w", shorten(hdr.Name), err)
		}
	}
	if err := u.trailer(); err != nil {
		return err
	}
	if err := u.split.flush(); err != nil {
		return err
	}
	return u.finishDirs()
}

// malformed tells an error of the source from one of the format.
func (u *unpacker) malformed(err error) error {
	if u.in.err != nil && !errors.Is(u.in.err, io.EOF) {
		return u.in.err
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// trailer reads what follows the end of the archive: it counts for the digest.
func (u *unpacker) trailer() error {
	for {
		n, err := u.in.Read(u.buf)
		if serr := u.split.segment(u.buf[:n]); serr != nil {
			return serr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry makes what one header says, and the record of it.
func (u *unpacker) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		if err := u.account(hdr, attributes{}); err != nil {
			return err
		}
		return u.split.file(hdr.Name, 0, nil, nil, nil)
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	attr, err := attributesOf(hdr)
	if err != nil {
		return err
	}
	u.uids[attr.uid], u.gids[attr.gid] = true, true
	if err := u.account(hdr, attr); err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr, attr)
	}
	parent, base := path.Split(name)
	parent = strings.TrimSuffix(parent, "/")
	if strings.HasPrefix(base, whiteoutPrefix) {
		if err := u.whiteout(parent, base); err != nil {
			return err
		}
		if !regular(hdr.Typeflag) {
			return u.split.file(hdr.Name, 0, nil, nil, nil)
		}
		return u.split.file(hdr.Name, hdr.Size, body, patient{u.ctx, io.Discard}, u.buf)
	}
	dir, err := u.root.parent(parent)
	if err != nil {
		return err
	}
	return u.make(hdr, body, place{dir: dir, base: base, name: name}, attr)
}

// keptOverhead is about what an entry costs in memory besides its name.
const keptOverhead = 100

// account refuses what would take too much memory, or too long: a sparse file
// of any size takes no bytes in the stream.
func (u *unpacker) account(hdr *tar.Header, attr attributes) error {
	u.kept += int64(len(hdr.Name)) + keptOverhead
	if hdr.Typeflag == tar.TypeDir {
		u.kept += int64(attr.xattrBytes)
	}
	if u.kept > u.o.MaxKept {
		return fmt.Errorf("names and attributes of more than %d bytes: %w", u.o.MaxKept, ErrTooLarge)
	}
	if regular(hdr.Typeflag) {
		if hdr.Size > u.o.MaxBytes-u.sizes {
			return fmt.Errorf("files of more than %d bytes: %w", u.o.MaxBytes, ErrTooLarge)
		}
		u.sizes += max(hdr.Size, 0)
	}
	return nil
}

// patient is a writer that stops when its context ends: a hole can be copied
// for long without anything being read.
type patient struct {
	ctx context.Context //nolint:containedctx // of the one copy that it is for
	w   io.Writer
}

// Write implements io.Writer.
func (p patient) Write(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	return p.w.Write(b)
}

func (u *unpacker) rootEntry(hdr *tar.Header, attr attributes) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the layer's root is no directory: %w", ErrMalformed)
	}
	mode := os.FileMode(attr.mode).Perm()
	for bit, m := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if attr.mode&bit != 0 {
			mode |= m
		}
	}
	u.rootMode = &mode
	u.dirs = append(u.dirs, dirEntry{"", attr})
	return u.split.file(hdr.Name, 0, nil, nil, nil)
}

// make makes one file, directory, link or device.
func (u *unpacker) make(hdr *tar.Header, body io.Reader, p place, attr attributes) error {
	if regular(hdr.Typeflag) {
		return u.makeFile(hdr, body, p, attr)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := u.makeDir(p); err != nil {
			return err
		}
		u.dirs = append(u.dirs, dirEntry{p.name, attr})
		return u.split.file(hdr.Name, 0, nil, nil, nil)
	case tar.TypeSymlink:
		err := u.replacing(p, func() error { return unix.Symlinkat(hdr.Linkname, p.dir, p.base) })
		if err != nil {
			return err
		}
		attr.mode = noMode
	case tar.TypeLink:
		if err := u.link(hdr.Linkname, p); err != nil {
			return err
		}
		// The attributes are the target's, which had an entry of its own.
		return u.split.file(hdr.Name, 0, nil, nil, nil)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := u.makeNode(hdr, p, attr); err != nil {
			return err
		}
	default:
		return fmt.Errorf("entries of type %q are not known: %w", string(hdr.Typeflag), ErrMalformed)
	}
	if err := attr.setAt(p); err != nil {
		return err
	}
	// Only regular files have a body, whatever the header's size says.
	return u.split.file(hdr.Name, 0, nil, nil, nil)
}

func regular(typeflag byte) bool {
	switch typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		return true
	}
	return false
}

func (u *unpacker) makeDir(p place) error {
	err := unix.Mkdirat(p.dir, p.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		if u.made[p.name] == kindWhiteout {
			// Gone below and made anew here: nothing of the lower layers shows.
			if err = u.root.replace(p, func() error { return unix.Mkdirat(p.dir, p.base, 0o700) }); err == nil {
				err = setOpaque(u.root, p.name)
			}
		} else if st, serr := lstatAt(p); serr == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = nil // made as a parent of an earlier entry
		} else {
			err = u.root.replace(p, func() error { return unix.Mkdirat(p.dir, p.base, 0o700) })
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	u.made[p.name] = kindDir
	return nil
}

func (u *unpacker) makeNode(hdr *tar.Header, p place, attr attributes) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if hdr.Typeflag != tar.TypeFifo {
		mode = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		if hdr.Devmajor < 0 || hdr.Devmajor > 1<<12-1 || hdr.Devminor < 0 || hdr.Devminor > 1<<20-1 {
			return fmt.Errorf("device %d:%d: %w", hdr.Devmajor, hdr.Devminor, ErrMalformed)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	return u.replacing(p, func() error { return unix.Mknodat(p.dir, p.base, mode|attr.mode&0o777, dev) })
}

// link makes a hard link to what the layer already has at target.
func (u *unpacker) link(target string, p place) error {
	name, err := cleanName(target)
	if err != nil || name == "" {
		return fmt.Errorf("hard link to %q: %w", shorten(target), ErrUnsafe)
	}
	parent, base := path.Split(name)
	dir, err := u.root.resolve(strings.TrimSuffix(parent, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("hard link to %q, which the layer does not have: %w: %w", shorten(target), ErrMalformed, err)
	}
	defer func() { _ = unix.Close(dir) }()
	err = u.replacing(p, func() error { return unix.Linkat(dir, base, p.dir, p.base, 0) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("hard link to %q, which the layer does not have: %w", shorten(target), ErrMalformed)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("hard link to %q, which cannot have one: %w", shorten(target), ErrMalformed)
	}
	return err
}

// replacing runs f, and again with what is in its way removed.
func (u *unpacker) replacing(p place, f func() error) error {
	err := f()
	if errors.Is(err, unix.EEXIST) {
		return u.root.replace(p, f)
	}
	return err
}

// whiteout makes what hides a name of the lower layers, or all of them.
func (u *unpacker) whiteout(parent, base string) error {
	if base == whiteoutOpaque {
		if _, err := u.root.parent(parent); err != nil {
			return err
		}
		return setOpaque(u.root, parent)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // bookkeeping of a union file system of old
	}
	base = strings.TrimPrefix(base, whiteoutPrefix)
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("whiteout of no name: %w", ErrUnsafe)
	}
	dir, err := u.root.parent(parent)
	if err != nil {
		return err
	}
	p := place{dir: dir, base: base, name: path.Join(parent, base)}
	// A whiteout speaks of the layers below, whatever this one has at the name.
	if u.made[p.name] == kindDir {
		return setOpaque(u.root, p.name)
	}
	switch err := unix.Mknodat(dir, base, unix.S_IFCHR, 0); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return fmt.Errorf("whiteout: %w", err)
	}
	u.made[p.name] = kindWhiteout
	return nil
}

// finishDirs sets the attributes of directories, the deepest first: setting
// those of a directory changes the times of none below it.
func (u *unpacker) finishDirs() error {
	for _, d := range slices.Backward(u.dirs) {
		fd, err := u.root.openDir(d.name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // replaced by a later entry
		}
		if err == nil {
			err = d.attr.setFD(fd, true)
			_ = unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("layer entry %q: %w", shorten(d.name), err)
		}
	}
	return nil
}

// cleanName returns the name relative to the layer's root, "" for the root
// itself. Leading slashes go, as tar takes them.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("a name with a zero byte: %w", ErrUnsafe)
	}
	for rest := name; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == ".." {
			return "", fmt.Errorf("a name with %q: %w", "..", ErrUnsafe)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// shorten makes a hostile name fit for a message.
func shorten(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}
