package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ocid-io/ocid/runtime"
)

// reconcileWidth is how many pods are looked at in parallel at start.
const reconcileWidth = 16

// Reconcile makes ledger and world agree once, at start: operations that a
// crash cut short are undone, exits that nobody saw are recorded, and what no
// record owns is removed. One bad pod never stops it; what could not be mended
// is returned joined, for the log.
func (m *Manager) Reconcile(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(reconcileWidth)
	pods := m.o.Ledger.Pods()
	m.keepLevels(pods)
	errs := make([]error, len(pods))
	for i, p := range pods {
		g.Go(func() error {
			if err := m.reconcileOrLater(ctx, p); err != nil {
				errs[i] = fmt.Errorf("pod %s: %w", p.ID, err)
			}
			return nil
		})
	}
	_ = g.Wait()
	errs = append(errs, m.sweep(ctx), m.sweepCheckpoints())
	return errors.Join(errs...)
}

// reconcileOrLater reconciles a pod. What fails is tried again while clients
// are served: of the containers it sees only those that are there now.
func (m *Manager) reconcileOrLater(ctx context.Context, p runtime.Pod) error {
	cs := m.o.Ledger.ContainersOf(p.ID)
	if p.BootID != m.o.BootID {
		return m.afterReboot(ctx, p, cs)
	}
	settle := m.rejoin
	if p.State == runtime.PodCreating || p.State == runtime.PodRemoving {
		settle = m.settlePod
	}
	err := settle(ctx, p, cs)
	if err != nil {
		m.later("start of pod "+string(p.ID), err, func(ctx context.Context) error { return settle(ctx, p, cs) }) //nolint:contextcheck // outlives the call
	}
	return err
}

// settlePod removes a pod that was on its way in or out.
func (m *Manager) settlePod(ctx context.Context, p runtime.Pod, cs []runtime.Container) error {
	for _, c := range cs {
		if err := m.settleContainer(ctx, c); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return err
		}
	}
	return m.undoPod(ctx, p)
}

// rejoin connects to the monitor of a pod that lives and brings the records of
// its containers up to date. A monitor that hangs, or is in the middle of a long
// step, holds up no other pod.
func (m *Manager) rejoin(ctx context.Context, p runtime.Pod, cs []runtime.Container) error {
	if s := m.o.Ledger.PodState(p.ID); s != runtime.PodReady && s != runtime.PodNotReady {
		return nil // removed meanwhile
	}
	ask, cancel := context.WithTimeout(ctx, m.o.AnswerTime)
	defer cancel()
	mon, err := m.monitor(ask, p.ID)
	if errors.Is(err, runtime.ErrUnavailable) {
		if p.State == runtime.PodNotReady && allExited(cs) {
			return nil
		}
		if err := m.settleOrphan(ctx, p.ID); err != nil {
			return err
		}
		_ = m.undoHalfMade(ctx, cs) // logged, and tried again
		return nil
	}
	if err != nil {
		return err
	}
	held, err := mon.State(ask)
	if err != nil {
		return err
	}
	known := map[runtime.ContainerID]ContainerStatus{}
	for _, s := range held {
		known[s.ID] = s
	}
	for _, c := range cs {
		m.reconcileContainer(ctx, mon, c.ID, known)
	}
	_ = m.undoHalfMade(ctx, cs) // logged, and tried again
	return nil
}

func allExited(cs []runtime.Container) bool {
	for _, c := range cs {
		if c.State != runtime.ContainerExited {
			return false
		}
	}
	return true
}

// reconcileContainer brings one record up to what its monitor says.
func (m *Manager) reconcileContainer(ctx context.Context, mon Monitor, id runtime.ContainerID, known map[runtime.ContainerID]ContainerStatus) {
	c, err := m.o.Ledger.Container(id)
	if err != nil || c.State != runtime.ContainerCreated && c.State != runtime.ContainerRunning {
		return
	}
	s, ok := known[c.ID]
	if !m.reconcileRestore(&c, s, ok) {
		return
	}
	if ok && s.Started && c.State == runtime.ContainerCreated {
		// The daemon died between the start and its record.
		pid, intents := c.PID, c.Intents
		_, err := m.o.Ledger.ChangeContainer(id, func(c *runtime.Container) error {
			if c.State != runtime.ContainerCreated {
				return errAsItIs
			}
			c.PID, c.Intents = pid, intents
			c.State, c.StartedAt = runtime.ContainerRunning, time.Now().UnixNano()
			return nil
		})
		if err != nil && !errors.Is(err, errAsItIs) {
			m.log.Error("record a start", "container", c.ID, "error", err)
		}
	}
	switch {
	case !ok:
		m.recordExit(ctx, c.ID, lostExit())
	case s.Exit != nil:
		m.recordExit(ctx, c.ID, *s.Exit)
	default:
		m.liveOf(c.ID)
		go m.watch(mon, c.ID) //nolint:contextcheck // outlives the call
	}
}

