// Package rmtree removes directory trees that a container has made.
//
// A container can nest directories deeper than a process may have files open,
// and os.RemoveAll, which has one open for each level, then removes nothing,
// after it has taken every descriptor of the process for a while.
//
// Invariants: at most maxOpen descriptors are in use, whatever the depth; no
// link is followed and no other file system entered.
package rmtree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// maxOpen bounds the directories that are open at once. What is deeper is
	// moved up first.
	maxOpen = 64
	batch   = 512
)

type remover struct {
	top   *os.File
	moved uint64 // directories that were moved up, for their names
}

// Remove removes path and all below it. That it is not there is no error.
// Nothing else may change the tree meanwhile.
func Remove(path string) error {
	err := unix.Unlink(path)
	if err == nil || gone(err) {
		return nil
	}
	if !isDir(err) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if gone(err) {
			return nil
		}
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	r := &remover{top: os.NewFile(uintptr(fd), path)}
	err = r.empty(r.top, 1)
	_ = r.top.Close()
	if err == nil {
		err = unix.Rmdir(path)
	}
	if err != nil && !gone(err) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) }

// isDir: what unlink(2) says of a directory.
func isDir(err error) bool { return errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) }

// empty removes all that is in dir, which is the nth that is open.
func (r *remover) empty(dir *os.File, n int) error {
	for {
		if _, err := dir.Seek(0, 0); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if len(names) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}
		for _, name := range names {
			if err := r.remove(int(dir.Fd()), name, n); err != nil {
				return err
			}
		}
	}
}

func (r *remover) remove(dir int, name string, n int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || gone(err) {
		return nil
	}
	if !isDir(err) {
		return err
	}
	switch err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); {
	case err == nil || gone(err):
		return nil
	case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST):
		return err
	case n >= maxOpen:
		return r.moveUp(dir, name)
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	err = r.empty(f, n+1)
	_ = f.Close()
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// moveUp puts a deep directory directly below the top, where it is met again.
func (r *remover) moveUp(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, int(r.top.Fd()), "deep-"+strconv.FormatUint(r.moved, 10), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}
