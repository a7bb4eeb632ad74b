package layered

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/userns"
	"github.com/ocid-io/ocid/store"
)

// A root file system for a user namespace is made of the same layers as any
// other: each is seen through an id-mapped mount, which only the overlay holds,
// and the writable layer has the host's ids on disk.

func ranges(in []store.IDRange) []userns.Map {
	out := make([]userns.Map, len(in))
	for i, r := range in {
		out[i] = userns.Map(r)
	}
	return out
}

// cloneTree returns a mount of dir that is attached nowhere, private, with
// attributes, and with its owners shifted if shift is not nil.
func cloneTree(dir string, attrs uint64, shift *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tree %s: %w", dir, err)
	}
	attr := unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE}
	if shift != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(shift.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(fd)
		if shift != nil && errors.Is(err, unix.EINVAL) {
			return -1, fmt.Errorf("the file system of %s has no id-mapped mounts, which user namespaces need: %w", dir, err)
		}
		return -1, fmt.Errorf("set attributes of mount of %s: %w", dir, err)
	}
	return fd, nil
}

// noDetachedLower is set once the kernel has shown that it takes no layer that
// is mounted nowhere (Linux < 6.15).
var noDetachedLower atomic.Bool

func mountShifted(target string, lowers []string, top topLayer, shift *os.File) error {
	fds := make([]int, 0, len(lowers))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, l := range lowers {
		fd, err := cloneTree(l, 0, shift)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	if !noDetachedLower.Load() {
		paths := make([]string, len(fds))
		for i, fd := range fds {
			paths[i] = "/proc/self/fd/" + strconv.Itoa(fd)
		}
		mfd, err := openOverlay(paths, top)
		if err == nil {
			defer unix.Close(mfd)
			return attach(mfd, target)
		}
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		noDetachedLower.Store(true)
		// The attempt has marked the work directory as one of a volatile overlay,
		// which no other may use.
		if top.work != "" {
			if err := os.RemoveAll(filepath.Join(top.work, "work")); err != nil {
				return err
			}
		}
	}
	mfd, err := overlayInPrivate(filepath.Dir(target), fds, top)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return attach(mfd, target)
}

// openOverlay makes an overlay that is attached nowhere.
func openOverlay(lowers []string, top topLayer) (int, error) {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	for _, l := range lowers {
		if err := unix.FsconfigSetString(fsfd, "lowerdir+", l); err != nil {
			return -1, fmt.Errorf("overlay lower %s: %w%s", l, err, kernelSays(fsfd))
		}
	}
	return finishOverlay(fsfd, top)
}

// overlayInPrivate attaches the layers in a mount namespace that only one
// thread is in and that goes with it, so that whenever we die nothing is left.
// at is any directory.
func overlayInPrivate(at string, layers []int, top topLayer) (mfd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		mfd, err = func() (int, error) {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return -1, fmt.Errorf("unshare mounts: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return -1, fmt.Errorf("make mounts private: %w", err)
			}
			if err := unix.Mount("ocid", at, "tmpfs", 0, "mode=700"); err != nil {
				return -1, fmt.Errorf("mount tmpfs: %w", err)
			}
			paths := make([]string, len(layers))
			for i, fd := range layers {
				paths[i] = filepath.Join(at, strconv.Itoa(i))
				if err := os.Mkdir(paths[i], 0o700); err != nil {
					return -1, err
				}
				if err := attach(fd, paths[i]); err != nil {
					return -1, err
				}
			}
			return openOverlay(paths, top)
		}()
	}()
	<-done
	return mfd, err
}

// IDMapped says nil if root file systems can be made for user namespaces, or why not.
func (s *Store) IDMapped() error {
	one := []userns.Map{{ContainerID: 0, HostID: 1, Length: 1}}
	shift, err := userns.File(one, one)
	if err != nil {
		return err
	}
	defer shift.Close()
	fd, err := cloneTree(s.names.empty, 0, shift)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
