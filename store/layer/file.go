package layer

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sys/unix"
)

const (
	// copyBuffer is what one write takes at most.
	copyBuffer = 256 << 10
	// holeUnit: a block of so many zero bytes becomes a hole.
	holeUnit = 64 << 10
	// checkSpace: from this size on, a file must fit before it is begun.
	checkSpace = 64 << 20
)

// makeFile writes a regular file, its checksum into the record on the way.
func (u *unpacker) makeFile(hdr *tar.Header, body io.Reader, p place, attr attributes) error {
	if hdr.Size < 0 {
		return fmt.Errorf("size %d: %w", hdr.Size, ErrMalformed)
	}
	if hdr.Size > checkSpace {
		if err := u.fits(hdr.Size); err != nil {
			return err
		}
	}
	fd := -1
	create := func() (err error) {
		fd, err = unix.Openat(p.dir, p.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	}
	if err := u.replacing(p, create); err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	w := &fileWriter{fd: fd}
	if err := u.split.file(hdr.Name, hdr.Size, body, patient{u.ctx, w}, u.buf); err != nil {
		return u.sourceError(err)
	}
	if err := w.end(); err != nil {
		return err
	}
	return attr.setFD(fd, false)
}

// sourceError prefers what the source said over what tar made of it.
func (u *unpacker) sourceError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return u.malformed(err)
	}
	return err
}

// fits refuses what the file system has no room for, before anything of it is
// written.
func (u *unpacker) fits(size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(u.root.fd, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; size > free { //nolint:gosec // far below 2^63
		return fmt.Errorf("a file of %d bytes does not fit into the %d that are free: %w", size, free, unix.ENOSPC)
	}
	return nil
}

// fileWriter writes a new file and leaves holes for long runs of zeros.
type fileWriter struct {
	fd   int
	off  int64
	hole bool // the file ends in a hole so far
}

var zeros [holeUnit]byte

// Write implements io.Writer.
func (w *fileWriter) Write(b []byte) (int, error) {
	total := len(b)
	for len(b) > 0 {
		n := min(len(b), len(b)/holeUnit*holeUnit)
		if n == 0 {
			n = len(b)
		}
		if n >= holeUnit && b[0] == 0 && b[holeUnit-1] == 0 && string(b[:holeUnit]) == string(zeros[:]) {
			w.off += holeUnit
			w.hole = true
			b = b[holeUnit:]
			continue
		}
		n = w.untilHole(b)
		if err := w.put(b[:n]); err != nil {
			return total - len(b), err
		}
		b = b[n:]
	}
	return total, nil
}

// untilHole is how much of b, which does not begin with a hole, is written at once.
func (w *fileWriter) untilHole(b []byte) int {
	for n := holeUnit; n+holeUnit <= len(b); n += holeUnit {
		if b[n] == 0 && b[n+holeUnit-1] == 0 && string(b[n:n+holeUnit]) == string(zeros[:]) {
			return n
		}
	}
	return len(b)
}

func (w *fileWriter) put(b []byte) error {
	w.hole = false
	for len(b) > 0 {
		n, err := unix.Pwrite(w.fd, b, w.off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		w.off += int64(n)
		b = b[n:]
	}
	return nil
}

// end makes a hole at the end part of the file.
func (w *fileWriter) end() error {
	if !w.hole {
		return nil
	}
	if err := unix.Ftruncate(w.fd, w.off); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

// futimens sets the times of an open file (utimensat(2) without a path).
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0) //nolint:gosec // the kernel reads two timespecs
	if e != 0 {
		return e
	}
	return nil
}