// undoHalfMade removes containers whose making or removal a crash cut short.
func (m *Manager) undoHalfMade(ctx context.Context, cs []runtime.Container) error {
	var errs []error
	for _, c := range cs {
		if c.State == runtime.ContainerCreating || c.State == runtime.ContainerRemoving {
			errs = append(errs, m.undoContainerOrLater(ctx, c))
		}
	}
	return errors.Join(errs...)
}

// settleContainer removes a container of a pod that is on its way out.
func (m *Manager) settleContainer(ctx context.Context, c runtime.Container) error {
	if m.o.Ledger.ContainerState(c.ID) == runtime.ContainerRunning {
		if err := m.settleOrphan(ctx, c.PodID); err != nil {
			return err
		}
	}
	return m.undoContainer(ctx, c)
}

// afterReboot ends a pod of an earlier boot: its processes, namespaces and
// mounts went with that boot; its addresses, on disk, did not. Its records stay,
// ended, so that the client learns of restarts and removes them.
func (m *Manager) afterReboot(ctx context.Context, p runtime.Pod, cs []runtime.Container) error {
	errs := []error{m.undoHalfMade(ctx, cs)}
	for _, c := range cs {
		if c.State == runtime.ContainerCreated || c.State == runtime.ContainerRunning {
			m.recordExit(ctx, c.ID, lostExit())
		}
	}
	switch p.State {
	case runtime.PodCreating, runtime.PodRemoving:
		errs = append(errs, m.undoPodOrLater(ctx, p))
	case runtime.PodReady:
		// First: a network that is not up yet does not make the pod ready. What
		// cannot be detached now is when the client stops it.
		_, err := m.o.Ledger.ChangePod(p.ID, func(p *runtime.Pod) error {
			p.State = runtime.PodNotReady
			return nil
		})
		if err == nil {
			err = m.detach(ctx, p)
		}
		if err == nil {
			err = m.detached(p.ID)
		}
		errs = append(errs, err)
	case runtime.PodNotReady:
	}
	return errors.Join(errs...)
}

// sweep removes what no record owns: pods' directories, root file systems and
// network attachments of records that were lost or damaged.
func (m *Manager) sweep(ctx context.Context) error {
	var errs []error
	owned := map[string]bool{}
	var keep []runtime.PodID
	for _, p := range m.o.Ledger.Pods() {
		owned[string(p.ID)] = true
		if runtime.Has(p.Intents, runtime.IntentNetwork) {
			keep = append(keep, p.ID)
		}
	}
	dirs, err := os.ReadDir(filepath.Join(m.o.RunDir, "pods"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, d := range dirs {
		if !owned[d.Name()] {
			errs = append(errs, m.sweepPod(ctx, runtime.PodID(d.Name())))
		}
	}
	kept := map[string]bool{}
	for _, c := range m.o.Ledger.Containers() {
		kept[string(c.ID)] = true
		for _, id := range c.VolumeIDs() {
			kept[id] = true
		}
	}
	ids, err := m.o.Images.Prepared(ctx)
	errs = append(errs, err)
	for _, id := range ids {
		if len(id) == 64 && !kept[id] {
			m.counters.roots.Add(1)
			m.log.Warn("removing a root file system that no container owns", "container", id)
			errs = append(errs, m.o.Images.Release(ctx, id))
		}
	}
	if err := m.o.Network.GC(ctx, keep); err != nil {
		errs = append(errs, fmt.Errorf("release lost network attachments: %w", err))
	}
	return errors.Join(errs...)
}

// sweepTime bounds the clearing of one pod without a record.
const sweepTime = time.Minute

// sweepPod clears the run directory of a pod that has no record.
func (m *Manager) sweepPod(ctx context.Context, id runtime.PodID) error {
	m.counters.pods.Add(1)
	m.log.Warn("removing a pod directory that no record owns", "pod", id)
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	dir := m.podDir(id)
	mon, err := m.o.Monitors.Connect(ctx, id, dir)
	var held []OrphanContainer
	entries, _ := os.ReadDir(filepath.Join(dir, "containers"))
	for _, e := range entries {
		held = append(held, OrphanContainer{ID: runtime.ContainerID(e.Name()), CgroupPath: bundleCgroup(filepath.Join(dir, "containers", e.Name()))})
	}
	if err == nil {
		for _, h := range held {
			if err := mon.Delete(ctx, h.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
				return err
			}
		}
		if err := mon.Shutdown(ctx); err != nil && !errors.Is(err, runtime.ErrUnavailable) {
			return err
		}
	} else if !errors.Is(err, runtime.ErrUnavailable) {
		return err
	} else if _, err := m.o.Monitors.Orphan(ctx, id, dir, "", held); err != nil {
		return err
	}
	if err := m.o.Namespaces.Unpin(m.nsDir(id)); err != nil {
		return err
	}
	return m.clearPodDir(id)
}
