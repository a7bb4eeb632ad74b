package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
)

// CreateContainer makes a container in a ready pod and returns its id. It is
// idempotent by pod and cfg.Name, as RunPod is.
func (m *Manager) CreateContainer(ctx context.Context, pod runtime.PodID, cfg runtime.ContainerConfig) (runtime.ContainerID, error) {
	name, err := json.Marshal(cfg.Name)
	if err != nil {
		return "", fmt.Errorf("container name: %w", err)
	}
	what := fmt.Sprintf("create container %q in pod %s", cfg.Name.Name, pod)
	id, err := m.flights.do(ctx, "ctr"+string(pod)+string(name), what, m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		id, err := m.createContainer(ctx, op, pod, cfg)
		return string(id), err
	})
	return runtime.ContainerID(id), err
}

func (m *Manager) createContainer(ctx context.Context, op *operation, pod runtime.PodID, cfg runtime.ContainerConfig) (runtime.ContainerID, error) {
	p, err := m.o.Ledger.Pod(pod)
	if err != nil {
		return "", fmt.Errorf("pod %s: %w", pod, err)
	}
	if p.State != runtime.PodReady {
		return "", fmt.Errorf("%w: the pod is %s", runtime.ErrState, p.State)
	}
	end := op.enter(ctx, "image")
	img, err := m.o.Images.Resolve(ctx, cfg.ImageID)
	end()
	if err != nil {
		return "", fmt.Errorf("image %q: %w", cfg.Image, err)
	}
	cfg.ImageID = img.ID
	if old, ok := m.o.Ledger.ContainerByName(pod, cfg.Name); ok {
		id, again, err := m.existingContainer(ctx, old, cfg)
		if !again || err != nil {
			return id, err
		}
	}
	id := runtime.ContainerID(newID())
	c := runtime.Container{
		Version: runtime.RecordVersion, ID: id, PodID: pod, Config: cfg,
		State: runtime.ContainerCreating, CreatedAt: time.Now().UnixNano(),
		CgroupPath: m.containerCgroup(p, id),
		StopSignal: stopSignal(cfg, img),
		Intents:    []runtime.Intent{runtime.IntentRootfs, runtime.IntentBundle, runtime.IntentEngine},
	}
	if len(c.VolumeIDs()) > 0 {
		c.Intents = append(c.Intents, runtime.IntentVolumes)
	}
	if err := m.o.Ledger.PutContainer(c); err != nil {
		return "", fmt.Errorf("record the container: %w", err)
	}
	if err := m.makeContainer(ctx, op, p, &c, img); err != nil {
		return "", errors.Join(err, m.undoContainerOrLater(ctx, c))
	}
	return id, nil
}

func (m *Manager) existingContainer(ctx context.Context, old runtime.Container, cfg runtime.ContainerConfig) (id runtime.ContainerID, again bool, err error) {
	switch old.State {
	case runtime.ContainerCreated, runtime.ContainerRunning, runtime.ContainerExited:
		if old.State == runtime.ContainerExited && old.StartedAt == 0 {
			return "", true, m.undoContainer(ctx, old) // it died before anybody used it
		}
		if !sameJSON(old.Config, cfg) {
			return "", false, fmt.Errorf("%w: container %s has this name and attempt already, with another configuration", runtime.ErrInvalid, old.ID)
		}
		return old.ID, false, nil
	case runtime.ContainerCreating, runtime.ContainerRemoving:
		if err := m.undoContainer(ctx, old); err != nil {
			m.log.Warn("clean-up of an earlier container of the same name failed", "container", old.ID, "error", err)
		}
		return "", true, nil
	}
	return "", false, fmt.Errorf("%w: container %s is %q", runtime.ErrState, old.ID, old.State)
}

// makeContainer makes what the intents announce and records the container created.
func (m *Manager) makeContainer(ctx context.Context, op *operation, p runtime.Pod, c *runtime.Container, img runtime.ImageConfig) error {
	end := op.enter(ctx, "rootfs")
	root, err := m.prepareRoot(ctx, p, c, img)
	end()
	if err != nil {
		return err
	}
	defer m.holdPlugins()()
	end = op.enter(ctx, "spec")
	err = m.writeBundle(ctx, op, p, c, img, root)
	end()
	if err != nil {
		return err
	}
	mon, err := m.monitor(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("the pod's monitor: %w", err)
	}
	create, ended := op.within(ctx, "engine-create")
	c.PID, err = mon.Create(create, CreateRequest{
		ID: c.ID, Bundle: m.bundle(c), LogPath: c.Config.LogPath, TTY: c.Config.TTY,
		Stdin: c.Config.Stdin, StdinOnce: c.Config.StdinOnce, CgroupPath: c.CgroupPath,
	})
	ended(err)
	if err != nil {
		return err
	}
	created := *c
	if created.State, err = runtime.MoveContainer(c.State, runtime.ContainerCreated); err != nil {
		return err
	}
	if err := m.o.Ledger.PutContainer(created); err != nil {
		return fmt.Errorf("record the container: %w", err)
	}
	*c = created
	m.liveOf(c.ID)
	_ = m.containerStep(ctx, StepCreated, created)
	go m.watch(mon, c.ID) //nolint:contextcheck // outlives the call
	return nil
}

