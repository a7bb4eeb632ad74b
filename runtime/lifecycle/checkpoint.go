package lifecycle

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/checkpoint"
)

const (
	// checkpointTime bounds a checkpoint whose caller sets no limit.
	checkpointTime = 2 * time.Minute
	// podSubdir is where a pod's checkpoint is in the client's directory.
	podSubdir = "checkpoint"

	tempPrefix, tempSuffix = ".ocid-checkpoint-", ".tmp"
	besideFile             = "beside"
)

// CheckpointContainer writes an archive of a running container, which runs on.
// The archive is at location in whole or not at all.
func (m *Manager) CheckpointContainer(ctx context.Context, id runtime.ContainerID, location string, timeout time.Duration) error {
	if timeout <= 0 {
		timeout = checkpointTime
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: the checkpoint took longer than %s", runtime.ErrTimeout, timeout))
	defer cancel()
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return err
	}
	dir, base := filepath.Split(location)
	if !filepath.IsAbs(location) || base == "" || filepath.Clean(location) != location {
		return fmt.Errorf("%w: location %q is no absolute path of a file", runtime.ErrInvalid, location)
	}
	out, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("%w: directory of the location: %w", runtime.ErrInvalid, err)
	}
	defer out.Close()
	if st, err := out.Lstat(base); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is there and is no regular file", runtime.ErrInvalid, location)
	}
	done, err := m.podTurn.take(ctx, "checkpoint "+string(c.PodID))
	if err != nil {
		return context.Cause(ctx)
	}
	defer done()
	w, err := m.newCapture(dir)
	if err != nil {
		return err
	}
	defer w.close()
	// Connections are kept: what a container looks like is what is asked for,
	// and most have some.
	if err := w.capture(ctx, c.PodID, []runtime.Container{c}, true); err != nil {
		return err
	}
	f, err := out.OpenFile(w.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := w.archive(ctx, f, c); err != nil {
		return err
	}
	if err := out.Rename(w.temp, base); err != nil {
		return err
	}
	return atomicfile.SyncDir(dir)
}

// CheckpointPod writes a checkpoint of the containers, cut at one instant, into
// the existing and empty directory. They run on.
func (m *Manager) CheckpointPod(ctx context.Context, id runtime.PodID, dir string, ids []runtime.ContainerID, o runtime.CheckpointOptions) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.o.OperationTime)
		defer cancel()
	}
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return err
	}
	if p.State != runtime.PodReady {
		return fmt.Errorf("%w: the pod is %s", runtime.ErrState, p.State)
	}
	cs, err := m.selected(id, ids)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if why := unrestorable(p.Config, c.Config); why != "" {
			return fmt.Errorf("%w: container %s: %s: that cannot be restored", runtime.ErrState, c.ID, why)
		}
	}
	out, err := emptyDir(dir)
	if err != nil {
		return err
	}
	defer out.Close()
	done, err := m.podTurn.take(ctx, "checkpoint "+string(id))
	if err != nil {
		return context.Cause(ctx)
	}
	defer done()
	w, err := m.newCapture(dir)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.capture(ctx, id, cs, o.TCPEstablished); err != nil {
		return err
	}
	if err := w.pod(ctx, out, p, cs, o); err != nil {
		return err
	}
	if err := out.Rename(w.temp, podSubdir); err != nil {
		return err
	}
	return atomicfile.SyncDir(dir)
}

// selected checks the client's choice of containers.
func (m *Manager) selected(pod runtime.PodID, ids []runtime.ContainerID) ([]runtime.Container, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("%w: no containers were chosen", runtime.ErrInvalid)
	}
	names := map[string]bool{}
	var cs []runtime.Container
	for _, id := range ids {
		c, err := m.o.Ledger.Container(id)
		if err != nil {
			return nil, err
		}
		if c.PodID != pod {
			return nil, fmt.Errorf("%w: container %s is not one of pod %s", runtime.ErrInvalid, id, pod)
		}
		n := c.Config.Name.Name
		if names[n] || !checkpoint.GoodName(n) {
			return nil, fmt.Errorf("%w: container %q is chosen twice, or its name cannot be that of a file", runtime.ErrInvalid, n)
		}
		names[n] = true
		cs = append(cs, c)
	}
	return cs, nil
}

