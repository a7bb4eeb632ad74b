package cgroup

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Procs lists the processes of the group and of those below it, in every
// hierarchy, each once.
func (fs *FS) Procs(path string) ([]int, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, root := range fs.roots {
		if pids, err = appendProcs(pids, root+path); err != nil {
			return nil, err
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func appendProcs(pids []int, dir string) ([]int, error) {
	data, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil && !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) {
		return pids, err
	}
	for _, f := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	subs, err := children(dir)
	for _, s := range subs {
		if pids, err = appendProcs(pids, s); err != nil {
			return pids, err
		}
	}
	return pids, err
}

func children(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, err
	}
	var subs []string
	for _, e := range entries {
		if e.IsDir() {
			subs = append(subs, dir+"/"+e.Name())
		}
	}
	return subs, nil
}

// gone is true for a group that is absent or was removed while being read.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// KillAll kills every process of the group and below it, and returns when none
// is left or ctx is done.
func (fs *FS) KillAll(ctx context.Context, path string) error {
	clean, err := clean(path)
	if err != nil {
		return err
	}
	if fs.v2 != "" {
		// One write kills the whole v2 tree, forks included (Linux 5.14).
		if f, err := os.OpenFile(fs.v2+clean+"/cgroup.kill", os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("1")
			_ = f.Close()
		}
	}
	for {
		pids, err := fs.Procs(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := fs.killOnce(ctx, path, pids); err != nil {
			return err
		}
	}
}

// killOnce opens a pidfd for each process and looks again: one that is still
// listed is the one opened, not another that got its number.
func (fs *FS) killOnce(ctx context.Context, path string, pids []int) error {
	fds := map[int]int{}
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	still, err := fs.Procs(path)
	if err != nil {
		return err
	}
	for _, pid := range still {
		if fd, ok := fds[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return os.NewSyscallError("kill", err)
			}
		}
	}
	for pid, fd := range fds {
		if !slices.Contains(still, pid) {
			continue
		}
		if err := awaitExit(ctx, fd); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// awaitExit polls in slices so that the end of ctx is seen.
func awaitExit(ctx context.Context, fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// Remove deletes the group and all below it in every hierarchy. The kernel
// lets go of a group a moment after its last process: EBUSY is retried for a
// while, a group that still has processes is an error.
func (fs *FS) Remove(path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range fs.roots {
		errs = append(errs, removeTree(root+path))
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	pause := time.Millisecond
	for {
		err := unix.Rmdir(dir)
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) || pause > time.Second/2 {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		subs, serr := children(dir)
		if serr != nil {
			return serr
		}
		for _, s := range subs {
			if err := removeTree(s); err != nil {
				return err
			}
		}
		if len(subs) == 0 {
			time.Sleep(pause)
			pause *= 2
		}
	}
}