// writeBundle resolves all outside facts, builds the OCI spec and writes it.
func (m *Manager) writeBundle(ctx context.Context, op *operation, p runtime.Pod, c *runtime.Container, img runtime.ImageConfig, root rootFS) error {
	mounts, err := m.mounts(ctx, op, p, c)
	if err != nil {
		return err
	}
	user, home, err := spec.ResolveUser(root.path, img, c.Config.Security)
	if err != nil {
		return err
	}
	c.User = &user
	in, err := m.specInput(p, c, img, root.path)
	if err != nil {
		return err
	}
	in.Home = home
	in.Container.Mounts = mounts
	if err := m.confine(ctx, c, &in); err != nil {
		return err
	}
	s, err := spec.Build(in)
	if err != nil {
		return err
	}
	if err := m.relabel(ctx, c, s.Linux.MountLabel); err != nil {
		return err
	}
	if err := m.adjust(ctx, op, p, c, s); err != nil {
		return err
	}
	if err := m.settleRoot(ctx, p, c, root, s); err != nil {
		return err
	}
	b, err := spec.Marshal(s)
	if err != nil {
		return err
	}
	dir := m.bundle(c)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if c.Config.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.Config.LogPath), 0o755); err != nil {
			return fmt.Errorf("make the log directory: %w", err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
}

func (m *Manager) specInput(p runtime.Pod, c *runtime.Container, img runtime.ImageConfig, root string) (spec.Input, error) {
	dir := m.podDir(p.ID)
	in := spec.Input{
		Pod: p, Container: c.Config, ContainerID: c.ID, Image: img, User: *c.User, RootPath: root,
		CgroupPath: engineCgroup(c.CgroupPath), Namespaces: map[string]string{}, Hostname: p.Config.Hostname,
		HostsPath:    filepath.Join(dir, "hosts"),
		HostnamePath: filepath.Join(dir, "hostname"),
		ResolvPath:   filepath.Join(dir, "resolv.conf"),
		DaemonCaps:   m.o.DaemonCaps, MinOOMScore: m.o.MinOOMScore, CgroupV2: m.o.CgroupV2,
	}
	for _, n := range pinned(p.Config) {
		in.Namespaces[n] = filepath.Join(m.nsDir(p.ID), n)
	}
	if p.Config.Namespaces.IPC != runtime.NamespaceNode {
		in.ShmPath = m.shmDir(p.ID)
	}
	ns := c.Config.Security.Namespaces
	switch ns.PID {
	case runtime.NamespacePod:
		pin := filepath.Join(m.nsDir(p.ID), "pid")
		if _, err := os.Lstat(pin); err != nil {
			return in, fmt.Errorf("%w: the container asks for the pod's PID namespace, and the pod was made without one", runtime.ErrInvalid)
		}
		in.Namespaces["pid"] = pin
	case runtime.NamespaceTarget:
		t, err := m.o.Ledger.Container(ns.Target)
		if err != nil || t.PodID != p.ID || t.State != runtime.ContainerRunning {
			return in, fmt.Errorf("%w: target container %q is not a running container of this pod", runtime.ErrInvalid, ns.Target)
		}
		in.Namespaces["pid"] = fmt.Sprintf("/proc/%d/ns/pid", t.PID)
	case runtime.NamespaceContainer, runtime.NamespaceNode:
	}
	var err error
	if in.HostDevices, err = spec.Devices(c.Config.Devices); err != nil {
		return in, err
	}
	if hides := m.o.Extensions.HidesHostDevices; hides != nil {
		in.HideHostDevices = hides(p.Config.Handler)
	}
	if c.Config.Security.Privileged && !in.HideHostDevices {
		if in.AllDevices, err = spec.HostDevices(); err != nil {
			return in, err
		}
	}
	in.SeccompFile, err = m.seccompFile(c.Config.Security)
	return in, err
}

func (m *Manager) seccompFile(s runtime.Security) ([]byte, error) {
	if s.Seccomp != runtime.SeccompLocalhost {
		return nil, nil
	}
	file := s.SeccompPath
	if !filepath.IsAbs(file) {
		if m.o.SeccompRoot == "" {
			return nil, fmt.Errorf("%w: seccomp profile %q is a relative path and no profile root is configured", runtime.ErrInvalid, file)
		}
		file = filepath.Join(m.o.SeccompRoot, filepath.Clean("/"+file))
	}
	b, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("%w: seccomp profile: %w", runtime.ErrInvalid, err)
	}
	return b, nil
}

