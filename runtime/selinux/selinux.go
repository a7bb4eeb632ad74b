// Package selinux gives pods their SELinux levels and volumes their labels.
//
// A level is "s0:c1,c2": two categories that no other pod on the machine has
// keep containers of one pod away from the files and processes of another's,
// although all run as one type.
//
// Invariants:
//   - a level that was not asked for is no other pod's, as long as the pod
//     lives; what the client asks for it gets, shared or not, and it is not
//     given to anybody else meanwhile;
//   - labelling never follows a symbolic link and never leaves the volume's
//     file system; system directories as a whole are refused;
//   - on a machine without SELinux, New returns nil and nothing is asked.
package selinux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

const (
	mountPoint = "/sys/fs/selinux"
	xattr      = "security.selinux"
	// maxCategories is the number that container policies define.
	maxCategories = 1024
	// maxDepth bounds directories in each other: each is open while what is
	// below it is labelled.
	maxDepth = 1000
	// relabelTime bounds one volume. The kubelet waits two minutes for a container.
	relabelTime = 90 * time.Second
)

// SELinux knows which levels are taken.
type SELinux struct {
	categories int

	mu    sync.Mutex
	pods  map[runtime.PodID]string // guarded by mu
	users map[string]int           // guarded by mu: level -> number of pods
}

// New returns nil where SELinux is not active.
func New() *SELinux {
	var st unix.Statfs_t
	if err := unix.Statfs(mountPoint, &st); err != nil || st.Type != unix.SELINUX_MAGIC {
		return nil
	}
	return newSELinux()
}

func newSELinux() *SELinux {
	return &SELinux{categories: maxCategories, pods: map[runtime.PodID]string{}, users: map[string]int{}}
}

// Level returns the level of a pod's containers: the one asked for, or one of
// its own. Idempotent by id.
func (s *SELinux) Level(id runtime.PodID, asked *runtime.SELinux) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.pods[id]; ok {
		return l, nil
	}
	level := ""
	if asked != nil {
		level = asked.Level
	}
	if level == "" {
		var err error
		if level, err = s.free(); err != nil {
			return "", err
		}
	}
	s.take(id, level)
	return level, nil
}

// free picks at random, so that a level is not soon another pod's, whose
// volumes might still carry it; must be called with mu held.
func (s *SELinux) free() (string, error) {
	for range 64 {
		a, b := rand.IntN(s.categories), rand.IntN(s.categories) //nolint:gosec // spread, not secrecy
		if a == b {
			continue
		}
		if l := level(a, b); s.users[l] == 0 {
			return l, nil
		}
	}
	for a := range s.categories {
		for b := a + 1; b < s.categories; b++ {
			if l := level(a, b); s.users[l] == 0 {
				return l, nil
			}
		}
	}
	return "", fmt.Errorf("%w: all %d SELinux levels are taken", runtime.ErrUnavailable, s.categories*(s.categories-1)/2)
}

func level(a, b int) string {
	return "s0:c" + strconv.Itoa(min(a, b)) + ",c" + strconv.Itoa(max(a, b))
}

// Keep tells of a pod that has a level already.
func (s *SELinux) Keep(id runtime.PodID, level string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pods[id]; !ok && level != "" {
		s.take(id, level)
	}
}

func (s *SELinux) take(id runtime.PodID, level string) {
	s.pods[id] = level
	s.users[level]++
}

// Release gives a pod's level back. Idempotent.
func (s *SELinux) Release(id runtime.PodID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.pods[id]
	if !ok {
		return
	}
	delete(s.pods, id)
	if s.users[l]--; s.users[l] == 0 {
		delete(s.users, l)
	}
}

// system are directories whose relabelling as a whole would break the machine.
var system = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp",
}

// Relabel gives path and all below it the label. A file system that has no
// labels is left as it is.
func (s *SELinux) Relabel(ctx context.Context, path, label string) error {
	if slices.Contains(system, filepath.Clean(path)) {
		return systemError(path)
	}
	ctx, cancel := context.WithTimeout(ctx, relabelTime)
	defer cancel()
	done := make(chan error, 1)
	// Beside the caller: a dead share must not hold it.
	go func() { done <- relabel(ctx, path, label) }()
	select {
	case err := <-done:
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("relabel %q: %w", path, err)
		}
		if err == nil {
			return nil
		}
	case <-ctx.Done():
	}
	return fmt.Errorf("%w: relabelling %q did not end within %s: give the volume fewer files, or a label of its own", runtime.ErrTimeout, path, relabelTime)
}

func systemError(path string) error {
	return fmt.Errorf("%w: %q as a whole is not relabelled: it is the machine's", runtime.ErrInvalid, path)
}

func relabel(ctx context.Context, path, label string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }()
	// The path may be a link to such a directory.
	if target, err := os.Readlink(procPath(f)); err != nil || slices.Contains(system, target) {
		return errors.Join(systemError(path), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	err = set(ctx, f, label, st.Dev, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// set labels what f refers to, and if it is a directory all below it. Every
// name is opened relative to its directory and without following links, so that
// a container that has the volume already cannot redirect the walk.
func set(ctx context.Context, f *os.File, label string, dev uint64, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: it has directories more than %d deep", runtime.ErrInvalid, maxDepth)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Dev != dev {
		return nil
	}
	if err := setOne(f, label); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	dir, err := os.Open(procPath(f))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	for {
		names, err := dir.Readdirnames(512)
		for _, n := range names {
			if err := setChild(ctx, f, n, label, dev, depth+1); err != nil {
				return err
			}
		}
		if err != nil || len(names) == 0 {
			return nil //nolint:nilerr // io.EOF
		}
	}
}

func setChild(ctx context.Context, dir *os.File, name, label string, dev uint64, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name))
	defer func() { _ = f.Close() }()
	return set(ctx, f, label, dev, depth)
}

// procPath names an O_PATH descriptor for calls that take none.
func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// setOne writes the label if it is another one: most volumes have it already.
func setOne(f *os.File, label string) error {
	buf := make([]byte, len(label)+2)
	n, err := unix.Getxattr(procPath(f), xattr, buf)
	if err == nil && (string(buf[:n]) == label || n > 0 && string(buf[:n-1]) == label && buf[n-1] == 0) {
		return nil
	}
	if err := unix.Setxattr(procPath(f), xattr, []byte(label), 0); err != nil {
		return &fs.PathError{Op: "label", Path: f.Name(), Err: err}
	}
	return nil
}
