// Package mountinfo asks the kernel what is mounted where, and unmounts.
//
// Invariants: no call here touches the mounted file system beyond its root
// inode's attributes, symbolic links in the last element are not followed, and
// unmounting what is not mounted is no error.
package mountinfo

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Mounted reports whether path is the root of a mount. A path that does not
// exist is not mounted.
func Mounted(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	case st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return false, &os.PathError{Op: "statx", Path: path, Err: errors.ErrUnsupported}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Under lists the mount points at prefix and below it, in the kernel's order;
// a path that carries several mounts is listed as often.
func Under(prefix string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var under []string
	prefix = filepath.Clean(prefix)
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 0, 1<<16), 1<<22) // overlay options can be long
	for s.Scan() {
		if p, ok := mountPoint(s.Bytes()); ok && inside(p, prefix) {
			under = append(under, p)
		}
	}
	return under, s.Err()
}

// mountPoint returns the fifth field of a line of proc_pid_mountinfo(5).
func mountPoint(line []byte) (string, bool) {
	for range 4 {
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			return "", false
		}
		line = line[i+1:]
	}
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		line = line[:i]
	}
	return unescape(line), len(line) > 0
}

// unescape undoes the \ooo form that the kernel gives to space, tab, newline
// and backslash.
func unescape(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) && octal(b[i+1]) && octal(b[i+2]) && octal(b[i+3]) {
			out = append(out, (b[i+1]-'0')<<6|(b[i+2]-'0')<<3|(b[i+3]-'0'))
			i += 3
			continue
		}
		out = append(out, b[i])
	}
	return string(out)
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

func inside(p, prefix string) bool {
	return p == prefix || prefix == "/" || strings.HasPrefix(p, prefix) && p[len(prefix)] == '/'
}

// UnmountUnder detaches every mount at prefix and below, deepest first. It
// goes on after an error and returns all of them joined.
func UnmountUnder(prefix string) error {
	if filepath.Clean(prefix) == "/" {
		return &os.PathError{Op: "unmount under", Path: prefix, Err: unix.EINVAL}
	}
	points, err := Under(prefix)
	if err != nil {
		return err
	}
	sort.SliceStable(points, func(i, j int) bool {
		return strings.Count(points[i], "/") > strings.Count(points[j], "/")
	})
	var errs []error
	for _, p := range points {
		errs = append(errs, Unmount(p))
	}
	return errors.Join(errs...)
}

// Unmount detaches the mount at path at once; it ends when its last user has
// gone. A path that is absent or not a mount point is no error.
func Unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "unmount", Path: path, Err: err}
}