func emptyDir(dir string) (*os.Root, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: %q is no absolute path", runtime.ErrInvalid, dir)
	}
	out, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: directory for the checkpoint: %w", runtime.ErrInvalid, err)
	}
	f, err := out.Open(".")
	if err == nil {
		_, err = f.ReadDir(1)
		f.Close()
	}
	if errors.Is(err, io.EOF) {
		return out, nil
	}
	out.Close()
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: the directory %s is not empty", runtime.ErrInvalid, dir)
}

// capturable refuses what criu, or a later restore, cannot do.
func (m *Manager) capturable(c runtime.Container) error {
	if c.State != runtime.ContainerRunning {
		return fmt.Errorf("%w: container %s is %s", runtime.ErrState, c.ID, c.State)
	}
	p, err := m.o.Ledger.Pod(c.PodID)
	if err != nil {
		return err
	}
	if why := uncapturable(p.Config, c.Config); why != "" {
		return fmt.Errorf("%w: container %s: %s: that cannot be checkpointed", runtime.ErrState, c.ID, why)
	}
	return nil
}

// uncapturable says what about a container stands in the way, "" if nothing does.
func uncapturable(p runtime.PodConfig, c runtime.ContainerConfig) string {
	switch ns := c.Security.Namespaces; {
	case p.Namespaces.User != nil || ns.User != nil:
		return "it has a user namespace"
	case ns.PID == runtime.NamespaceNode:
		return "it has the host's PID namespace"
	case ns.PID == runtime.NamespaceTarget:
		return "it has another container's PID namespace"
	}
	for _, mt := range c.Mounts {
		if mt.Propagation != "" && mt.Propagation != runtime.PropagationPrivate {
			return fmt.Sprintf("mount %q has propagation %s", mt.ContainerPath, mt.Propagation)
		}
	}
	return ""
}

// unrestorable is uncapturable for what is to run again in another pod.
func unrestorable(p runtime.PodConfig, c runtime.ContainerConfig) string {
	if p.Namespaces.PID == runtime.NamespacePod || c.Security.Namespaces.PID == runtime.NamespacePod {
		return "it shares the pod's PID namespace, where its process numbers may be taken"
	}
	return uncapturable(p, c)
}

// capture is a checkpoint under way: a directory of its own, and the name of
// the one file or directory that it makes beside the result.
type capture struct {
	m    *Manager
	dir  string
	root *os.Root
	out  string // the client's directory
	temp string
	at   time.Time
	tcp  bool
}

// newCapture records where it will write before it writes anything.
func (m *Manager) newCapture(out string) (*capture, error) {
	if m.o.CheckpointDir == "" || m.o.UpperDir == nil {
		return nil, fmt.Errorf("%w: this daemon has no place for checkpoints", runtime.ErrState)
	}
	id := newID()[:16]
	w := &capture{m: m, dir: filepath.Join(m.o.CheckpointDir, "capture", id), out: filepath.Clean(out), temp: tempPrefix + id + tempSuffix}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, err
	}
	if err := atomicfile.WriteSync(filepath.Join(w.dir, besideFile), []byte(filepath.Join(w.out, w.temp)), 0o600); err != nil {
		return nil, errors.Join(err, removeAll(w.dir))
	}
	var err error
	w.root, err = os.OpenRoot(w.dir)
	return w, err
}

// close leaves nothing of it. Idempotent.
func (w *capture) close() {
	if w.root != nil {
		w.root.Close()
	}
	if err := errors.Join(removeAll(filepath.Join(w.out, w.temp)), removeAll(w.dir)); err != nil {
		w.m.log.Warn("files of a checkpoint are left; the next start removes them", "dir", w.dir, "error", err)
	}
}

