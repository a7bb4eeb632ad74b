package lifecycle

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/checkpoint"
	"github.com/ocid-io/ocid/runtime/checkpoint/checkpointtest"
	"github.com/ocid-io/ocid/runtime/spec"
)

// Checkpoint implements Checkpointer: it writes images of the bundle's spec.
func (f *fakeMonitor) Checkpoint(ctx context.Context, r CheckpointRequest) (Thaw, error) {
	if err := f.step(ctx, "freeze", "frozen "+string(f.pod), true); err != nil {
		return nil, err
	}
	thawed := false
	thaw := func() error {
		if thawed {
			return nil
		}
		thawed = true
		return f.step(context.Background(), "thaw", "frozen "+string(f.pod), false)
	}
	for _, d := range r.Containers {
		b, err := os.ReadFile(filepath.Join(f.root, "run/pods", string(f.pod), "containers", string(d.ID), "config.json"))
		var s specs.Spec
		if err == nil {
			err = json.Unmarshal(b, &s)
		}
		if err == nil {
			err = checkpointtest.OfSpec(d.Images, &s)
		}
		if err == nil {
			err = f.step(ctx, "dump", "", false)
		}
		if err != nil {
			return nil, errors.Join(err, thaw())
		}
	}
	return thaw, nil
}

func (f *fakeMonitor) Restore(ctx context.Context, r RestoreRequest) (int, error) {
	for _, p := range []string{r.Images, r.Work, filepath.Join(r.Bundle, "config.json")} {
		if _, err := os.Stat(p); err != nil {
			return 0, err
		}
	}
	return 43, f.step(ctx, "restore", "engine "+string(r.ID), true)
}

// snapshotManager has what checkpoints need, and one running container.
func snapshotManager(t *testing.T, w *world) *Manager {
	t.Helper()
	m := newManager(t, w)
	m.o.CheckpointDir = filepath.Join(w.root, "checkpoints")
	m.o.DaemonCaps = spec.KnownCapabilities()
	m.o.UpperDir = func(id string) string { return filepath.Join(w.root, "upper-"+id) }
	return m
}

func counterPod(uid string) runtime.PodConfig {
	return runtime.PodConfig{
		Name:       runtime.PodName{Name: "p", Namespace: "n", UID: uid},
		Namespaces: runtime.Namespaces{Network: runtime.NamespacePod, PID: runtime.NamespaceContainer, IPC: runtime.NamespacePod},
	}
}

func counter() runtime.ContainerConfig {
	return runtime.ContainerConfig{
		Name: runtime.ContainerName{Name: "c"}, Image: "counter", ImageID: "sha256:image",
		Command: []string{"/bin/count"}, Env: []runtime.EnvVar{{Key: "A", Value: []byte("b")}},
		Security: runtime.Security{
			Seccomp: runtime.SeccompDefault, NoNewPrivileges: true,
			MaskedPaths: []string{"/proc/kcore"}, ReadOnlyPaths: []string{"/proc/sys"},
			Namespaces: runtime.Namespaces{Network: runtime.NamespacePod, PID: runtime.NamespaceContainer, IPC: runtime.NamespacePod},
		},
	}
}

