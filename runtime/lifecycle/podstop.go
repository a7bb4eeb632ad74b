package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// StopPod kills the pod's containers and releases its network and namespaces.
// Idempotent; an unknown id is ErrNotFound.
func (m *Manager) StopPod(ctx context.Context, id runtime.PodID) error {
	_, err := m.flights.do(ctx, "stop-pod "+string(id), "stop pod "+string(id), m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		done, err := m.podTurn.take(ctx, string(id))
		if err != nil {
			return "", err
		}
		defer done()
		return "", m.stopPod(ctx, op, id)
	})
	return err
}

func (m *Manager) stopPod(ctx context.Context, op *operation, id runtime.PodID) error {
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return err
	}
	if p.State == runtime.PodCreating {
		return fmt.Errorf("%w: pod %s is being created", runtime.ErrState, id)
	}
	end := op.enter(ctx, "stop-containers")
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range m.o.Ledger.ContainersOf(id) {
		g.Go(func() error { return m.stopContainer(gctx, c.ID, 0) })
	}
	err = g.Wait()
	end()
	if err != nil {
		return err
	}
	if p.State == runtime.PodReady {
		_ = m.podStep(ctx, StepPodStop, p)
	}
	end = op.enter(ctx, "detach")
	err = m.detach(ctx, p)
	end()
	if err != nil {
		return err
	}
	err = m.detached(id)
	m.endForwards(id) // of those who still saw it ready
	return err
}

// detached records that the pod is stopped and has no network any more.
func (m *Manager) detached(id runtime.PodID) error {
	_, err := m.o.Ledger.ChangePod(id, func(p *runtime.Pod) error {
		left := without(p.Intents, runtime.IntentNetwork, runtime.IntentNamespaces)
		if p.State == runtime.PodRemoving || p.State == runtime.PodNotReady && len(left) == len(p.Intents) {
			return errAsItIs
		}
		p.State, p.Intents = runtime.PodNotReady, left
		return nil
	})
	if errors.Is(err, errAsItIs) {
		return nil
	}
	return err
}

func without(in []runtime.Intent, drop ...runtime.Intent) []runtime.Intent {
	var out []runtime.Intent
	for _, i := range in {
		if !runtime.Has(drop, i) {
			out = append(out, i)
		}
	}
	return out
}

// RemovePod stops the pod and removes it with all its containers. Idempotent;
// an unknown id is ErrNotFound.
func (m *Manager) RemovePod(ctx context.Context, id runtime.PodID) error {
	_, err := m.flights.do(ctx, "remove-pod "+string(id), "remove pod "+string(id), m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		done, err := m.podTurn.take(ctx, string(id))
		if err != nil {
			return "", err
		}
		defer done()
		return "", m.removePod(ctx, op, id)
	})
	return err
}

func (m *Manager) removePod(ctx context.Context, op *operation, id runtime.PodID) error {
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return err
	}
	if p.State == runtime.PodCreating {
		return fmt.Errorf("%w: pod %s is being created", runtime.ErrState, id)
	}
	end := op.enter(ctx, "remove-containers")
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range m.o.Ledger.ContainersOf(id) {
		g.Go(func() error {
			if err := m.removeContainer(gctx, c.ID); !errors.Is(err, runtime.ErrNotFound) {
				return err
			}
			return nil
		})
	}
	err = g.Wait()
	end()
	if err != nil {
		return err
	}
	defer op.enter(ctx, "undo")()
	return m.undoPodOrLater(ctx, p)
}

// killMonitor ends a monitor that does not answer on its socket.
func (m *Manager) killMonitor(p runtime.Pod) error {
	if p.MonitorPID <= 0 || p.BootID != m.o.BootID {
		return nil
	}
	fd, err := unix.PidfdOpen(p.MonitorPID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open monitor process %d: %w", p.MonitorPID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Compared after the pidfd is open, so that the pid cannot change hands between.
	if start, err := startTime(p.MonitorPID); err != nil || start != p.MonitorStart {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill monitor process %d: %w", p.MonitorPID, err)
	}
	return waitPidfd(fd, 5*time.Second)
}

func waitPidfd(fd int, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w: a killed process did not end in %s", runtime.ErrTimeout, limit)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// startTime is field 22 of /proc/PID/stat, in clock ticks since boot (proc(5)).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("short /proc/%d/stat", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}
