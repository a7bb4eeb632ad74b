package layered

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store"
)

// errLocked says that someone else holds the lock.
var errLocked = errors.New("locked")

// flock locks a file or directory and makes sure that the path still names
// what was locked. how is LOCK_SH or LOCK_EX, with LOCK_NB to get errLocked
// instead of waiting. create makes a missing file.
func flock(path string, how int, create bool) (*os.File, error) {
	flags := os.O_RDONLY
	if create {
		flags = os.O_RDWR | os.O_CREATE
	}
	for {
		f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flockFD(int(f.Fd()), how); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: %w", path, errLocked)
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		held, err := f.Stat()
		if err == nil {
			if now, statErr := os.Lstat(path); statErr == nil && os.SameFile(held, now) {
				return f, nil
			}
		}
		// Replaced or removed while we waited: it is not the lock any more.
		_ = f.Close()
	}
}

func flockFD(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *Store) lockImage(hex string, how int) (*os.File, error) {
	return flock(filepath.Join(s.names.pins, hex+".lock"), how, true)
}

// pin records that root file system id needs the image. The caller holds the
// image's lock.
func (s *Store) pin(hex, id string) error {
	dir := filepath.Join(s.names.pins, hex)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (s *Store) unpin(hex, id string) error {
	err := os.Remove(filepath.Join(s.names.pins, hex, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// pinned lists who needs the image, and drops pins whose root file system has
// gone. The caller holds the image's lock exclusively, so that no pin is being
// written; a pin is written only after its rootfs directory was made.
func (s *Store) pinned(hex string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.names.pins, hex))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(s.names.rootfs, e.Name())); errors.Is(err, fs.ErrNotExist) {
			if err := s.unpin(hex, e.Name()); err != nil {
				return nil, err
			}
			continue
		}
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// checkUnpinned returns ErrInUse, naming the holders, if the image is pinned.
func (s *Store) checkUnpinned(hex string) error {
	ids, err := s.pinned(hex)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	shown := ids
	more := ""
	if len(shown) > 5 {
		more = fmt.Sprintf(" and %d more", len(shown)-5)
		shown = shown[:5]
	}
	return fmt.Errorf("image sha256:%s: needed by root file system %s%s: %w", hex, strings.Join(shown, ", "), more, store.ErrInUse)
}
