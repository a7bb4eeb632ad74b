package lifecycle

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/ledger"
)

// world stands for everything outside the daemon: it counts what exists, so
// that a test can say what was left behind, and fails where it is told to.
type world struct {
	mu      sync.Mutex
	exists  map[string]bool
	fail    map[string]error
	calls   map[string]int
	block   map[string]chan struct{} // a step waits until its channel is closed
	entered chan string
	root    string
	mons    map[runtime.PodID]*fakeMonitor
	led     *ledger.Ledger
	heard   func(runtime.PodID) // of the newest manager
}

func newWorld(t *testing.T) *world {
	return &world{
		exists: map[string]bool{}, fail: map[string]error{}, calls: map[string]int{},
		block: map[string]chan struct{}{}, entered: make(chan string, 100),
		root: t.TempDir(), mons: map[runtime.PodID]*fakeMonitor{},
	}
}

// step counts a call, waits if it must, and makes thing exist unless it fails.
func (w *world) step(ctx context.Context, name, thing string, exists bool) error {
	w.mu.Lock()
	w.calls[name]++
	err, wait := w.fail[name], w.block[name]
	w.mu.Unlock()
	select {
	case w.entered <- name:
	default:
	}
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if exists {
		w.exists[thing] = true
	} else {
		delete(w.exists, thing)
	}
	return nil
}

func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for k := range w.exists {
		out = append(out, k)
	}
	return out
}

func (w *world) set(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[name] = err
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[name]
}

type fakeImages struct{ *world }

func (f fakeImages) Resolve(_ context.Context, ref string) (runtime.ImageConfig, error) {
	if ref != "sha256:image" {
		return runtime.ImageConfig{}, runtime.ErrNotFound
	}
	return runtime.ImageConfig{ID: ref, Cmd: []string{"/bin/true"}}, nil
}

func (f fakeImages) Prepare(ctx context.Context, req RootFSRequest) (string, error) {
	dir := filepath.Join(f.root, "rootfs")
	_ = os.MkdirAll(dir, 0o755)
	return dir, f.step(ctx, "prepare", "rootfs "+req.ID, true)
}

func (f fakeImages) Release(ctx context.Context, id string) error {
	return f.step(ctx, "release", "rootfs "+id, false)
}
func (f fakeImages) Prepared(context.Context) ([]string, error) { return nil, nil }

type fakeNamespaces struct{ *world }

func (f fakeNamespaces) Pin(ctx context.Context, req PinRequest) error {
	return f.step(ctx, "pin", "ns "+req.Dir, true)
}

func (f fakeNamespaces) Unpin(dir string) error {
	return f.step(context.Background(), "unpin", "ns "+dir, false)
}

type fakeNetwork struct{ *world }

func (f fakeNetwork) Ready() error { return nil }
func (f fakeNetwork) Add(ctx context.Context, id runtime.PodID, _ runtime.PodConfig, _ string) ([]string, error) {
	return []string{"10.0.0.2"}, f.step(ctx, "add", "net "+string(id), true)
}

func (f fakeNetwork) Del(ctx context.Context, id runtime.PodID, _ runtime.PodConfig, _ string) error {
	return f.step(ctx, "del", "net "+string(id), false)
}
func (f fakeNetwork) GC(context.Context, []runtime.PodID) error { return nil }

type fakeMonitors struct{ *world }

func (f fakeMonitors) Spawn(ctx context.Context, id runtime.PodID, _, _, _ string) (Monitor, int, uint64, error) {
	if err := f.step(ctx, "spawn", "monitor "+string(id), true); err != nil {
		return nil, 0, 0, err
	}
	m := &fakeMonitor{world: f.world, pod: id, exits: map[runtime.ContainerID]chan Exit{}, dead: make(chan struct{})}
	f.mu.Lock()
	f.mons[id] = m
	f.mu.Unlock()
	return m, 0, 0, nil
}

func (f fakeMonitors) OnLoss(heard func(runtime.PodID)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = heard
}

// awaitStep waits until a step of this name has been entered.
func (w *world) awaitStep(name string) {
	for s := range w.entered {
		if s == name {
			return
		}
	}
}

// die ends a pod's monitor, as a crash does.
func (w *world) die(id runtime.PodID) {
	w.mu.Lock()
	mon, heard := w.mons[id], w.heard
	delete(w.exists, "monitor "+string(id))
	w.mu.Unlock()
	close(mon.dead)
	go heard(id)
}

func (f fakeMonitors) Connect(_ context.Context, id runtime.PodID, _ string) (Monitor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.mons[id]
	if m == nil || m.isDead() {
		return nil, runtime.ErrUnavailable
	}
	return m, nil
}

