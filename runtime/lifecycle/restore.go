package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/checkpoint"
	"github.com/ocid-io/ocid/runtime/spec"
)

// RestorePod makes a pod with containers that StartContainer will start from
// the checkpoint. It is idempotent by the pod's name, as RunPod is; when it
// fails nothing is left of it.
func (m *Manager) RestorePod(ctx context.Context, r runtime.RestoreRequest) (runtime.PodID, []runtime.Restored, error) {
	key, err := json.Marshal(r.Config.Name)
	if err != nil {
		return "", nil, fmt.Errorf("pod name: %w", err)
	}
	what := fmt.Sprintf("restore pod %s/%s", r.Config.Name.Namespace, r.Config.Name.Name)
	// Unlike others, it ends with its caller, who is to find nothing of it then,
	// and is answered when that is so.
	caller := ctx
	id, err := m.flights.do(context.WithoutCancel(ctx), "pod"+string(key), what, m.o.OperationTime, func(ctx context.Context, op *operation) (string, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(caller, func() { cancel(context.Cause(caller)) })()
		id, err := m.restorePod(ctx, op, r)
		return string(id), err
	})
	if err != nil {
		return "", nil, err
	}
	// A RunPod of the same name may be what was joined.
	cs, err := m.restored(runtime.PodID(id), r)
	return runtime.PodID(id), cs, err
}

// restored lists the containers of a pod that r has made.
func (m *Manager) restored(id runtime.PodID, r runtime.RestoreRequest) ([]runtime.Restored, error) {
	have := m.o.Ledger.ContainersOf(id)
	var out []runtime.Restored
	for _, cfg := range r.Containers {
		for _, c := range have {
			if c.Config.Name == cfg.Name && c.State == runtime.ContainerCreated && runtime.Has(c.Intents, runtime.IntentRestore) {
				if !sameJSON(c.Config, cfg) {
					return nil, fmt.Errorf("%w: pod %s has this name and attempt already, and container %q in it another configuration", runtime.ErrInvalid, id, cfg.Name.Name)
				}
				out = append(out, runtime.Restored{Name: cfg.Name.Name, ID: c.ID})
			}
		}
	}
	if len(out) != len(r.Containers) || len(have) != len(out) {
		return nil, fmt.Errorf("%w: pod %s has this name and attempt already, and is not a restored one whose containers have not been started", runtime.ErrState, id)
	}
	return out, nil
}

func (m *Manager) restorePod(ctx context.Context, op *operation, r runtime.RestoreRequest) (runtime.PodID, error) {
	if m.o.CheckpointDir == "" {
		return "", fmt.Errorf("%w: this daemon has no place for checkpoints", runtime.ErrState)
	}
	if err := m.knownHandler(r.Config.Handler); err != nil {
		return "", err
	}
	if r.Config.Namespaces.Network != runtime.NamespaceNode {
		if err := m.o.Network.Ready(); err != nil {
			return "", fmt.Errorf("%w: the network is not ready: %w", runtime.ErrUnavailable, err)
		}
	}
	cgroup, err := m.podCgroup(r.Config, m.o.Systemd)
	if err != nil {
		return "", err
	}
	if old, ok := m.o.Ledger.PodByName(r.Config.Name); ok {
		id, again, err := m.existingPod(ctx, old, r.Config)
		if !again || err != nil {
			return id, err
		}
	}
	src, err := openCheckpoint(r)
	if err != nil {
		return "", refused(err)
	}
	defer src.root.Close()
	imgs, err := m.restoreImages(ctx, op, &r)
	if err != nil {
		return "", err
	}
	p := runtime.Pod{
		Version: runtime.RecordVersion, ID: runtime.PodID(newID()), Config: r.Config,
		State: runtime.PodCreating, BootID: m.o.BootID, CreatedAt: time.Now().UnixNano(),
		Intents: podIntents(r.Config), SystemdCgroups: m.o.Systemd,
	}
	if err := m.selinuxLevel(&p); err != nil {
		return "", err
	}
	if err := m.putPod(ctx, &p, cgroup); err != nil {
		m.releaseLevel(p.ID)
		return "", fmt.Errorf("record the pod: %w", err)
	}
	if err := m.makeRestored(ctx, op, &p, r, src, imgs); err != nil {
		return "", errors.Join(refused(err), m.undoRestored(ctx, p))
	}
	return p.ID, nil
}

