package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// What is being removed is listed to no client, so no client retries it: a
// clean-up that failed is tried again here, until it succeeds or the daemon
// ends, and then by Reconcile.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// undoPodOrLater is undoPod, tried again in the background if it fails.
func (m *Manager) undoPodOrLater(ctx context.Context, p runtime.Pod) error {
	err := m.undoPod(ctx, p)
	if err != nil {
		m.later("pod "+string(p.ID), err, func(ctx context.Context) error { //nolint:contextcheck // outlives the call
			return m.removeRest(ctx, p.ID)
		})
	}
	return err
}

// removeRest ends a pod on its way out, with containers whose making began just
// before and ended after the pod's own were removed.
func (m *Manager) removeRest(ctx context.Context, id runtime.PodID) error {
	for _, c := range m.o.Ledger.ContainerViewsOf(id) {
		if err := m.removeContainer(ctx, c.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return err
		}
	}
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return err
	}
	return m.undoPod(ctx, p)
}

// undoContainerOrLater is undoContainer, tried again in the background if it fails.
func (m *Manager) undoContainerOrLater(ctx context.Context, c runtime.Container) error {
	err := m.undoContainer(ctx, c)
	if err != nil {
		m.later("container "+string(c.ID), err, func(ctx context.Context) error { //nolint:contextcheck // outlives the call
			c, err := m.o.Ledger.Container(c.ID)
			if err != nil {
				return err
			}
			return m.undoContainer(ctx, c)
		})
	}
	return err
}

// later runs undo with growing pauses until it succeeds or finds nothing. One
// such loop runs per object.
func (m *Manager) later(what string, cause error, undo func(context.Context) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retrying[what] {
		return
	}
	m.retrying[what] = true
	m.log.Warn("clean-up failed and will be tried again", "object", what, "error", cause)
	go func() {
		for pause := m.o.FirstRetry; ; pause = min(2*pause, lastRetry) {
			time.Sleep(pause)
			err := undo(context.Background())
			if err == nil || errors.Is(err, runtime.ErrNotFound) {
				break
			}
			m.log.Warn("clean-up failed again", "object", what, "next", min(2*pause, lastRetry), "error", err)
		}
		m.mu.Lock()
		delete(m.retrying, what)
		m.mu.Unlock()
	}()
}