func (f fakeMonitors) Orphan(ctx context.Context, id runtime.PodID, _, _ string, cs []OrphanContainer) (map[runtime.ContainerID]Exit, error) {
	for _, c := range cs {
		if err := f.step(ctx, "orphan", "engine "+string(c.ID), false); err != nil {
			return nil, err
		}
	}
	return nil, f.step(ctx, "orphan-pod", "monitor "+string(id), false)
}
func (f fakeMonitors) Handlers() []string { return []string{"ocid"} }

type fakeMonitor struct {
	*world
	pod   runtime.PodID
	emu   sync.Mutex
	exits map[runtime.ContainerID]chan Exit
	dead  chan struct{}

	states []ContainerStatus // what State answers
}

func (f *fakeMonitor) isDead() bool {
	select {
	case <-f.dead:
		return true
	default:
		return false
	}
}

func (f *fakeMonitor) exit(id runtime.ContainerID) chan Exit {
	f.emu.Lock()
	defer f.emu.Unlock()
	if f.exits[id] == nil {
		f.exits[id] = make(chan Exit, 1)
	}
	return f.exits[id]
}

func (f *fakeMonitor) Create(ctx context.Context, r CreateRequest) (int, error) {
	return 42, f.step(ctx, "create", "engine "+string(r.ID), true)
}

func (f *fakeMonitor) Start(ctx context.Context, _ runtime.ContainerID) error {
	return f.step(ctx, "start", "", false)
}

func (f *fakeMonitor) Signal(ctx context.Context, id runtime.ContainerID, sig int, _ bool) error {
	if f.isDead() {
		return runtime.ErrUnavailable
	}
	if err := f.step(ctx, "signal", "", false); err != nil {
		return err
	}
	if sig == 9 {
		select {
		case f.exit(id) <- Exit{Code: 137}:
		default:
		}
	}
	return nil
}

func (f *fakeMonitor) Wait(ctx context.Context, id runtime.ContainerID) (Exit, error) {
	select {
	case e := <-f.exit(id):
		return e, nil
	case <-f.dead:
		return Exit{}, runtime.ErrUnavailable
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (f *fakeMonitor) Delete(ctx context.Context, id runtime.ContainerID) error {
	if f.isDead() {
		return runtime.ErrUnavailable
	}
	return f.step(ctx, "delete", "engine "+string(id), false)
}

func (f *fakeMonitor) Exec(context.Context, runtime.ContainerID, ExecRequest) (int, error) {
	return 0, errors.New("no exec here")
}

func (f *fakeMonitor) CanStream() error { return f.fail["can-stream"] }

func (f *fakeMonitor) ExecStream(_ context.Context, _ runtime.ContainerID, p specs.Process, s runtime.Streams) (int, error) {
	_, err := io.WriteString(s.Stdout, strings.Join(p.Args, " "))
	return 7, err
}

func (f *fakeMonitor) Attach(ctx context.Context, _ runtime.ContainerID, _ runtime.Streams) error {
	return f.step(ctx, "attach", "", false)
}
func (f *fakeMonitor) ReopenLog(context.Context, runtime.ContainerID) error { return nil }
func (f *fakeMonitor) Update(context.Context, runtime.ContainerID, specs.LinuxResources) error {
	return nil
}

func (f *fakeMonitor) State(ctx context.Context) ([]ContainerStatus, error) {
	return f.states, f.step(ctx, "state", "", false)
}
func (f *fakeMonitor) PIDNamespace(context.Context) (int, error) { return 1, nil }
func (f *fakeMonitor) PodNamespaces(context.Context, runtime.UserNamespace, []string) (int, error) {
	return 1, nil
}

func (f *fakeMonitor) Shutdown(ctx context.Context) error {
	if f.isDead() {
		return runtime.ErrUnavailable
	}
	return f.step(ctx, "shutdown", "monitor "+string(f.pod), false)
}

func newManager(t *testing.T, w *world) *Manager {
	t.Helper()
	if w.led != nil {
		// The daemon that had it open is dead.
		if err := w.led.Close(); err != nil {
			t.Fatal(err)
		}
	}
	led, err := ledger.Open(filepath.Join(w.root, "ledger"), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.led = led
	return New(Options{
		RunDir: filepath.Join(w.root, "run"), Ledger: led, Images: fakeImages{w}, Namespaces: fakeNamespaces{w},
		Network: fakeNetwork{w}, Monitors: fakeMonitors{w}, CgroupParent: "/none", BootID: "boot",
		MountShm: func(dir string, _ int64) error { return w.step(context.Background(), "shm", "", false) },
	})
}