func running(t *testing.T, w *world, m *Manager) (runtime.PodID, runtime.ContainerID) {
	t.Helper()
	pod, err := m.RunPod(t.Context(), counterPod("first"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.CreateContainer(t.Context(), pod, counter())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	upper := m.o.UpperDir(string(id))
	if err := os.MkdirAll(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(upper, "state"), []byte("7"), 0o644); err != nil {
		t.Fatal(err)
	}
	return pod, id
}

// clean fails if anything of a checkpoint or a restore is left.
func clean(t *testing.T, w *world, m *Manager, dirs ...string) {
	t.Helper()
	for _, d := range append(dirs, filepath.Join(m.o.CheckpointDir, "capture"), filepath.Join(m.o.CheckpointDir, "restore")) {
		ents, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range ents {
			t.Errorf("left in %s: %s", d, e.Name())
		}
	}
	for _, l := range w.left() {
		if strings.HasPrefix(l, "frozen") {
			t.Errorf("left: %s", l)
		}
	}
}

func TestCheckpointContainerWritesAnArchive(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	_, id := running(t, w, m)
	dir := t.TempDir()
	at := filepath.Join(dir, "c.tar")
	for range 2 { // a second one takes the place of the first
		if err := m.CheckpointContainer(t.Context(), id, at, 0); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(at)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if err := os.Remove(at); err != nil {
		t.Error(err)
	}
	clean(t, w, m, dir)
	if w.count("thaw") != 2 {
		t.Errorf("%d thaws", w.count("thaw"))
	}
}

func TestCheckpointFailsWithoutATrace(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		prepare func(*testing.T, *world, *Manager, runtime.ContainerID, string) (location string)
		is      error
	}{
		"freeze": {func(_ *testing.T, w *world, _ *Manager, _ runtime.ContainerID, dir string) string {
			w.set("freeze", boom)
			return dir + "/c.tar"
		}, boom},
		"dump": {func(_ *testing.T, w *world, _ *Manager, _ runtime.ContainerID, dir string) string {
			w.set("dump", boom)
			return dir + "/c.tar"
		}, boom},
		"a device in the layer": {func(t *testing.T, _ *world, m *Manager, id runtime.ContainerID, dir string) string {
			if err := unix.Mknod(filepath.Join(m.o.UpperDir(string(id)), "d"), unix.S_IFCHR, 0x103); err != nil {
				t.Skip("needs CAP_MKNOD: " + err.Error())
			}
			return dir + "/c.tar"
		}, runtime.ErrState},
		"no directory": {func(_ *testing.T, _ *world, _ *Manager, _ runtime.ContainerID, dir string) string {
			return dir + "/x/c.tar"
		}, runtime.ErrInvalid},
		"relative":      {func(*testing.T, *world, *Manager, runtime.ContainerID, string) string { return "c.tar" }, runtime.ErrInvalid},
		"the directory": {func(_ *testing.T, _ *world, _ *Manager, _ runtime.ContainerID, dir string) string { return dir + "/" }, runtime.ErrInvalid},
		"a timeout": {func(_ *testing.T, w *world, _ *Manager, _ runtime.ContainerID, dir string) string {
			w.mu.Lock()
			w.block["dump"] = make(chan struct{})
			w.mu.Unlock()
			return dir + "/c.tar"
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := snapshotManager(t, w)
			_, id := running(t, w, m)
			dir := t.TempDir()
			at := c.prepare(t, w, m, id, dir)
			if err := m.CheckpointContainer(t.Context(), id, at, 300*time.Millisecond); !errors.Is(err, c.is) {
				t.Errorf("%v", err)
			}
			clean(t, w, m, dir)
			if r, err := m.Container(string(id)); err != nil || r.State != runtime.ContainerRunning {
				t.Errorf("%v, %v", r.State, err)
			}
		})
	}
}

func TestWhatCannotBeCheckpointed(t *testing.T) {
	pod, ok := counterPod(""), counter()
	if why := uncapturable(pod, ok); why != "" {
		t.Error(why)
	}
	shared := ok
	shared.Security.Namespaces.PID = runtime.NamespacePod
	if uncapturable(pod, shared) != "" || unrestorable(pod, shared) == "" {
		t.Error("a shared PID namespace can be captured, and not be restored")
	}
	for name, change := range map[string]func(*runtime.PodConfig, *runtime.ContainerConfig){
		"user namespace": func(p *runtime.PodConfig, _ *runtime.ContainerConfig) { p.Namespaces.User = &runtime.UserNamespace{} },
		"host's PID": func(_ *runtime.PodConfig, c *runtime.ContainerConfig) {
			c.Security.Namespaces.PID = runtime.NamespaceNode
		},
		"another container's": func(_ *runtime.PodConfig, c *runtime.ContainerConfig) {
			c.Security.Namespaces.PID = runtime.NamespaceTarget
		},
		"propagation": func(_ *runtime.PodConfig, c *runtime.ContainerConfig) {
			c.Mounts = []runtime.Mount{{ContainerPath: "/a", Propagation: runtime.PropagationBidirectional}}
		},
	} {
		p, c := pod, ok
		change(&p, &c)
		if unrestorable(p, c) == "" {
			t.Errorf("%s could be restored", name)
		}
		if why := uncapturable(p, c); !strings.Contains(why, name) {
			t.Errorf("%s: %q", name, why)
		}
	}
}

// checkpointed makes a checkpoint of a pod and removes the pod.
func checkpointed(t *testing.T, w *world, m *Manager) (dir string) {
	t.Helper()
	pod, id := running(t, w, m)
	dir = t.TempDir()
	if err := m.CheckpointPod(t.Context(), pod, dir, []runtime.ContainerID{id}, runtime.CheckpointOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if l := w.left(); len(l) > 0 {
		t.Fatalf("left by the first pod: %v", l)
	}
	return dir
}

func restoreOf(dir string) runtime.RestoreRequest {
	return runtime.RestoreRequest{Path: dir, Config: counterPod("second"), Containers: []runtime.ContainerConfig{counter()}}
}

func TestCheckpointPodRefuses(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	pod, id := running(t, w, m)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	for name, c := range map[string]struct {
		dir string
		ids []runtime.ContainerID
	}{
		"not empty": {full, []runtime.ContainerID{id}}, "no directory": {empty + "/x", []runtime.ContainerID{id}},
		"relative": {"x", []runtime.ContainerID{id}}, "none": {empty, nil}, "twice": {empty, []runtime.ContainerID{id, id}},
	} {
		if err := m.CheckpointPod(t.Context(), pod, c.dir, c.ids, runtime.CheckpointOptions{}); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.set("dump", errors.New("boom"))
	if err := m.CheckpointPod(t.Context(), pod, empty, []runtime.ContainerID{id}, runtime.CheckpointOptions{}); err == nil {
		t.Error("no error")
	}
	clean(t, w, m, empty)
	if _, err := os.Stat(filepath.Join(full, "theirs")); err != nil {
		t.Error(err)
	}
}

func TestRestorePod(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	dir := checkpointed(t, w, m)
	creates := w.count("create")
	r := restoreOf(dir)
	pod, cs, err := m.RestorePod(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	again, cs2, err := m.RestorePod(t.Context(), r)
	if err != nil || again != pod || len(cs) != 1 || len(cs2) != 1 || cs[0] != cs2[0] || cs[0].Name != "c" {
		t.Fatalf("%v %v, %v %v: %v", pod, cs, again, cs2, err)
	}
	other := restoreOf(dir)
	other.Containers[0].Labels = map[string]string{"a": "b"}
	if _, _, err := m.RestorePod(t.Context(), other); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("a retry that asks for something else: %v", err)
	}
	id := cs[0].ID
	if c, err := m.Container(string(id)); err != nil || c.State != runtime.ContainerCreated || w.count("restore") != 0 || w.count("create") != creates {
		t.Fatalf("%v %v: %d restores, %d creates", c.State, err, w.count("restore"), w.count("create"))
	}
	if b, err := os.ReadFile(filepath.Join(w.root, "rootfs/state")); err != nil || string(b) != "7" {
		t.Errorf("the root file system: %q, %v", b, err)
	}
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	c, err := m.Container(string(id))
	if err != nil || c.State != runtime.ContainerRunning || c.PID != 43 || runtime.Has(c.Intents, runtime.IntentRestore) {
		t.Errorf("%+v, %v", c, err)
	}
	clean(t, w, m)
	if err := m.StopContainer(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if l := w.left(); len(l) > 0 {
		t.Errorf("left: %v", l)
	}
}

// A restored pod has a level, as any other. That of its processes is compared
// with it last, and those of the fake have none.
func TestRestoredPodHasALevel(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	se := &fakeSELinux{}
	m.o.Extensions.SELinux = se
	dir := checkpointed(t, w, m)
	_, _, err := m.RestorePod(t.Context(), restoreOf(dir))
	if err == nil || !strings.Contains(err.Error(), `confined by "" and not by "system_u:system_r:container_t:s0:c1,c2"`) {
		t.Error(err)
	}
	if se.taken != 0 {
		t.Errorf("%d levels are still taken", se.taken)
	}
}

// TestRestoredButNeverStarted: it can be stopped and removed like any other.
func TestRestoredButNeverStarted(t *testing.T) {
	for _, stop := range []bool{true, false} {
		w := newWorld(t)
		m := snapshotManager(t, w)
		pod, cs, err := m.RestorePod(t.Context(), restoreOf(checkpointed(t, w, m)))
		if err != nil {
			t.Fatal(err)
		}
		if stop {
			if err := m.StopContainer(t.Context(), cs[0].ID, time.Second); err != nil {
				t.Fatal(err)
			}
			if c, err := m.Container(string(cs[0].ID)); err != nil || c.State != runtime.ContainerExited || c.ExitCode != 137 {
				t.Errorf("%v %d %v", c.State, c.ExitCode, err)
			}
			if err := m.StartContainer(t.Context(), cs[0].ID); !errors.Is(err, runtime.ErrState) {
				t.Errorf("start of a stopped one: %v", err)
			}
		}
		if err := m.RemovePod(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		clean(t, w, m)
		if l := w.left(); len(l) > 0 {
			t.Errorf("left: %v", l)
		}
	}
}

// TestRestoreFailsWithoutATrace breaks every step in turn.
func TestRestoreFailsWithoutATrace(t *testing.T) {
	for _, step := range []string{"pin", "shm", "add", "spawn", "prepare"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m := snapshotManager(t, w)
			dir := checkpointed(t, w, m)
			boom := errors.New("boom")
			w.set(step, boom)
			if _, _, err := m.RestorePod(t.Context(), restoreOf(dir)); !errors.Is(err, boom) {
				t.Fatalf("%v", err)
			}
			clean(t, w, m)
			if p, c := m.Pods(), m.Containers(); len(p)+len(c) > 0 || len(w.left()) > 0 {
				t.Errorf("left: %v %v %v", p, c, w.left())
			}
			w.set(step, nil)
			if _, _, err := m.RestorePod(t.Context(), restoreOf(dir)); err != nil {
				t.Errorf("the next try: %v", err)
			}
		})
	}
}

// TestRestoreEndsWithItsCaller: who gave up finds nothing of it.
func TestRestoreEndsWithItsCaller(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	dir := checkpointed(t, w, m)
	w.mu.Lock()
	w.block["add"] = make(chan struct{})
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := m.RestorePod(ctx, restoreOf(dir)); err == nil {
		t.Fatal("no error")
	}
	clean(t, w, m)
	if p, c := m.Pods(), m.Containers(); len(p)+len(c) > 0 || len(w.left()) > 0 {
		t.Errorf("left: %v %v %v", p, c, w.left())
	}
}

// TestCrashDuringRestore: a daemon that dies in any step leaves nothing that
// the next one does not remove; one that dies behind the last loses nothing.
func TestCrashDuringRestore(t *testing.T) {
	for _, step := range []string{"pin", "add", "spawn", "prepare"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m := snapshotManager(t, w)
			dir := checkpointed(t, w, m)
			gate := make(chan struct{})
			w.mu.Lock()
			w.block[step] = gate
			for len(w.entered) > 0 {
				<-w.entered
			}
			w.mu.Unlock()
			go func() { _, _, _ = m.RestorePod(context.Background(), restoreOf(dir)) }()
			for s := range w.entered {
				if s == step {
					break
				}
			}
			w.mu.Lock()
			delete(w.block, step)
			w.mu.Unlock()
			next := snapshotManager(t, w) // the first one hangs for ever, as if dead
			if err := next.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			clean(t, w, next)
			if p, c := next.Pods(), next.Containers(); len(p)+len(c) > 0 {
				t.Errorf("left: %v %v", p, c)
			}
		})
	}
	w := newWorld(t)
	m := snapshotManager(t, w)
	_, cs, err := m.RestorePod(t.Context(), restoreOf(checkpointed(t, w, m)))
	if err != nil {
		t.Fatal(err)
	}
	next := snapshotManager(t, w)
	if err := next.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.StartContainer(t.Context(), cs[0].ID); err != nil {
		t.Errorf("start under the next daemon: %v", err)
	}
	clean(t, w, next)
}

// TestRestoreCompares: every difference that can be seen is refused, and what
// the archive says never takes the request's place.
func TestRestoreCompares(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	dir := checkpointed(t, w, m)
	for name, change := range map[string]func(*runtime.RestoreRequest){
		"command":      func(r *runtime.RestoreRequest) { r.Containers[0].Command = []string{"/bin/sh"} },
		"environment":  func(r *runtime.RestoreRequest) { r.Containers[0].Env[0].Value = []byte("c") },
		"directory":    func(r *runtime.RestoreRequest) { r.Containers[0].WorkingDir = "/tmp" },
		"user":         func(r *runtime.RestoreRequest) { r.Containers[0].Security.RunAsUser = ptr(int64(7)) },
		"capabilities": func(r *runtime.RestoreRequest) { r.Containers[0].Security.DropCapabilities = []string{"CHOWN"} },
		"no-new-priv":  func(r *runtime.RestoreRequest) { r.Containers[0].Security.NoNewPrivileges = false },
		"seccomp":      func(r *runtime.RestoreRequest) { r.Containers[0].Security.Seccomp = runtime.SeccompUnconfined },
		"masked":       func(r *runtime.RestoreRequest) { r.Containers[0].Security.MaskedPaths = []string{"/proc/keys"} },
		"terminal":     func(r *runtime.RestoreRequest) { r.Containers[0].TTY = true },
		"mounts": func(r *runtime.RestoreRequest) {
			r.Containers[0].Mounts = []runtime.Mount{{ContainerPath: "/m", HostPath: "/tmp"}}
		},
		"no container":    func(r *runtime.RestoreRequest) { r.Containers[0].Name.Name = "other" },
		"2 are asked for": func(r *runtime.RestoreRequest) { r.Containers = append(r.Containers, r.Containers[0]) },
		"handler":         func(r *runtime.RestoreRequest) { r.Config.Handler = "ocid" },
		"PID namespace":   func(r *runtime.RestoreRequest) { r.Config.Namespaces.PID = runtime.NamespacePod },
		"no checkpoint":   func(r *runtime.RestoreRequest) { r.Path = t.TempDir() },
		"absolute":        func(r *runtime.RestoreRequest) { r.Path = "x" },
		"user namespace":  func(r *runtime.RestoreRequest) { r.Config.Namespaces.User = &runtime.UserNamespace{} },
	} {
		t.Run(name, func(t *testing.T) {
			r := restoreOf(dir)
			change(&r)
			if _, _, err := m.RestorePod(t.Context(), r); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v", err)
			}
			clean(t, w, m)
			if l := w.left(); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
	r := restoreOf(dir)
	r.Containers[0].ImageID = "sha256:none"
	if _, _, err := m.RestorePod(t.Context(), r); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("an image that is not here: %v", err)
	}
}

func ptr[T any](v T) *T { return &v }

// TestRestoreRefusesHostileArchives changes one member of a good archive.
func TestRestoreRefusesHostileArchives(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	dir := checkpointed(t, w, m)
	file := filepath.Join(dir, podSubdir, "c.tar")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	core := func(t checkpointtest.Thread) []byte { return checkpointtest.Image(checkpointtest.Core, t.Message()) }
	diff := func(h tar.Header) []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := errors.Join(tw.WriteHeader(&h), tw.Close()); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		member string
		body   []byte
	}{
		"all capabilities": {"checkpoint/core-1.img", core(checkpointtest.Thread{Caps: 1<<41 - 1, NoNewPrivs: 1, Seccomp: 2})},
		"no filter":        {"checkpoint/core-1.img", core(checkpointtest.Thread{NoNewPrivs: 1})},
		"new privileges":   {"checkpoint/core-1.img", core(checkpointtest.Thread{Seccomp: 2})},
		"profile":          {"checkpoint/core-1.img", core(checkpointtest.Thread{NoNewPrivs: 1, Seccomp: 2, Profile: "lax"})},
		"bare mounts":      {"checkpoint/mountpoints-1.img", checkpointtest.Image(checkpointtest.Mounts, checkpointtest.Mount("./", 17, 0, ""))},
		"host's devices":   {"checkpoint/mountpoints-1.img", checkpointtest.Image(checkpointtest.Mounts, checkpointtest.Mount("./hostdev", 3, 0, ""))},
		"more descriptors": {"checkpoint/descriptors.json", []byte(`["","","","","pipe:[1]"]`)},
		"climbing file":    {checkpoint.DiffFile, diff(tar.Header{Typeflag: tar.TypeReg, Name: "../../evil"})},
		"device":           {checkpoint.DiffFile, diff(tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8})},
		"climbing removal": {checkpoint.DeletedFile, []byte(`["../run"]`)},
		"another image":    {checkpoint.ConfigFile, []byte(`{"version":1,"name":"c","rootfsImage":"sha256:other"}`)},
		"bare spec":        {checkpoint.SpecFile, []byte(`{}`)},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, replaced(t, good, c.member, c.body), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := m.RestorePod(t.Context(), restoreOf(dir)); !errors.Is(err, runtime.ErrInvalid) {
				t.Errorf("%v", err)
			}
			clean(t, w, m)
			if l := w.left(); len(l) > 0 {
				t.Errorf("left: %v", l)
			}
		})
	}
	for name, plant := range map[string]func() error{
		"a FIFO":         func() error { return unix.Mkfifo(file, 0o600) },
		"a link outside": func() error { return os.Symlink("/etc/passwd", file) },
		"a directory":    func() error { return os.Mkdir(file, 0o700) },
	} {
		if err := errors.Join(os.RemoveAll(file), plant()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.RestorePod(t.Context(), restoreOf(dir)); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w.count("restore") != 0 {
		t.Error("something was restored")
	}
}

// replaced is a tar with another body for one member.
func replaced(t *testing.T, in []byte, name string, body []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(in)), tar.NewWriter(&out)
	found := false
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == name {
			found, b, h.Size = true, body, int64(len(body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || !found {
		t.Fatalf("found %t, %v", found, err)
	}
	return out.Bytes()
}

// TestSweepCheckpoints: what a dead daemon noted is removed, and nothing else,
// whatever the note has become.
func TestSweepCheckpoints(t *testing.T) {
	w := newWorld(t)
	m := snapshotManager(t, w)
	out := t.TempDir()
	c, err := m.newCapture(out)
	if err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(out, "precious")
	for _, f := range []string{filepath.Join(out, c.temp), precious} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged := filepath.Join(m.o.CheckpointDir, "capture", "0123456789abcdef")
	lost := filepath.Join(m.o.CheckpointDir, "restore", newID())
	for _, d := range []string{damaged, lost} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(damaged, besideFile), []byte(precious), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	clean(t, w, m)
	ents, err := os.ReadDir(out)
	if err != nil || len(ents) != 1 || ents[0].Name() != "precious" {
		t.Errorf("%v, %v", ents, err)
	}
}
