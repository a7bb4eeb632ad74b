// Package layer unpacks an image layer in one pass: the tar stream is read
// once, and while it is read its digest is taken, the files are written, and
// the record is made from which the very same stream can be put together again
// (tar-split, which the storage library keeps with each layer).
//
// A layer is hostile input. Every name is resolved below the target directory
// by the kernel (openat2 with RESOLVE_IN_ROOT), as a chroot would; names with
// ".." are refused; what is kept in memory of entries is bounded in bytes, and
// the time by the bytes that come and those that they stand for. No other process changes the target during an unpack.
//
// What is written is what `tar --extract --numeric-owner --xattrs` as root
// writes: hard links, symbolic links, devices, FIFOs, sparse files, extended
// attributes with file capabilities, owners, modes with set-id bits, times to
// the nanosecond. Two things differ: whiteouts of the OCI image specification
// become overlayfs's, and extended attributes that steer overlayfs or belong to
// the host's security module are left out.
package layer

import (
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrUnsafe: the stream names something outside of the layer.
	ErrUnsafe = errors.New("unsafe layer")
	// ErrTooLarge: the stream passes one of the limits.
	ErrTooLarge = errors.New("layer too large")
	// ErrMalformed: the stream is no tar, or its parts contradict each other.
	ErrMalformed = errors.New("malformed layer")
)

// Options bounds an unpack. The zero value has the default bounds.
type Options struct {
	// Split receives the tar-split record, one JSON document a line; nil makes none.
	Split io.Writer
	// MaxEntries bounds the number of entries; default 1,000,000.
	MaxEntries int
	// MaxBytes bounds the stream, and the files that it stands for, which can
	// be more where they are sparse; default 1 TiB less one byte.
	MaxBytes int64
	// MaxKept bounds what is kept until the end: names, and the attributes of
	// directories; default 256 MiB.
	MaxKept int64
}

// Defaults of Options.
const (
	DefaultMaxEntries = 1_000_000
	DefaultMaxBytes   = 1<<40 - 1
	DefaultMaxKept    = 256 << 20
)

// Result describes an unpacked layer.
type Result struct {
	DiffID     digest.Digest // sha256 of the stream
	Size       int64         // bytes of the stream
	Entries    int
	UIDs, GIDs []uint32     // owners that occur, sorted
	RootMode   *os.FileMode // mode of the layer's root; nil if the stream has no entry for it
}
