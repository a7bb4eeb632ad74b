package network

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// ipcSysctls are those kernel.* keys that belong to an IPC namespace.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

type sysctlWrite struct {
	key, path, value string // path is relative to /proc/sys
}

// resolveSysctls checks every key before anything is made: it must belong to
// a namespace that is the pod's own.
func resolveSysctls(sysctls map[string]string, flags uintptr) ([]sysctlWrite, error) {
	var out []sysctlWrite
	for key, value := range sysctls {
		path, ok := sysctlPath(key)
		if !ok || strings.IndexByte(value, 0) >= 0 {
			return nil, fmt.Errorf("%w: malformed sysctl %.200q", runtime.ErrInvalid, key)
		}
		var need uintptr
		switch {
		case strings.HasPrefix(path, "net/"):
			need = unix.CLONE_NEWNET
		case slices.Contains(ipcSysctls, path), strings.HasPrefix(path, "fs/mqueue/"):
			need = unix.CLONE_NEWIPC
		default:
			return nil, fmt.Errorf("%w: sysctl %q is not namespaced", runtime.ErrInvalid, key)
		}
		if flags&need == 0 {
			return nil, fmt.Errorf("%w: sysctl %q needs a namespace that this pod shares with the host", runtime.ErrInvalid, key)
		}
		out = append(out, sysctlWrite{key: key, path: path, value: value})
	}
	slices.SortFunc(out, func(a, b sysctlWrite) int { return strings.Compare(a.key, b.key) })
	return out, nil
}

// sysctlPath turns a.b/c.d into a/b.c/d, and takes a/b.c/d as it is: whichever
// of the two separators comes first is the separator (sysctl.d(5)).
func sysctlPath(key string) (string, bool) {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	for _, part := range strings.Split(key, "/") {
		if part == "" || part == "." || part == ".." {
			return "", false
		}
		for _, c := range part {
			if c <= ' ' || c > '~' {
				return "", false
			}
		}
	}
	return key, true
}

// ipc says that the key belongs to an IPC namespace.
func (s sysctlWrite) ipc() bool { return !strings.HasPrefix(s.path, "net/") }

// write must run on a thread inside the namespaces: /proc/sys shows those of
// the thread that looks.
func (s sysctlWrite) write() error {
	root, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/sys: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, s.path, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("%w: sysctl %q: %w", runtime.ErrInvalid, s.key, err)
	}
	f := os.NewFile(uintptr(fd), s.path)
	defer f.Close()
	if _, err := f.WriteString(s.value); err != nil {
		return fmt.Errorf("%w: sysctl %q = %q: %w", runtime.ErrInvalid, s.key, s.value, err)
	}
	return nil
}
