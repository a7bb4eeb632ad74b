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
	"github.com/ocid-io/ocid/internal/userns"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

// kinds are the namespaces that can be pinned, with their clone(2) flags.
var kinds = map[string]uintptr{
	"net": unix.CLONE_NEWNET,
	"ipc": unix.CLONE_NEWIPC,
	"uts": unix.CLONE_NEWUTS,
	// Before the others where both are wanted, which it then owns.
	"user": unix.CLONE_NEWUSER,
}

// Namespaces implements lifecycle.Namespaces. The zero value is ready.
type Namespaces struct{}

// Pin makes the namespaces and binds each to Dir/NAME. If all of them are
// there already nothing is done; if some are, they are made anew. On failure
// nothing is left.
func (Namespaces) Pin(ctx context.Context, req lifecycle.PinRequest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := pinning{req: req}
	for _, k := range req.Want {
		flag, ok := kinds[k]
		if !ok {
			return fmt.Errorf("%w: unknown namespace %.40q", runtime.ErrInvalid, k)
		}
		p.flags |= flag
	}
	if req.Hostname != "" && p.flags&unix.CLONE_NEWUTS != 0 && len(req.Hostname) > 64 {
		return fmt.Errorf("%w: a hostname has at most 64 bytes, %.80q has %d", runtime.ErrInvalid, req.Hostname, len(req.Hostname))
	}
	var err error
	if p.sysctls, err = resolveSysctls(req.Sysctls, p.flags); err != nil {
		return err
	}
	if (p.flags&unix.CLONE_NEWUSER != 0) != (req.User != nil) {
		return fmt.Errorf("%w: a user namespace and its mappings go together", runtime.ErrInvalid)
	}
	if p.flags == 0 || pinned(req.Dir, req.Want) {
		return nil
	}
	if err := (Namespaces{}).Unpin(req.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(req.Dir, 0o700); err != nil {
		return fmt.Errorf("pin namespaces: %w", err)
	}
	if err := p.pin(); err != nil {
		return errors.Join(fmt.Errorf("pin namespaces: %w", err), Namespaces{}.Unpin(req.Dir))
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
	req     lifecycle.PinRequest
	flags   uintptr
	sysctls []sysctlWrite
	holder  int // process that is in the namespaces; 0: the thread itself is
}

func (p *pinning) pin() error {
	if p.req.User == nil {
		return onSpareThread(p.run)
	}
	p.holder = p.req.Holder
	if p.holder == 0 {
		// No thread of ours can enter a user namespace; a process is born there.
		h, err := userns.Start(maps(p.req.User.UIDs), maps(p.req.User.GIDs), p.flags)
		if err != nil {
			return err
		}
		defer h.Close()
		p.holder = h.PID()
	}
	return onSpareThread(p.run)
}

func maps(in []runtime.IDMapping) []userns.Map {
	out := make([]userns.Map, len(in))
	for i, m := range in {
		out[i] = userns.Map(m)
	}
	return out
}

func (p *pinning) run() error {
	if err := p.enter(); err != nil {
		return err
	}
	if p.flags&unix.CLONE_NEWNET != 0 {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up loopback: %w", err)
		}
	}
	if p.flags&unix.CLONE_NEWUTS != 0 && p.req.Hostname != "" {
		if err := unix.Sethostname([]byte(p.req.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", p.req.Hostname, err)
		}
	}
	if err := p.bind(); err != nil {
		return err
	}
	// Last, as it gives the thread's rights up where a user namespace owns the keys.
	return p.writeSysctls()
}

// enter takes the thread into the namespaces.
func (p *pinning) enter() error {
	if p.holder == 0 {
		if err := unix.Unshare(int(p.flags)); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return nil
	}
	for _, k := range p.req.Want {
		if k == "user" {
			continue
		}
		f, err := os.Open(p.source(k))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), int(kinds[k]))
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("enter %s namespace: %w", k, err)
		}
	}
	return nil
}

func (p *pinning) source(kind string) string {
	if p.holder == 0 {
		return "/proc/thread-self/ns/" + kind
	}
	return "/proc/" + strconv.Itoa(p.holder) + "/ns/" + kind
}

func (p *pinning) bind() error {
	var undo cleanup.Stack
	defer func() { _ = undo.Run() }()
	for _, k := range p.req.Want {
		target := filepath.Join(p.req.Dir, k)
		f, err := os.OpenFile(target, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_ = f.Close()
		if err := unix.Mount(p.source(k), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", target, err)
		}
		undo.Add(func() error { return mountinfo.Unmount(target) })
	}
	undo.Release()
	return nil
}

// writeSysctls sets the pod's sysctls. Those of an IPC namespace may be written
// by its root only, whom a user namespace makes another than ours; the thread
// takes that id, and never gets its own back.
func (p *pinning) writeSysctls() error {
	for _, asOwner := range []bool{false, true} {
		became := false
		for _, s := range p.sysctls {
			if s.ipc() != asOwner {
				continue
			}
			if asOwner && p.req.User != nil && !became {
				if err := becomeRootOf(p.req.User); err != nil {
					return err
				}
				became = true
			}
			if err := s.write(); err != nil {
				return err
			}
		}
	}
	return nil
}

// becomeRootOf changes the thread's effective user, and that of no other thread.
func becomeRootOf(u *runtime.UserNamespace) error {
	id, ok := userns.Host(maps(u.UIDs), 0)
	if !ok {
		return fmt.Errorf("%w: the user namespace maps no root", runtime.ErrInvalid)
	}
	const keep = ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(id), keep); e != 0 {
		return fmt.Errorf("become user %d: %w", id, e)
	}
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
