package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// RunPod makes a pod and returns its id. It is idempotent by cfg.Name: an equal
// request joins the one in flight or gets its result; a different request under
// the name of a pod that exists is ErrInvalid.
func (m *Manager) RunPod(ctx context.Context, cfg runtime.PodConfig) (runtime.PodID, error) {
	key, err := json.Marshal(cfg.Name)
	if err != nil {
		return "", fmt.Errorf("pod name: %w", err)
	}
	what := fmt.Sprintf("run pod %s/%s", cfg.Name.Namespace, cfg.Name.Name)
	id, err := m.flights.do(ctx, "pod"+string(key), what, m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		id, err := m.runPod(ctx, op, cfg)
		return string(id), err
	})
	return runtime.PodID(id), err
}

func (m *Manager) runPod(ctx context.Context, op *operation, cfg runtime.PodConfig) (runtime.PodID, error) {
	if err := m.knownHandler(cfg.Handler); err != nil {
		return "", err
	}
	if cfg.Namespaces.Network != runtime.NamespaceNode {
		if err := m.o.Network.Ready(); err != nil {
			return "", fmt.Errorf("%w: the network is not ready: %w", runtime.ErrUnavailable, err)
		}
	}
	cgroup, err := m.podCgroup(cfg, m.o.Systemd)
	if err != nil {
		return "", err
	}
	if old, ok := m.o.Ledger.PodByName(cfg.Name); ok {
		id, again, err := m.existingPod(ctx, old, cfg)
		if !again || err != nil {
			return id, err
		}
	}
	p := runtime.Pod{
		Version: runtime.RecordVersion, ID: runtime.PodID(newID()), Config: cfg,
		State: runtime.PodCreating, BootID: m.o.BootID, CreatedAt: time.Now().UnixNano(),
		Intents: podIntents(cfg), SystemdCgroups: m.o.Systemd,
	}
	if err := m.selinuxLevel(&p); err != nil {
		return "", err
	}
	if err := m.putPod(ctx, &p, cgroup); err != nil {
		m.releaseLevel(p.ID)
		return "", fmt.Errorf("record the pod: %w", err)
	}
	if err := m.makePod(ctx, op, &p); err != nil {
		return "", errors.Join(err, m.undoPodOrLater(ctx, p))
	}
	return p.ID, nil
}

