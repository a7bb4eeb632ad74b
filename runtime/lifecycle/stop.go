package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// killTime is how long the kernel gets to end processes after SIGKILL.
const killTime = 30 * time.Second

// StopContainer asks the container to end with its stop signal and, when
// timeout has passed, kills it. Idempotent; returns when the exit is recorded.
func (m *Manager) StopContainer(ctx context.Context, id runtime.ContainerID, timeout time.Duration) error {
	// Calls are not joined: each has a timeout of its own, and the shortest wins.
	key := fmt.Sprintf("stop %s %d", id, timeout)
	_, err := m.flights.do(ctx, key, "stop container "+string(id), timeout+m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		defer op.enter(ctx, "stop")()
		return "", m.stopContainer(ctx, id, timeout)
	})
	return err
}

func (m *Manager) stopContainer(ctx context.Context, id runtime.ContainerID, timeout time.Duration) error {
	// Taken before the record is read: who sees it running hears of its end.
	gone := m.liveOf(id).gone
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		m.forget(id)
		return err
	}
	switch c.State {
	case runtime.ContainerCreated, runtime.ContainerRunning:
	case runtime.ContainerCreating:
		return fmt.Errorf("%w: container %s is being created", runtime.ErrState, id)
	case runtime.ContainerExited, runtime.ContainerRemoving:
		return nil
	}
	if done, err := m.stopUnrestored(ctx, c); done || err != nil {
		return err
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return m.afterMonitorLoss(ctx, c.PodID, err)
	}
	if c.State == runtime.ContainerRunning && timeout > 0 {
		if err := mon.Signal(ctx, id, signalNumber(c.StopSignal), false); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return m.afterMonitorLoss(ctx, c.PodID, fmt.Errorf("signal container %s: %w", id, err))
		}
		if await(ctx, gone, timeout) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := mon.Signal(ctx, id, int(unix.SIGKILL), true); err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return m.afterMonitorLoss(ctx, c.PodID, fmt.Errorf("kill container %s: %w", id, err))
	}
	if !await(ctx, gone, killTime) {
		return fmt.Errorf("%w: container %s (pid %d) did not end within %s of SIGKILL: is it in uninterruptible input or output?",
			runtime.ErrTimeout, id, c.PID, killTime)
	}
	return nil
}

// afterMonitorLoss turns the loss of a monitor into the exits of all it held.
func (m *Manager) afterMonitorLoss(ctx context.Context, pod runtime.PodID, err error) error {
	if !errors.Is(err, runtime.ErrUnavailable) {
		return err
	}
	return m.orphan(ctx, pod)
}

func await(ctx context.Context, c <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
		return false
	case <-ctx.Done():
		return false
	}
}

// RemoveContainer kills the container if it runs, and removes it. Idempotent;
// an unknown id is ErrNotFound.
func (m *Manager) RemoveContainer(ctx context.Context, id runtime.ContainerID) error {
	_, err := m.flights.do(ctx, "remove "+string(id), "remove container "+string(id), m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		defer op.enter(ctx, "remove")()
		return "", m.removeContainer(ctx, id)
	})
	return err
}

func (m *Manager) removeContainer(ctx context.Context, id runtime.ContainerID) error {
	if err := m.stopContainer(ctx, id, 0); err != nil {
		return err
	}
	done, err := m.ctrTurn.take(ctx, string(id))
	if err != nil {
		return err
	}
	defer done()
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return err
	}
	return m.undoContainerOrLater(ctx, c)
}

// watch records the container's exit when its monitor tells it.
func (m *Manager) watch(mon Monitor, id runtime.ContainerID) {
	ctx := context.Background()
	exit, err := mon.Wait(ctx, id)
	c, gerr := m.o.Ledger.Container(id)
	if gerr != nil {
		return
	}
	switch {
	case err == nil:
		m.recordExit(ctx, id, exit)
	case errors.Is(err, runtime.ErrUnavailable):
		if err := m.orphan(ctx, c.PodID); err != nil {
			m.log.Error("clean-up after a lost monitor failed", "pod", c.PodID, "error", err)
		}
	case errors.Is(err, runtime.ErrNotFound):
		m.recordExit(ctx, id, lostExit())
	default:
		m.log.Error("wait for a container", "container", id, "error", err)
	}
}

// lostExit stands for an exit that nobody saw.
func lostExit() Exit { return Exit{Code: 255, FinishedAt: time.Now().UnixNano()} }

// recordExit moves the container to exited and wakes who waits. Idempotent.
func (m *Manager) recordExit(ctx context.Context, id runtime.ContainerID, e Exit) {
	done, err := m.ctrTurn.take(ctx, string(id))
	if err != nil {
		return
	}
	defer done()
	m.exited(ctx, id, e)
}

