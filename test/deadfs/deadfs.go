// Package deadfs mounts file systems whose server never answers, as a share
// whose server has died.
package deadfs

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// FS is a mounted file system that does not answer.
type FS struct {
	dir string
	dev *os.File
}

// Mount mounts one at dir. Who looks at a killable one can be killed; who looks
// at another cannot, since its request was taken by the server.
func Mount(dir string, killable bool) (*FS, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	f := &FS{dir: dir, dev: os.NewFile(uintptr(fd), "/dev/fuse")}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	if err := unix.Mount("dead", dir, "fuse.dead", unix.MS_NODEV|unix.MS_NOSUID, opts); err != nil {
		_ = f.dev.Close()
		return nil, fmt.Errorf("mount at %s: %w", dir, err)
	}
	if killable {
		return f, nil // it does not even greet the kernel
	}
	if err := f.greet(fd); err != nil {
		f.Close()
		return nil, err
	}
	go func() {
		buf := make([]byte, 1<<18)
		for {
			// Requests are taken and forgotten.
			if _, err := unix.Read(fd, buf); err != nil && err != unix.EINTR && err != unix.ENOENT {
				return
			}
		}
	}()
	return f, nil
}

// greet answers the kernel's first request, FUSE_INIT.
func (f *FS) greet(fd int) error {
	buf := make([]byte, 1<<18)
	n, err := unix.Read(fd, buf)
	if err != nil || n < 40 {
		return fmt.Errorf("read FUSE_INIT: %d bytes, %w", n, err)
	}
	out := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(out, uint32(len(out)))
	copy(out[8:16], buf[8:16]) // the request's number
	binary.NativeEndian.PutUint32(out[16:], 7)
	binary.NativeEndian.PutUint32(out[20:], 31)
	binary.NativeEndian.PutUint16(out[32:], 16)    // max_background
	binary.NativeEndian.PutUint32(out[36:], 1<<16) // max_write
	_, err = unix.Write(fd, out)
	return err
}

// Close lets go of who hangs, and unmounts.
func (f *FS) Close() {
	_ = unix.Unmount(f.dir, unix.MNT_FORCE|unix.MNT_DETACH)
	_ = f.dev.Close()
}
