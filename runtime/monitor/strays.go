package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// endRuntimes kills the OCI runtimes that are at work on a container whose
// monitor is dead, and returns when they have gone. They are killed with their
// monitor, but what one was doing in the kernel then, a mkdir of a cgroup for
// instance, may end after the monitor did. A runtime is known by its program and
// by the container's id, which is an argument of its own: a client that names
// the container, as crictl does, is left alone.
func endRuntimes(program, id string, patience time.Duration) error {
	end := time.Now().Add(patience)
	runtimes := func(pid int) bool { return runs(pid, program) && names(pid, id) }
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !runtimes(pid) {
			continue
		}
		if err := endProcess(pid, id, runtimes, end); err != nil {
			return err
		}
	}
	return nil
}

// runs says whether a process runs an OCI runtime's program, or a sealed copy of
// one in memory, which is how the embedded runtime and runc run.
func runs(pid int, program string) bool {
	exe := "/proc/" + strconv.Itoa(pid) + "/exe"
	if link, err := os.Readlink(exe); err == nil && strings.HasPrefix(link, "/memfd:") {
		return true
	}
	its, err := os.Stat(exe)
	if err != nil {
		return false // it has gone
	}
	wanted, err := os.Stat(program)
	return err == nil && os.SameFile(its, wanted)
}

// names says whether id is one of a process's arguments.
func names(pid int, id string) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return false // it has gone
	}
	for arg := range bytes.SplitSeq(b, []byte{0}) {
		if string(arg) == id {
			return true
		}
	}
	return false
}

// endProcess kills a process and waits until it has gone.
func endProcess(pid int, id string, is func(pid int) bool, end time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Looked at again: the pid cannot change hands any more.
	if !is(pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())) //nolint:gosec // a descriptor
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("%w: process %d, at work on container %s, does not end", runtime.ErrTimeout, pid, id)
		default:
			return nil
		}
	}
}
