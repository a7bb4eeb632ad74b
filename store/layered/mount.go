package layered

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// noLowerAppend is set once the kernel has shown that it does not know
// "lowerdir+" (Linux < 6.8).
var noLowerAppend atomic.Bool

// topLayer is what lies over the lowers of an overlay.
type topLayer struct {
	upper, work string // "": nothing can be written
	label       string // SELinux label of every file; "": their own
}

// mountOverlay mounts an overlay of lowers (topmost first) at target. Without
// upper it is read-only and needs at least two lowers. shift is a user
// namespace through whose mappings the owners in the lowers are seen, or nil.
func mountOverlay(target string, lowers []string, top topLayer, shift *os.File) error {
	if shift != nil {
		return mountShifted(target, lowers, top, shift)
	}
	if !noLowerAppend.Load() {
		err := mountOverlayFD(target, lowers, top)
		if !errors.Is(err, errNoLowerAppend) {
			return err
		}
		noLowerAppend.Store(true)
	}
	return mountOverlayClassic(target, lowers, top)
}

var errNoLowerAppend = errors.New("kernel takes no list of lower directories")

// mountOverlayFD uses the mount API of file descriptors: no limit on the
// length of all paths together, and nothing is left if we die in between.
func mountOverlayFD(target string, lowers []string, top topLayer) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			return errNoLowerAppend
		}
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	for i, l := range lowers {
		if err := unix.FsconfigSetString(fsfd, "lowerdir+", l); err != nil {
			if _, statErr := os.Stat(l); statErr != nil {
				return statErr
			}
			if i == 0 && errors.Is(err, unix.EINVAL) {
				return errNoLowerAppend
			}
			return fmt.Errorf("overlay lower %s: %w%s", l, err, kernelSays(fsfd))
		}
	}
	mfd, err := finishOverlay(fsfd, top)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return attach(mfd, target)
}

// finishOverlay turns a context that has its lowers into a mount, attached nowhere.
func finishOverlay(fsfd int, top topLayer) (int, error) {
	params := [][2]string{{"source", "ocid"}, {"metacopy", "off"}}
	if top.upper != "" {
		params = append(params, [2]string{"upperdir", top.upper}, [2]string{"workdir", top.work})
	}
	if top.label != "" {
		params = append(params, [2]string{"context", top.label})
	}
	for _, p := range params {
		if err := unix.FsconfigSetString(fsfd, p[0], p[1]); err != nil {
			return -1, fmt.Errorf("overlay %s=%s: %w%s", p[0], p[1], err, kernelSays(fsfd))
		}
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if top.upper != "" {
		attrs = 0
		if err := unix.FsconfigSetFlag(fsfd, "volatile"); err != nil {
			return -1, fmt.Errorf("overlay volatile: %w%s", err, kernelSays(fsfd))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("overlay: %w%s", err, kernelSays(fsfd))
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	return mfd, nil
}

func attach(mfd int, target string) error {
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount at %s: %w", target, err)
	}
	return nil
}

// kernelSays returns the message that the kernel left on a file system
// context, with a separator, or "".
func kernelSays(fsfd int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fsfd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(buf[:n]))
}

// mountOverlayClassic is for kernels before 6.8. When the options would not
// fit a page, lowers are named by file descriptor.
func mountOverlayClassic(target string, lowers []string, top topLayer) error {
	options := func(lowers []string) string {
		o := "metacopy=off,lowerdir=" + strings.Join(lowers, ":")
		if top.upper != "" {
			o += ",upperdir=" + top.upper + ",workdir=" + top.work + ",volatile"
		}
		if top.label != "" {
			o += `,context="` + top.label + `"`
		}
		return o
	}
	var flags uintptr
	if top.upper == "" {
		flags = unix.MS_RDONLY
	}
	data := options(lowers)
	if len(data) >= os.Getpagesize() {
		short := make([]string, len(lowers))
		for i, l := range lowers {
			fd, err := unix.Open(l, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("overlay lower %s: %w", l, err)
			}
			defer unix.Close(fd)
			short[i] = fmt.Sprintf("/proc/self/fd/%d", fd)
		}
		data = options(short)
	}
	if err := unix.Mount("ocid", target, "overlay", flags, data); err != nil {
		for _, l := range lowers {
			if _, statErr := os.Stat(l); statErr != nil {
				return statErr
			}
		}
		return fmt.Errorf("mount overlay at %s: %w", target, err)
	}
	return nil
}

// bindReadOnly mounts dir itself at target, read-only, its owners shifted if
// shift is not nil.
func bindReadOnly(target, dir string, shift *os.File) error {
	fd, err := cloneTree(dir, unix.MOUNT_ATTR_RDONLY, shift)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, target)
}

// isMount says whether something is mounted at path.
func isMount(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// unmount detaches whatever is mounted at path, then removes the mount point.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	err := os.Remove(path)
	if errors.Is(err, unix.ENOTEMPTY) {
		err = removeStrays(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeStrays removes what an OCI runtime that outlived its monitor made in
// the mount point after the root file system had gone from it. Nothing that is
// mounted is ever entered.
func removeStrays(path string) error {
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if mounted, err := isMount(p); err != nil || mounted {
			return errors.Join(err, fmt.Errorf("%s: something is mounted below %s: %w", p, path, unix.EBUSY))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}