// existingPod decides what a request for a name that is taken means; again is
// true when the name is free for a new pod.
func (m *Manager) existingPod(ctx context.Context, old runtime.Pod, cfg runtime.PodConfig) (id runtime.PodID, again bool, err error) {
	switch old.State {
	case runtime.PodReady:
		if !sameJSON(old.Config, cfg) {
			return "", false, fmt.Errorf("%w: pod %s has this name and attempt already, with another configuration", runtime.ErrInvalid, old.ID)
		}
		return old.ID, false, nil
	case runtime.PodNotReady:
		if len(m.o.Ledger.ContainersOf(old.ID)) == 0 {
			// Its monitor died before anybody used it, perhaps before its id
			// reached the client, whose retry this is.
			return "", true, m.undoPod(ctx, old)
		}
		return "", false, fmt.Errorf("%w: pod %s has this name and attempt already and is stopped: remove it, or raise the attempt", runtime.ErrState, old.ID)
	case runtime.PodCreating, runtime.PodRemoving:
		// What an earlier failure left. It never keeps the name: if it cannot be
		// cleaned now, the next reconcile pass or removal tries again.
		if err := m.undoWhole(ctx, old); err != nil {
			m.log.Warn("clean-up of an earlier pod of the same name failed", "pod", old.ID, "error", err)
		}
		return "", true, nil
	}
	return "", false, fmt.Errorf("%w: pod %s is %q", runtime.ErrState, old.ID, old.State)
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func podIntents(cfg runtime.PodConfig) []runtime.Intent {
	in := []runtime.Intent{runtime.IntentNamespaces}
	if cfg.Namespaces.Network != runtime.NamespaceNode {
		in = append(in, runtime.IntentNetwork)
	}
	if cfg.Namespaces.IPC != runtime.NamespaceNode {
		in = append(in, runtime.IntentShm)
	}
	return append(in, runtime.IntentMonitor)
}

// pinned lists the namespaces that the pod pins.
func pinned(cfg runtime.PodConfig) []string {
	var want []string
	if cfg.Namespaces.Network != runtime.NamespaceNode {
		want = append(want, "net", "uts")
	}
	if cfg.Namespaces.IPC != runtime.NamespaceNode {
		want = append(want, "ipc")
	}
	if cfg.Namespaces.User != nil {
		want = append(want, "user")
	}
	return want
}

// shmSize is the size of a pod's /dev/shm in bytes, the field's custom.
const shmSize = 64 << 20

// makePod makes all that the pod's intents announce and records the pod ready.
func (m *Manager) makePod(ctx context.Context, op *operation, p *runtime.Pod) error {
	mon, err := m.buildPod(ctx, op, p)
	if err != nil {
		return err
	}
	defer m.holdPlugins()()
	if err := m.podStep(ctx, StepPodRun, *p); err != nil {
		return err
	}
	return m.readyPod(ctx, p, mon)
}

// buildPod makes all that the pod's intents announce.
func (m *Manager) buildPod(ctx context.Context, op *operation, p *runtime.Pod) (Monitor, error) {
	dir := m.podDir(p.ID)
	for _, d := range []string{dir, m.nsDir(p.ID), filepath.Join(dir, "containers")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	mon, err := m.podBasis(ctx, op, p, dir)
	if err != nil {
		return nil, err
	}
	if err := m.podFiles(*p); err != nil {
		return nil, fmt.Errorf("write the pod's files: %w", err)
	}
	if err := m.labelPodFiles(ctx, *p); err != nil {
		return nil, err
	}
	if p.Config.Namespaces.PID == runtime.NamespacePod {
		if err := m.podPIDNamespace(ctx, mon, p); err != nil {
			return nil, err
		}
	}
	return mon, nil
}

// readyPod records the pod ready.
func (m *Manager) readyPod(ctx context.Context, p *runtime.Pod, mon Monitor) error {
	state, err := runtime.MovePod(p.State, runtime.PodReady)
	if err != nil {
		return err
	}
	ready := *p
	ready.State = state
	if err := m.o.Ledger.PutPod(ready); err != nil {
		return fmt.Errorf("record the pod: %w", err)
	}
	*p = ready
	// A monitor that died before the pod was ready was lost unheard.
	if _, err := m.o.Monitors.Connect(ctx, p.ID, m.podDir(p.ID)); err != nil {
		return err
	}
	m.mu.Lock()
	m.pods[p.ID] = mon
	m.mu.Unlock()
	return nil
}

// podBasis starts the monitor and makes namespaces and network: side by side,
// unless the pod's user namespace is to own a PID namespace that its containers
// share, which only the monitor can hold.
func (m *Manager) podBasis(ctx context.Context, op *operation, p *runtime.Pod, dir string) (Monitor, error) {
	var mon Monitor
	// While both run, *p belongs to podNetwork.
	parent, pid, start := m.cgroupParent(*p), 0, uint64(0)
	id, handler := p.ID, p.Config.Handler
	spawn := func(ctx context.Context) (err error) {
		defer op.enter(ctx, "monitor")()
		m.counters.started.Add(1)
		mon, pid, start, err = m.o.Monitors.Spawn(ctx, id, dir, handler, parent)
		if err != nil {
			return fmt.Errorf("start the pod's monitor: %w", err)
		}
		return nil
	}
	ns := p.Config.Namespaces
	if ns.User != nil && ns.PID == runtime.NamespacePod {
		if err := spawn(ctx); err != nil {
			return nil, err
		}
		p.MonitorPID, p.MonitorStart = pid, start
		holder, err := mon.PodNamespaces(ctx, *ns.User, pinned(p.Config))
		if err != nil {
			return nil, fmt.Errorf("make the pod's user and PID namespaces: %w", err)
		}
		return mon, m.podNetwork(ctx, op, p, holder)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return spawn(gctx) })
	g.Go(func() error { return m.podNetwork(gctx, op, p, 0) })
	err := g.Wait()
	p.MonitorPID, p.MonitorStart = pid, start
	return mon, err
}

// podNetwork makes namespaces, or pins those that holder is in, and attaches
// the pod to its network.
func (m *Manager) podNetwork(ctx context.Context, op *operation, p *runtime.Pod, holder int) error {
	cfg := p.Config
	if want := pinned(cfg); len(want) > 0 {
		end := op.enter(ctx, "namespaces")
		err := m.o.Namespaces.Pin(ctx, PinRequest{
			Dir: m.nsDir(p.ID), Want: want, Hostname: cfg.Hostname, Sysctls: cfg.Sysctls,
			User: cfg.Namespaces.User, Holder: holder,
		})
		end()
		if err != nil {
			return fmt.Errorf("make the pod's namespaces: %w", err)
		}
	} else if len(cfg.Sysctls) > 0 {
		return fmt.Errorf("%w: sysctls need a namespace of the pod's own, and it asks for the host's network and IPC", runtime.ErrInvalid)
	}
	if runtime.Has(p.Intents, runtime.IntentShm) {
		dir := m.shmDir(p.ID)
		if err := os.MkdirAll(dir, 0o1777); err != nil {
			return err
		}
		if err := m.o.MountShm(dir, shmSize); err != nil {
			return fmt.Errorf("mount the pod's /dev/shm: %w", err)
		}
		if err := giveTo(dir, cfg.Namespaces.User); err != nil {
			return err
		}
		if err := m.labelFor(ctx, *p, dir); err != nil {
			return err
		}
	}
	if runtime.Has(p.Intents, runtime.IntentNetwork) {
		add, end := op.within(ctx, "cni-add")
		ips, err := m.o.Network.Add(add, p.ID, cfg, filepath.Join(m.nsDir(p.ID), "net"))
		end(err)
		if err != nil {
			return fmt.Errorf("attach the pod to its network: %w", err)
		}
		p.IPs = ips
	}
	return nil
}

func (m *Manager) shmDir(id runtime.PodID) string { return filepath.Join(m.podDir(id), "shm") }

// podPIDNamespace pins the pod's shared PID namespace, which the monitor holds.
func (m *Manager) podPIDNamespace(ctx context.Context, mon Monitor, p *runtime.Pod) error {
	pid, err := mon.PIDNamespace(ctx)
	if err != nil {
		return fmt.Errorf("make the pod's shared PID namespace: %w", err)
	}
	pin := filepath.Join(m.nsDir(p.ID), "pid")
	f, err := os.OpenFile(pin, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/pid", pid), pin, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin the pod's PID namespace: %w", err)
	}
	return nil
}