// undoContainer takes a container that was never created, or is being removed,
// out of the world and out of the ledger. On failure the record stays.
func (m *Manager) undoContainer(ctx context.Context, c runtime.Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	now, err := m.o.Ledger.ChangeContainer(c.ID, func(c *runtime.Container) (err error) {
		if c.State == runtime.ContainerRemoving {
			return errAsItIs
		}
		c.State, err = runtime.MoveContainer(c.State, runtime.ContainerRemoving)
		return err
	})
	switch {
	case err == nil:
		c = now
	case errors.Is(err, runtime.ErrNotFound):
		return nil // somebody else has finished it
	case !errors.Is(err, errAsItIs):
		return fmt.Errorf("record the container's removal: %w", err)
	}
	if err := m.undoEngine(ctx, c); err != nil {
		return fmt.Errorf("delete container %s from its runtime: %w", c.ID, err)
	}
	_ = m.containerStep(ctx, StepRemove, c)
	for _, id := range append(c.VolumeIDs(), string(c.ID)) {
		if err := m.o.Images.Release(ctx, id); err != nil {
			return fmt.Errorf("release a root file system of container %s: %w", c.ID, err)
		}
	}
	if err := m.dropRestore(c); err != nil {
		return err
	}
	if err := removeAll(m.bundle(&c)); err != nil {
		return err
	}
	if err := m.o.Ledger.DeleteContainer(c.ID); err != nil {
		return err
	}
	m.forget(c.ID)
	return nil
}

// undoEngine deletes runtime state, cgroup and processes, through the monitor
// or, when that is dead, without it.
func (m *Manager) undoEngine(ctx context.Context, c runtime.Container) error {
	mon, err := m.monitor(ctx, c.PodID)
	if err == nil {
		err = mon.Delete(ctx, c.ID)
	}
	if err == nil || !errors.Is(err, runtime.ErrUnavailable) {
		return err
	}
	p, err := m.o.Ledger.Pod(c.PodID)
	if err != nil {
		return err
	}
	_, err = m.o.Monitors.Orphan(ctx, p.ID, m.podDir(p.ID), p.Config.Handler, []OrphanContainer{{ID: c.ID, CgroupPath: c.CgroupPath}})
	return err
}

// StartContainer starts a created container. Idempotent while it runs.
func (m *Manager) StartContainer(ctx context.Context, id runtime.ContainerID) error {
	_, err := m.flights.do(ctx, "start "+string(id), "start container "+string(id), m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		return "", m.startContainer(ctx, op, id)
	})
	return err
}

func (m *Manager) startContainer(ctx context.Context, op *operation, id runtime.ContainerID) error {
	done, err := m.ctrTurn.take(ctx, string(id))
	if err != nil {
		return err
	}
	defer done()
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return err
	}
	if c.State == runtime.ContainerRunning {
		return nil
	}
	if c.State != runtime.ContainerCreated {
		return fmt.Errorf("%w: container %s is %s", runtime.ErrState, id, c.State)
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return err
	}
	if err := m.containerStep(ctx, StepStart, c); err != nil {
		return err
	}
	start, end := op.within(ctx, "engine-start")
	restored := runtime.Has(c.Intents, runtime.IntentRestore)
	if restored {
		err = m.startRestored(start, mon, &c)
	} else {
		err = mon.Start(start, id)
	}
	end(err)
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	pid, intents := c.PID, c.Intents // a restore has changed them
	c, err = m.o.Ledger.ChangeContainer(id, func(c *runtime.Container) (err error) {
		c.StartedAt, c.PID, c.Intents = time.Now().UnixNano(), pid, intents
		c.State, err = runtime.MoveContainer(c.State, runtime.ContainerRunning)
		return err
	})
	if err != nil {
		return err
	}
	if restored {
		m.afterRestore(mon, c) //nolint:contextcheck // outlives the call
	}
	if m.o.UpperDir != nil {
		// So that the first question after its size has an answer.
		m.uppers.want(&m.liveOf(id).upper, m.o.UpperDir(string(id)), 0)
	}
	return m.containerStep(ctx, StepStarted, c)
}