// capture stops the containers together, has their processes written, reads
// their files, and lets them run again.
func (w *capture) capture(ctx context.Context, pod runtime.PodID, cs []runtime.Container, tcp bool) error {
	deadline, _ := ctx.Deadline()
	r := CheckpointRequest{TCPEstablished: tcp, Limit: time.Until(deadline)}
	w.at, w.tcp = time.Now(), tcp
	for _, c := range cs {
		if err := w.m.capturable(c); err != nil {
			return err
		}
		d := CheckpointDirs{ID: c.ID, Work: filepath.Join(w.dir, string(c.ID))}
		d.Images = filepath.Join(d.Work, checkpoint.ImagesDir)
		if err := os.MkdirAll(d.Images, 0o700); err != nil {
			return err
		}
		r.Containers = append(r.Containers, d)
	}
	mon, err := w.m.monitor(ctx, pod)
	if err != nil {
		return err
	}
	cp, ok := mon.(Checkpointer)
	if !ok {
		return fmt.Errorf("%w: this monitor knows no checkpoints", runtime.ErrState)
	}
	thaw, err := cp.Checkpoint(ctx, r)
	if err != nil {
		return err
	}
	for _, c := range cs {
		if err := w.diff(ctx, c); err != nil {
			return errors.Join(err, thaw())
		}
	}
	return thaw()
}

