// Package atomicfile replaces files so that a reader, and whoever looks after
// a crash, sees the old content or the new and never part of one.
//
// Invariants: the temporary file lies in the target's directory, begins with
// TempPrefix and is gone when the call returns, unless the process died; then
// RemoveTemps collects it. The target is replaced, never followed, if it is a
// symbolic link.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// TempPrefix begins the name of every temporary file this package makes.
const TempPrefix = ".tmp-"

// seq tells the temporary files of one process apart; the pid tells processes apart.
var seq atomic.Uint64

// Write replaces path with data. It survives the death of the process, but
// after a power cut the file may be old, new or empty: use it on tmpfs or for
// what can be made again.
func Write(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, perm, false)
}

// WriteSync is Write that returns when data and name are on stable storage.
func WriteSync(path string, data []byte, perm fs.FileMode) error {
	return write(path, data, perm, true)
}

func write(path string, data []byte, perm fs.FileMode, sync bool) error {
	dir := filepath.Dir(path)
	tmp := filepath.Join(dir, TempPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(seq.Add(1), 36))
	// A dead process that had our pid may have left this very name.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = fill(f, data, perm, sync)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreNotExist(os.Remove(tmp)))
	}
	if sync {
		return SyncDir(dir)
	}
	return nil
}

func fill(f *os.File, data []byte, perm fs.FileMode, sync bool) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	// Chmod rather than the mode of open: the result must not depend on umask.
	if perm != 0o600 {
		if err := f.Chmod(perm); err != nil {
			return err
		}
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// SyncDir flushes a directory, and with it the names made or removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// RemoveTemps removes temporary files that processes now dead left in dir. The
// caller must own the directory: a live writer's file would be taken from it.
func RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), TempPrefix) && e.Type().IsRegular() {
			errs = append(errs, ignoreNotExist(os.Remove(filepath.Join(dir, e.Name()))))
		}
	}
	return errors.Join(errs...)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