// undoPod takes a pod that was never ready, or is being removed, out of the
// world and out of the ledger. On failure the record stays, as removing.
func (m *Manager) undoPod(ctx context.Context, p runtime.Pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	_, err := m.o.Ledger.ChangePod(p.ID, func(r *runtime.Pod) (err error) {
		if r.State == runtime.PodRemoving {
			return errAsItIs
		}
		// Its making learned it, and has not recorded it if it failed.
		r.MonitorPID, r.MonitorStart, r.IPs = p.MonitorPID, p.MonitorStart, p.IPs
		r.State, err = runtime.MovePod(r.State, runtime.PodRemoving)
		return err
	})
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		return nil // somebody else has finished it
	case err != nil && !errors.Is(err, errAsItIs):
		return fmt.Errorf("record the pod's removal: %w", err)
	}
	p.State = runtime.PodRemoving
	if err := m.detach(ctx, p); err != nil {
		return err
	}
	if err := m.dropMonitor(ctx, p); err != nil {
		return err
	}
	_ = m.podStep(ctx, StepPodRemove, p)
	if err := m.clearPodDir(p.ID); err != nil {
		return err
	}
	m.releaseLevel(p.ID)
	return m.removeCgroups(ctx, p)
}

// detach undoes network and namespaces; idempotent.
func (m *Manager) detach(ctx context.Context, p runtime.Pod) error {
	m.endForwards(p.ID)
	if runtime.Has(p.Intents, runtime.IntentNetwork) {
		if err := m.o.Network.Del(ctx, p.ID, p.Config, filepath.Join(m.nsDir(p.ID), "net")); err != nil {
			return fmt.Errorf("detach pod %s from its network: %w", p.ID, err)
		}
	}
	if err := m.o.Namespaces.Unpin(m.nsDir(p.ID)); err != nil {
		return fmt.Errorf("release the namespaces of pod %s: %w", p.ID, err)
	}
	return nil
}

// dropMonitor ends the monitor, dead, alive or hanging; idempotent. It holds no
// container any more, so that nothing is lost with it.
func (m *Manager) dropMonitor(ctx context.Context, p runtime.Pod) error {
	m.mu.Lock()
	mon := m.pods[p.ID]
	delete(m.pods, p.ID)
	delete(m.podReadings, p.ID)
	m.mu.Unlock()
	var err error
	ask, cancel := context.WithTimeout(ctx, m.o.AnswerTime)
	defer cancel()
	if mon == nil {
		mon, err = m.o.Monitors.Connect(ask, p.ID, m.podDir(p.ID))
	}
	if err == nil {
		err = mon.Shutdown(ask)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, runtime.ErrUnavailable) && ask.Err() == nil {
		return fmt.Errorf("end the monitor of pod %s: %w", p.ID, err)
	}
	return m.killMonitor(p)
}

// clearPodDir unmounts what is left below the pod's run directory and removes it.
func (m *Manager) clearPodDir(id runtime.PodID) error {
	if err := unmount(m.shmDir(id)); err != nil {
		return fmt.Errorf("unmount /dev/shm of pod %s: %w", id, err)
	}
	return removeAll(m.podDir(id))
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