// refused says in the runtime's words that a checkpoint cannot be used.
func refused(err error) error {
	if errors.Is(err, checkpoint.ErrHostile) {
		return fmt.Errorf("%w: the checkpoint cannot be restored here: %w", runtime.ErrInvalid, err)
	}
	return err
}

func (m *Manager) restoreImages(ctx context.Context, op *operation, r *runtime.RestoreRequest) ([]runtime.ImageConfig, error) {
	defer op.enter(ctx, "image")()
	imgs := make([]runtime.ImageConfig, len(r.Containers))
	for i := range r.Containers {
		c := &r.Containers[i]
		if why := unrestorable(r.Config, *c); why != "" {
			return nil, fmt.Errorf("%w: container %q: %s: that cannot be restored", runtime.ErrInvalid, c.Name.Name, why)
		}
		img, err := m.o.Images.Resolve(ctx, c.ImageID)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", c.Image, err)
		}
		c.ImageID, imgs[i] = img.ID, img
	}
	return imgs, nil
}

// source is an open checkpoint of a pod.
type source struct {
	root *os.Root
	pod  *checkpoint.Pod
}

func openCheckpoint(r runtime.RestoreRequest) (*source, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, fmt.Errorf("%w: %q is no absolute path", runtime.ErrInvalid, r.Path)
	}
	outer, err := os.OpenRoot(r.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: checkpoint: %w", runtime.ErrInvalid, err)
	}
	defer outer.Close()
	root, err := outer.OpenRoot(podSubdir)
	if err != nil {
		return nil, fmt.Errorf("%w: there is no checkpoint of a pod in %s: %w", runtime.ErrInvalid, r.Path, err)
	}
	s := &source{root: root}
	if s.pod, err = s.describe(); err == nil {
		err = s.matches(r)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

func (s *source) describe() (*checkpoint.Pod, error) {
	f, err := openRegular(s.root, checkpoint.PodFile)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, checkpoint.DefaultLimits().Document))
	if err != nil {
		return nil, err
	}
	return checkpoint.ReadPod(b)
}

// openRegular opens a file of the checkpoint; a FIFO in its place does not hold
// the daemon up, a link out of the directory leads nowhere.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", runtime.ErrInvalid, err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%w: %s of the checkpoint is no regular file", runtime.ErrInvalid, name)
	}
	return f, nil
}

// matches compares what the checkpoint says of itself with the request.
func (s *source) matches(r runtime.RestoreRequest) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{runtime.ErrInvalid}, a...)...)
	}
	switch p := s.pod; {
	case p.Architecture != goruntime.GOARCH:
		return bad("the checkpoint is of a machine of architecture %.40q, and this is %s", p.Architecture, goruntime.GOARCH)
	case p.Handler != r.Config.Handler:
		return bad("the checkpoint is of runtime handler %.80q, and %q is asked for", p.Handler, r.Config.Handler)
	case p.SharedPID != (r.Config.Namespaces.PID == runtime.NamespacePod):
		return bad("the checkpoint and the pod differ in sharing the PID namespace")
	case p.TCPEstablished && !r.Options.TCPEstablished:
		return bad("the checkpoint has TCP connections, and the option %q is not set", "tcp-established")
	case len(p.Containers) != len(r.Containers):
		return bad("the checkpoint has %d containers, and %d are asked for", len(p.Containers), len(r.Containers))
	}
	for _, c := range r.Containers {
		if _, err := s.file(c.Name.Name); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) file(name string) (string, error) {
	for _, c := range s.pod.Containers {
		if c.Name == name {
			return c.File, nil
		}
	}
	return "", fmt.Errorf("%w: the checkpoint has no container %q", runtime.ErrInvalid, name)
}

