// Package userns makes user namespaces with chosen id mappings.
//
// A user namespace needs a process to be born in it. The one made here never
// runs an instruction of its own program: it is stopped at its exec, holds its
// namespaces for as long as they are wanted, and is killed.
//
// Invariants: no holder outlives Close or the calling process; its credentials
// are the namespace's root, never the caller's; it inherits no file.
package userns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
)

// Map maps Length ids from ContainerID to HostID (user_namespaces(7)).
type Map struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Length      uint32 `json:"length"`
}

// Host translates an id of the namespace to the caller's; ok is false for one
// that is not mapped.
func Host(maps []Map, id uint32) (host uint32, ok bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Length {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// Holder is a stopped process in namespaces of its own.
type Holder struct {
	pid   int
	once  sync.Once
	close chan struct{}
	ended chan struct{}
}

// Start makes a holder in a new user namespace and in those that flags
// (CLONE_NEW*) add, which the new user namespace then owns.
func Start(uids, gids []Map, flags uintptr) (*Holder, error) {
	h := &Holder{close: make(chan struct{}), ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(h.ended)
		// The tracer and the parent-death signal belong to a thread: it stays
		// with the holder and ends with it.
		runtime.LockOSThread()
		p, err := start(uids, gids, flags)
		if err == nil {
			h.pid = p.Pid
		}
		started <- err
		if err != nil {
			return
		}
		<-h.close
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return h, nil
}

func start(uids, gids []Map, flags uintptr) (*os.Process, error) {
	if len(uids) == 0 || len(gids) == 0 {
		return nil, errors.New("uid and gid mappings are needed")
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"ocid-userns"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 syscall.CLONE_NEWUSER | flags,
			UidMappings:                sys(uids),
			GidMappings:                sys(gids),
			GidMappingsEnableSetgroups: true,
			Credential:                 &syscall.Credential{Uid: uids[0].ContainerID, Gid: gids[0].ContainerID},
			Ptrace:                     true,
			Pdeathsig:                  syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, err
	}
	if err := stopped(p.Pid); err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return nil, err
	}
	return p, nil
}

// stopped returns when the process has come to its stop at exec; it is on the
// way there once it is started (ptrace(2), PTRACE_TRACEME).
func stopped(pid int) error {
	for {
		var st syscall.WaitStatus
		_, err := syscall.Wait4(pid, &st, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the holder's stop: %w", err)
		case !st.Stopped():
			return errors.New("the holder ended before it stopped")
		default:
			return nil
		}
	}
}

func sys(in []Map) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(in))
	for i, m := range in {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Length)}
	}
	return out
}

// PID is the holder's; its namespaces are in /proc/PID/ns until Close.
func (h *Holder) PID() int { return h.pid }

// Open opens the namespace of a kind ("user", "net", ...), which then lives on
// without the holder.
func (h *Holder) Open(kind string) (*os.File, error) {
	return os.Open("/proc/" + strconv.Itoa(h.pid) + "/ns/" + kind)
}

// Close ends the holder. It may be called twice.
func (h *Holder) Close() {
	h.once.Do(func() { close(h.close) })
	<-h.ended
}

// File makes a user namespace and returns it as a file, for mount_setattr(2).
func File(uids, gids []Map) (*os.File, error) {
	h, err := Start(uids, gids, 0)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Open("user")
}