// exited is recordExit for whoever has the container's turn.
func (m *Manager) exited(ctx context.Context, id runtime.ContainerID, e Exit) {
	if err := m.putExit(ctx, id, e); err != nil {
		// Nobody tells it a second time, and without it the container would be
		// listed as running for as long as the daemon lives.
		m.later("exit of container "+string(id), err, func(ctx context.Context) error { //nolint:contextcheck // outlives the call
			done, err := m.ctrTurn.take(ctx, string(id))
			if err != nil {
				return err
			}
			defer done()
			return m.putExit(ctx, id, e)
		})
		m.liveOf(id).end() // whoever waits need not wait for the disk
	}
}

// putExit writes an exit to the record of a container that has none.
func (m *Manager) putExit(ctx context.Context, id runtime.ContainerID, e Exit) error {
	l := m.liveOf(id)
	c, err := m.o.Ledger.ChangeContainer(id, func(c *runtime.Container) error {
		if c.State != runtime.ContainerCreated && c.State != runtime.ContainerRunning {
			return errAsItIs
		}
		c.State = runtime.ContainerExited
		c.ExitCode, c.FinishedAt = e.Code, e.FinishedAt
		if c.FinishedAt == 0 {
			c.FinishedAt = time.Now().UnixNano()
		}
		switch {
		case e.OOMKilled:
			c.Reason = "OOMKilled"
		case e.Code == 0:
			c.Reason = "Completed"
		default:
			c.Reason = "Error"
		}
		return nil
	})
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		m.forget(id)
		return nil
	case errors.Is(err, errAsItIs):
		return nil
	case err != nil:
		return err
	}
	l.end()
	_ = m.containerStep(ctx, StepStopped, c)
	return nil
}

// orphan settles a pod whose monitor is gone: its containers are ended, their
// last exits recorded, and the pod is no longer ready. Joined and idempotent.
func (m *Manager) orphan(ctx context.Context, pod runtime.PodID) error {
	_, err := m.flights.do(ctx, "orphan "+string(pod), "settle pod "+string(pod), m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		defer op.enter(ctx, "orphan")()
		return "", m.settleOrphan(ctx, pod)
	})
	return err
}

// lost settles a pod whose monitor has gone, also one that holds nothing: a
// pod without a monitor can run nothing, and whoever made it must know.
func (m *Manager) lost(id runtime.PodID) {
	if m.o.Ledger.PodState(id) != runtime.PodReady {
		return // being made or removed: that operation sees to it
	}
	if err := m.settleLost(context.Background(), id); err != nil {
		m.later("monitor of pod "+string(id), err, func(ctx context.Context) error { return m.settleLost(ctx, id) })
	}
}

func (m *Manager) settleLost(ctx context.Context, id runtime.PodID) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.OperationTime)
	defer cancel()
	done, err := m.podTurn.take(ctx, string(id))
	if err != nil {
		return err
	}
	defer done()
	if m.o.Ledger.PodState(id) != runtime.PodReady {
		return nil
	}
	return m.orphan(ctx, id)
}

func (m *Manager) settleOrphan(ctx context.Context, pod runtime.PodID) error {
	p, err := m.o.Ledger.Pod(pod)
	if err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.pods, pod)
	delete(m.podReadings, pod)
	m.mu.Unlock()
	if err := m.killMonitor(p); err != nil {
		return err
	}
	var held []OrphanContainer
	for _, c := range m.o.Ledger.ContainersOf(pod) {
		if c.State != runtime.ContainerExited {
			held = append(held, OrphanContainer{ID: c.ID, CgroupPath: c.CgroupPath})
		}
	}
	exits, err := m.o.Monitors.Orphan(ctx, pod, m.podDir(pod), p.Config.Handler, held)
	if err != nil {
		return fmt.Errorf("clean up after the lost monitor of pod %s: %w", pod, err)
	}
	for _, h := range held {
		e, ok := exits[h.ID]
		if !ok {
			e = Exit{Code: 137, FinishedAt: time.Now().UnixNano()}
		}
		m.recordExit(ctx, h.ID, e)
	}
	_, err = m.o.Ledger.ChangePod(pod, func(p *runtime.Pod) error {
		if p.State != runtime.PodReady {
			return errAsItIs // meanwhile it was stopped
		}
		p.State = runtime.PodNotReady
		return nil
	})
	if errors.Is(err, runtime.ErrNotFound) || errors.Is(err, errAsItIs) {
		return nil
	}
	if err != nil {
		return err
	}
	m.counters.lost.Add(1)
	m.log.Warn("the pod's monitor is gone; its containers were ended", "pod", pod)
	return nil
}
