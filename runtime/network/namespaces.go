package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/cleanup"
	"github.com/ocid-io/ocid/internal/mountinfo"
	"github.com/ocid-io/ocid/runtime"
)

// kinds are the namespaces that can be pinned, with their clone(2) flags.
var kinds = map[string]uintptr{
	"net": unix.CLONE_NEWNET,
	"ipc": unix.CLONE_NEWIPC,
	"uts": unix.CLONE_NEWUTS,
}

// Namespaces implements lifecycle.Namespaces. The zero value is ready.
type Namespaces struct{}

// Pin makes the namespaces and binds each to dir/NAME. If all of them are
// there already nothing is done; if some are, they are made anew. On failure
// nothing is left.
func (Namespaces) Pin(ctx context.Context, dir string, want []string, hostname string, sysctls map[string]string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var flags uintptr
	for _, k := range want {
		if k == "user" {
			return fmt.Errorf("%w: user namespaces are not supported yet", runtime.ErrInvalid)
		}
		flag, ok := kinds[k]
		if !ok {
			return fmt.Errorf("%w: unknown namespace %.40q", runtime.ErrInvalid, k)
		}
		flags |= flag
	}
	if hostname != "" && flags&unix.CLONE_NEWUTS != 0 && len(hostname) > 64 {
		return fmt.Errorf("%w: a hostname has at most 64 bytes, %.80q has %d", runtime.ErrInvalid, hostname, len(hostname))
	}
	writes, err := resolveSysctls(sysctls, flags)
	if err != nil {
		return err
	}
	if flags == 0 || pinned(dir, want) {
		return nil
	}
	if err := (Namespaces{}).Unpin(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin namespaces: %w", err)
	}
	p := pinning{dir: dir, want: want, flags: flags, hostname: hostname, sysctls: writes}
	if err := onSpareThread(p.run); err != nil {
		return errors.Join(fmt.Errorf("pin namespaces: %w", err), Namespaces{}.Unpin(dir))
	}
	return nil
}

func pinned(dir string, want []string) bool {
	for _, k := range want {
		if ok, err := mountinfo.Mounted(filepath.Join(dir, k)); err != nil || !ok {
			return false
		}
	}
	return true
}

// onSpareThread runs fn on a thread that ends with it. The process's first
// thread is not taken: it cannot end, and /proc/self shows its namespaces.
func onSpareThread(fn func() error) error {
	done := make(chan error, 1)
	var body func()
	body = func() {
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Holding the first thread forces the next goroutine onto another.
			inner := make(chan struct{})
			go func() { defer close(inner); body() }()
			<-inner
			goruntime.UnlockOSThread()
			return
		}
		done <- fn()
		// No unlock: the runtime ends the thread with the goroutine.
	}
	go body()
	return <-done
}

type pinning struct {
	dir      string
	want     []string
	flags    uintptr
	hostname string
	sysctls  []sysctlWrite
}

func (p *pinning) run() error {
	if err := unix.Unshare(int(p.flags)); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if p.flags&unix.CLONE_NEWNET != 0 {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up loopback: %w", err)
		}
	}
	if p.flags&unix.CLONE_NEWUTS != 0 && p.hostname != "" {
		if err := unix.Sethostname([]byte(p.hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", p.hostname, err)
		}
	}
	for _, s := range p.sysctls {
		if err := s.write(); err != nil {
			return err
		}
	}
	var undo cleanup.Stack
	defer func() { _ = undo.Run() }()
	for _, k := range p.want {
		target := filepath.Join(p.dir, k)
		f, err := os.OpenFile(target, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_ = f.Close()
		if err := unix.Mount("/proc/thread-self/ns/"+k, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", target, err)
		}
		undo.Add(func() error { return mountinfo.Unmount(target) })
	}
	undo.Release()
	return nil
}

// loopbackUp sets IFF_UP on lo in the thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// Unpin detaches every pin under dir and removes dir. Idempotent.
func (Namespaces) Unpin(dir string) error {
	var errs []error
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("unpin namespaces: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// A pin may be stacked if two programs bound it; take all.
		for range 8 {
			ok, err := mountinfo.Mounted(path)
			if err != nil || !ok {
				errs = append(errs, err)
				break
			}
			if err := mountinfo.Unmount(path); err != nil {
				errs = append(errs, err)
				break
			}
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unpin namespaces: %w", err)
	}
	return nil
}

// MountShm mounts a tmpfs of at most size bytes at dir, for /dev/shm.
// Idempotent; undone by unmounting dir.
func MountShm(dir string, size int64) error {
	if size <= 0 {
		return fmt.Errorf("%w: shm of %d bytes", runtime.ErrInvalid, size)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	if ok, err := mountinfo.Mounted(dir); err != nil || ok {
		return err
	}
	opts := "mode=1777,size=" + strconv.FormatInt(size, 10)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount shm at %s: %w", dir, err)
	}
	return nil
}