// makeRestored records, unpacks and makes the containers and the pod. The pod
// is recorded ready last: until then a crash means that all of it is undone.
func (m *Manager) makeRestored(ctx context.Context, op *operation, p *runtime.Pod, r runtime.RestoreRequest, src *source, imgs []runtime.ImageConfig) error {
	cs := make([]runtime.Container, len(r.Containers))
	contents := make([]*checkpoint.Content, len(cs))
	end := op.enter(ctx, "unpack")
	defer end()
	for i, cfg := range r.Containers {
		id := runtime.ContainerID(newID())
		cs[i] = runtime.Container{
			Version: runtime.RecordVersion, ID: id, PodID: p.ID, Config: cfg,
			State: runtime.ContainerCreating, CreatedAt: time.Now().UnixNano(),
			CgroupPath: m.containerCgroup(*p, id), StopSignal: stopSignal(cfg, imgs[i]),
			Intents: []runtime.Intent{runtime.IntentRestore, runtime.IntentRootfs, runtime.IntentBundle, runtime.IntentEngine},
		}
		if len(cs[i].VolumeIDs()) > 0 {
			cs[i].Intents = append(cs[i].Intents, runtime.IntentVolumes)
		}
		if err := m.o.Ledger.PutContainer(cs[i]); err != nil {
			return fmt.Errorf("record the container: %w", err)
		}
		var err error
		if contents[i], err = m.unpack(ctx, src, &cs[i], r.Options); err != nil {
			return fmt.Errorf("container %q: %w", cfg.Name.Name, err)
		}
	}
	mon, err := m.buildPod(ctx, op, p)
	if err != nil {
		return err
	}
	defer m.holdPlugins()()
	if err := m.podStep(ctx, StepPodRun, *p); err != nil {
		return err
	}
	for i := range cs {
		if err := m.makeUnstarted(ctx, op, *p, &cs[i], imgs[i], contents[i]); err != nil {
			return fmt.Errorf("container %q: %w", cs[i].Config.Name.Name, err)
		}
	}
	return m.readyPod(ctx, p, mon)
}

func (m *Manager) restoreDir(id runtime.ContainerID) string {
	return filepath.Join(m.o.CheckpointDir, "restore", string(id))
}

// optionsFile keeps, beside the images, what StartContainer needs to know.
const optionsFile = "options.json"