func (w *capture) diff(ctx context.Context, c runtime.Container) error {
	id, upper := c.ID, w.m.o.UpperDir(string(c.ID))
	if _, err := os.Lstat(upper); errors.Is(err, fs.ErrNotExist) && c.Config.Security.ReadOnlyRootfs {
		upper = filepath.Join(w.dir, "empty") // it has the image's tree as it is
		if err := os.MkdirAll(upper, 0o700); err != nil {
			return err
		}
	}
	f, err := w.root.OpenFile(string(id)+"/"+checkpoint.DiffFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	deleted, err := checkpoint.Diff(ctx, upper, f, checkpoint.DefaultLimits())
	if errors.Is(err, checkpoint.ErrUnsupported) {
		return fmt.Errorf("%w: container %s: %w", runtime.ErrState, id, err)
	}
	if err != nil {
		return err
	}
	b, err := json.Marshal(deleted)
	if err != nil {
		return err
	}
	return w.root.WriteFile(string(id)+"/"+checkpoint.DeletedFile, b, 0o600)
}

// archive writes the archive of one container and closes f, flushed.
func (w *capture) archive(ctx context.Context, f *os.File, c runtime.Container) (err error) {
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	dir, err := w.root.OpenRoot(string(c.ID))
	if err != nil {
		return err
	}
	defer dir.Close()
	s := checkpoint.Source{Dir: dir, Config: w.config(c), Status: checkpoint.Status{
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, Pid: uint32(c.PID),
	}}
	if s.Spec, err = w.spec(c); err != nil {
		return err
	}
	b, err := dir.ReadFile(checkpoint.DeletedFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s.Deleted); err != nil {
		return err
	}
	if s.Diff, err = dir.Open(checkpoint.DiffFile); err != nil {
		return err
	}
	defer s.Diff.Close()
	if c.Config.LogPath != "" {
		s.Log, err = os.OpenFile(c.Config.LogPath, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err == nil {
			defer s.Log.Close()
		}
	}
	if err := checkpoint.Write(ctx, f, s); err != nil {
		return err
	}
	return f.Sync()
}

func (w *capture) config(c runtime.Container) checkpoint.Config {
	return checkpoint.Config{
		Version: checkpoint.Version, ID: string(c.ID), Name: c.Config.Name.Name,
		RootfsImage: c.Config.ImageID, RootfsImageRef: c.Config.ImageID, RootfsImageName: c.Config.Image,
		Runtime: w.handlerOf(c), CreatedTime: time.Unix(0, c.CreatedAt).UTC(), CheckpointedAt: w.at.UTC(),
		TTY: c.Config.TTY, Stdin: c.Config.Stdin, TCPEstablished: w.tcp,
	}
}

func (w *capture) handlerOf(c runtime.Container) string {
	p, err := w.m.o.Ledger.Pod(c.PodID)
	if err != nil || p.Config.Handler == "" {
		return "default"
	}
	return p.Config.Handler
}

// spec reads the container's spec and names it for readers of archives.
func (w *capture) spec(c runtime.Container) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(w.m.bundle(&c), "config.json"))
	if err != nil {
		return nil, err
	}
	p, err := w.m.o.Ledger.Pod(c.PodID)
	if err != nil {
		return nil, err
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	a, _ := s["annotations"].(map[string]any)
	if a == nil {
		a = map[string]any{}
	}
	a["io.kubernetes.cri.container-name"] = c.Config.Name.Name
	a["io.kubernetes.cri.sandbox-name"] = p.Config.Name.Name
	a["io.kubernetes.cri.sandbox-namespace"] = p.Config.Name.Namespace
	s["annotations"] = a
	return json.Marshal(s)
}

// pod writes all of a pod's checkpoint into the temporary directory.
func (w *capture) pod(ctx context.Context, out *os.Root, p runtime.Pod, cs []runtime.Container, o runtime.CheckpointOptions) error {
	if err := out.Mkdir(w.temp, 0o700); err != nil {
		return err
	}
	desc := checkpoint.Pod{
		Version: checkpoint.Version, ID: string(p.ID), Name: p.Config.Name.Name, Namespace: p.Config.Name.Namespace,
		Handler: p.Config.Handler, CheckpointedAt: w.at.UTC(), Architecture: goruntime.GOARCH,
		TCPEstablished: o.TCPEstablished, SharedPID: p.Config.Namespaces.PID == runtime.NamespacePod,
	}
	opts := checkpoint.Options{Version: checkpoint.Version, Containers: map[string]string{}}
	for _, c := range cs {
		n := c.Config.Name.Name
		d := checkpoint.PodContainer{Name: n, ID: string(c.ID), File: n + checkpoint.ArchiveSuffix}
		desc.Containers = append(desc.Containers, d)
		opts.Containers[n] = n
		f, err := out.OpenFile(w.temp+"/"+d.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := w.archive(ctx, f, c); err != nil {
			return err
		}
	}
	for name, v := range map[string]any{checkpoint.PodFile: desc, checkpoint.PodOptions: opts} {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		if err := atomicfile.WriteSync(filepath.Join(w.out, w.temp, name), b, 0o600); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(filepath.Join(w.out, w.temp))
}

// sweepCheckpoints removes what a crash left of checkpoints and restores: the
// files beside a result, and directories that no container is to start from.
func (m *Manager) sweepCheckpoints() error {
	if m.o.CheckpointDir == "" {
		return nil
	}
	var errs []error
	each := func(sub string, fn func(dir, name string) error) {
		err := os.MkdirAll(filepath.Join(m.o.CheckpointDir, sub), 0o700)
		ents, rerr := os.ReadDir(filepath.Join(m.o.CheckpointDir, sub))
		errs = append(errs, err, rerr)
		for _, e := range ents {
			errs = append(errs, fn(filepath.Join(m.o.CheckpointDir, sub, e.Name()), e.Name()))
		}
	}
	each("capture", func(dir, name string) error {
		b, err := os.ReadFile(filepath.Join(dir, besideFile))
		if err == nil && ourTemp(string(b), name) {
			if err := removeAll(string(b)); err != nil {
				return err
			}
		}
		return removeAll(dir)
	})
	each("restore", func(dir, name string) error {
		if _, err := m.o.Ledger.Container(runtime.ContainerID(name)); err == nil {
			return nil
		}
		return removeAll(dir)
	})
	return errors.Join(errs...)
}

// ourTemp holds for a path that newCapture has made up for id: anything else
// in its place is damage, and nothing is removed for it.
func ourTemp(path, id string) bool {
	_, err := hex.DecodeString(id)
	return err == nil && id != "" && filepath.IsAbs(path) && filepath.Clean(path) == path &&
		strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), tempPrefix), tempSuffix) == id
}