// unpack copies a container's archive into a directory of ours: the client may
// change or remove its own at any time.
func (m *Manager) unpack(ctx context.Context, src *source, c *runtime.Container, o runtime.CheckpointOptions) (*checkpoint.Content, error) {
	name, err := src.file(c.Config.Name.Name)
	if err != nil {
		return nil, err
	}
	f, err := openRegular(src.root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dir := m.restoreDir(c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	content, err := checkpoint.Extract(ctx, f, root, checkpoint.DefaultLimits())
	if err != nil {
		return nil, err
	}
	b, err := root.ReadFile(checkpoint.ImagesDir + "/" + checkpoint.Descriptors)
	if err != nil {
		return nil, err
	}
	if err := checkpoint.ReadDescriptors(b); err != nil {
		return nil, err
	}
	if b, err = json.Marshal(o); err != nil {
		return nil, err
	}
	return content, atomicfile.Write(filepath.Join(dir, optionsFile), b, 0o600)
}

// makeUnstarted makes root file system and bundle of a container, and records
// it created. Its OCI spec comes from the request; that of the archive is
// compared with it, and used for nothing.
func (m *Manager) makeUnstarted(ctx context.Context, op *operation, p runtime.Pod, c *runtime.Container, img runtime.ImageConfig, content *checkpoint.Content) error {
	defer op.enter(ctx, "rootfs")()
	// Writable, even for a container to which it is not: the checkpoint's files
	// have to get in.
	root, err := m.prepare(ctx, p, c, false)
	if err != nil {
		return fmt.Errorf("prepare the root file system: %w", err)
	}
	// The user's name has the meaning that the image gives it, whatever the
	// checkpoint makes of its files.
	user, _, err := spec.ResolveUser(root, img, c.Config.Security)
	if err != nil {
		return err
	}
	if err := m.writeBundle(ctx, op, p, c, img, rootFS{path: root}); err != nil {
		return err
	}
	if err := m.judge(*c, img, content); err != nil {
		return err
	}
	diff, err := os.Open(filepath.Join(m.restoreDir(c.ID), checkpoint.DiffFile))
	if err != nil {
		return err
	}
	defer diff.Close()
	policy := checkpoint.Policy{Limits: checkpoint.DefaultLimits(), Root: user.UID == 0}
	if err := checkpoint.Apply(ctx, diff, content.Deleted, root, policy); err != nil {
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
	return nil
}

// undoRestored takes a half-restored pod out of the world, now or later.
func (m *Manager) undoRestored(ctx context.Context, p runtime.Pod) error {
	err := m.undoWhole(ctx, p)
	if err != nil {
		m.later("pod "+string(p.ID), err, func(ctx context.Context) error { return m.undoWhole(ctx, p) }) //nolint:contextcheck // outlives the call
	}
	return err
}

// undoWhole is undoPod with the containers, of which none has run.
func (m *Manager) undoWhole(ctx context.Context, p runtime.Pod) error {
	for _, c := range m.o.Ledger.ContainersOf(p.ID) {
		if err := m.undoContainer(ctx, c); err != nil {
			return err
		}
	}
	p, err := m.o.Ledger.Pod(p.ID)
	if err != nil {
		return err
	}
	return m.undoPod(ctx, p)
}

// startRestored lets the processes of a checkpoint run as container c, and
// notes in c that it needs the checkpoint no more.
func (m *Manager) startRestored(ctx context.Context, mon Monitor, c *runtime.Container) error {
	cp, ok := mon.(Checkpointer)
	if !ok {
		return fmt.Errorf("%w: this monitor knows no checkpoints", runtime.ErrState)
	}
	dir := m.restoreDir(c.ID)
	b, err := os.ReadFile(filepath.Join(dir, optionsFile))
	if err != nil {
		return fmt.Errorf("the container's checkpoint: %w", err)
	}
	var o runtime.CheckpointOptions
	if err := json.Unmarshal(b, &o); err != nil {
		return fmt.Errorf("the container's checkpoint: %w", err)
	}
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	c.PID, err = cp.Restore(ctx, RestoreRequest{
		CreateRequest: CreateRequest{
			ID: c.ID, Bundle: m.bundle(c), LogPath: c.Config.LogPath, TTY: c.Config.TTY,
			Stdin: c.Config.Stdin, StdinOnce: c.Config.StdinOnce, CgroupPath: c.CgroupPath,
		},
		Images: filepath.Join(dir, checkpoint.ImagesDir), Work: work, TCPEstablished: o.TCPEstablished, Limit: m.o.OperationTime,
	})
	if err != nil {
		return err
	}
	c.Intents = without(c.Intents, runtime.IntentRestore)
	return nil
}

// afterRestore watches a restored container and drops what it started from.
func (m *Manager) afterRestore(mon Monitor, c runtime.Container) {
	m.liveOf(c.ID)
	go m.watch(mon, c.ID)
	if err := removeAll(m.restoreDir(c.ID)); err != nil {
		m.log.Warn("files of a checkpoint are left until the container is removed", "container", c.ID, "error", err)
	}
}

// dropRestore removes what a container was, or would have been, started from.
func (m *Manager) dropRestore(c runtime.Container) error {
	if m.o.CheckpointDir == "" {
		return nil
	}
	return removeAll(m.restoreDir(c.ID))
}

// stopUnrestored ends a container that no process was ever restored for.
func (m *Manager) stopUnrestored(ctx context.Context, c runtime.Container) (done bool, err error) {
	if !runtime.Has(c.Intents, runtime.IntentRestore) {
		return false, nil
	}
	free, err := m.ctrTurn.take(ctx, string(c.ID))
	if err != nil {
		return false, err
	}
	defer free()
	now, err := m.o.Ledger.Container(c.ID)
	if err != nil || now.State != runtime.ContainerCreated || !runtime.Has(now.Intents, runtime.IntentRestore) {
		return false, err
	}
	m.exited(ctx, now.ID, Exit{Code: 137, FinishedAt: time.Now().UnixNano()})
	return true, nil
}

// reconcileRestore settles a container that starts from a checkpoint; false if
// that is all there is to do.
func (m *Manager) reconcileRestore(c *runtime.Container, s ContainerStatus, held bool) bool {
	if c.State != runtime.ContainerCreated || !runtime.Has(c.Intents, runtime.IntentRestore) {
		return true
	}
	if !held {
		m.liveOf(c.ID) // it waits for its start, as it did
		return false
	}
	// The daemon died between the start and its record.
	c.PID = s.PID
	c.Intents = without(c.Intents, runtime.IntentRestore)
	if err := removeAll(m.restoreDir(c.ID)); err != nil {
		m.log.Warn("files of a checkpoint are left until the container is removed", "container", c.ID, "error", err)
	}
	return true
}
