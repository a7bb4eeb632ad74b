package lifecycle

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

func podConfig(name string) runtime.PodConfig {
	ns := runtime.Namespaces{Network: runtime.NamespacePod, PID: runtime.NamespaceContainer, IPC: runtime.NamespacePod}
	return runtime.PodConfig{
		Name:       runtime.PodName{Name: name, Namespace: "default", UID: "u"},
		Namespaces: ns, Security: runtime.Security{Namespaces: ns},
	}
}

func containerConfig(name string) runtime.ContainerConfig {
	return runtime.ContainerConfig{
		Name: runtime.ContainerName{Name: name}, Image: "image", ImageID: "sha256:image",
		Security: runtime.Security{Namespaces: podConfig("").Namespaces},
	}
}

func TestPodLife(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.RunPod(ctx, podConfig("a"))
	if err != nil || again != id {
		t.Fatalf("a retry must get the first's result: %s, %v", again, err)
	}
	cid, err := m.CreateContainer(ctx, id, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if same, err := m.CreateContainer(ctx, id, containerConfig("c")); err != nil || same != cid {
		t.Fatalf("a retry must get the first's result: %s, %v", same, err)
	}
	if err := m.StartContainer(ctx, cid); err != nil {
		t.Fatal(err)
	}
	if err := m.StopContainer(ctx, cid, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	c, err := m.Container(string(cid))
	if err != nil || c.State != runtime.ContainerExited || c.ExitCode != 137 || c.Reason != "Error" {
		t.Fatalf("after a kill: %+v, %v", c, err)
	}
	if err := m.StopPod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if n := len(m.Pods()) + len(m.Containers()); n > 0 {
		t.Errorf("%d records left", n)
	}
}

func TestAnotherConfigurationUnderOneName(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	if _, err := m.RunPod(t.Context(), podConfig("a")); err != nil {
		t.Fatal(err)
	}
	other := podConfig("a")
	other.Hostname = "other"
	if _, err := m.RunPod(t.Context(), other); !errors.Is(err, runtime.ErrInvalid) {
		t.Fatalf("got %v", err)
	}
}

// Every step of both creations fails once: nothing may stay, and the same name
// must work at once afterwards.
func TestFailureAtEachStep(t *testing.T) {
	broken := errors.New("broken")
	for _, step := range []string{"pin", "shm", "add", "spawn"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m := newManager(t, w)
			w.set(step, broken)
			if _, err := m.RunPod(t.Context(), podConfig("a")); !errors.Is(err, broken) {
				t.Fatalf("got %v", err)
			}
			if left := w.left(); len(left) > 0 || len(m.Pods()) > 0 {
				t.Fatalf("left behind: %q, %d records", left, len(m.Pods()))
			}
			w.set(step, nil)
			if _, err := m.RunPod(t.Context(), podConfig("a")); err != nil {
				t.Fatalf("retry: %v", err)
			}
		})
	}
	for _, step := range []string{"prepare", "create"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			m := newManager(t, w)
			id, err := m.RunPod(t.Context(), podConfig("a"))
			if err != nil {
				t.Fatal(err)
			}
			before := len(w.left())
			w.set(step, broken)
			if _, err := m.CreateContainer(t.Context(), id, containerConfig("c")); !errors.Is(err, broken) {
				t.Fatalf("got %v", err)
			}
			if left := w.left(); len(left) != before || len(m.Containers()) > 0 {
				t.Fatalf("left behind: %q, %d records", left, len(m.Containers()))
			}
			w.set(step, nil)
			if _, err := m.CreateContainer(t.Context(), id, containerConfig("c")); err != nil {
				t.Fatalf("retry: %v", err)
			}
		})
	}
}

// The field's most common complaint: a create that timed out keeps its name.
func TestCallerGivesUpAndRetries(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	gate := make(chan struct{})
	w.block["add"] = gate
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := m.RunPod(ctx, podConfig("a"))
		first <- err
	}()
	w.awaitStep("add")
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := m.RunPod(t.Context(), podConfig("a"))
		second <- err
	}()
	close(gate)
	if err := <-second; err != nil {
		t.Fatalf("retry: %v", err)
	}
	if n := w.count("add"); n != 1 {
		t.Errorf("the network was attached %d times", n)
	}
	if n := len(m.Pods()); n != 1 {
		t.Errorf("%d pods", n)
	}
}

// What is being removed is not listed, so nobody asks for it again.
func TestFailedCleanUpIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.FirstRetry = time.Millisecond
	broken := errors.New("broken")
	w.set("add", broken)
	w.set("del", broken)
	if _, err := m.RunPod(t.Context(), podConfig("a")); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	tries := 0
	for s := range w.entered {
		if s == "shutdown" {
			break
		}
		if s == "del" {
			if tries++; tries == 3 {
				w.set("del", nil)
			}
		}
	}
}

// A clean-up that fails must not strand the name either.
func TestFailedCleanUpDoesNotKeepTheName(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	broken := errors.New("broken")
	w.set("add", broken)
	w.set("del", broken)
	if _, err := m.RunPod(t.Context(), podConfig("a")); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	w.set("add", nil)
	id, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatalf("retry while the clean-up still fails: %v", err)
	}
	w.set("del", nil)
	for _, p := range m.Pods() {
		if err := m.RemovePod(t.Context(), p.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("remove %s (the live one is %s): %v", p.ID, id, err)
		}
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestMonitorDies(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	cid, err := m.CreateContainer(ctx, id, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(ctx, cid); err != nil {
		t.Fatal(err)
	}
	gone := m.liveOf(cid).gone
	close(w.mons[id].dead)
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the exit was never recorded")
	}
	if c, _ := m.Container(string(cid)); c.State != runtime.ContainerExited || c.ExitCode != 137 {
		t.Errorf("got %+v", c)
	}
	if err := m.RemovePod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A pod whose monitor dies before it holds a container is not ready any more:
// nothing can be made in it.
func TestMonitorOfEmptyPodDies(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	w.die(id)
	awaitNotReady(t, m, id)
	if _, err := m.CreateContainer(ctx, id, containerConfig("c")); !errors.Is(err, runtime.ErrState) {
		t.Errorf("create in a pod without a monitor: %v", err)
	}
	if err := m.RemovePod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// awaitNotReady waits until a pod is known to be stopped.
func awaitNotReady(t *testing.T, m *Manager, id runtime.PodID) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p, err := m.Pod(string(id))
		if err != nil {
			t.Fatal(err)
		}
		if p.State == runtime.PodNotReady {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("the pod stays ready")
		}
	}
}

// A monitor that dies while its pod is being made fails the making: nobody
// else would hear of it.
func TestMonitorDiesWhileThePodIsMade(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	gate := make(chan struct{})
	w.block["add"] = gate
	made := make(chan error, 1)
	go func() {
		_, err := m.RunPod(t.Context(), podConfig("a"))
		made <- err
	}()
	for seen := map[string]bool{}; !seen["add"] || !seen["spawn"]; {
		seen[<-w.entered] = true
	}
	var id runtime.PodID
	for limit := time.Now().Add(10 * time.Second); id == "" && time.Now().Before(limit); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		for i := range w.mons {
			id = i
		}
		w.mu.Unlock()
	}
	w.die(id)
	close(gate)
	if err := <-made; !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("a pod without a monitor: %v", err)
	}
	if left := w.left(); len(left) > 0 || len(m.Pods()) > 0 {
		t.Errorf("left behind: %q, %d records", left, len(m.Pods()))
	}
}

// What a lost monitor left may not go at once; the pod does not stay ready for it.
func TestMonitorLossIsSettledLater(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.CreateContainer(ctx, id, containerConfig("c")); err != nil {
		t.Fatal(err)
	}
	w.set("orphan", errors.New("device or resource busy"))
	w.die(id)
	w.awaitStep("orphan")
	w.set("orphan", nil)
	awaitNotReady(t, m, id)
}

// A monitor may die before the client learns of its pod; the client's retry
// must not run into the remains.
func TestRetryAfterUnusedPodDied(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	first, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	close(w.mons[first].dead)
	if err := m.orphan(ctx, first); err != nil {
		t.Fatal(err)
	}
	if p, _ := m.Pod(string(first)); p.State != runtime.PodNotReady {
		t.Fatalf("the pod is %s", p.State)
	}
	second, err := m.RunPod(ctx, podConfig("a"))
	if err != nil || second == first {
		t.Fatalf("retry: %s, %v", second, err)
	}
	cid, err := m.CreateContainer(ctx, second, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	gone := m.liveOf(cid).gone
	w.mons[second].exit(cid) <- Exit{Code: 137}
	<-gone
	again, err := m.CreateContainer(ctx, second, containerConfig("c"))
	if err != nil || again == cid {
		t.Fatalf("retry of a container that died unused: %s, %v", again, err)
	}
	if err := m.StopPod(ctx, second); err != nil {
		t.Fatal(err)
	}
	if _, err := m.RunPod(ctx, podConfig("a")); !errors.Is(err, runtime.ErrState) {
		t.Fatalf("a stopped pod with containers keeps its name: %v", err)
	}
}

// A daemon that was killed in the middle leaves records with intents; the next
// one undoes them from the records alone.
func TestReconcileUndoesHalfMade(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("whole"))
	if err != nil {
		t.Fatal(err)
	}
	half := runtime.Pod{
		Version: runtime.RecordVersion, ID: runtime.PodID(newID()), Config: podConfig("half"),
		State: runtime.PodCreating, BootID: "boot", CreatedAt: 1, Intents: podIntents(podConfig("half")),
	}
	ctr := runtime.Container{
		Version: runtime.RecordVersion, ID: runtime.ContainerID(newID()), PodID: id, Config: containerConfig("half"),
		State: runtime.ContainerCreating, CreatedAt: 1, CgroupPath: "/none/x",
	}
	if err := errors.Join(m.o.Ledger.PutPod(half), m.o.Ledger.PutContainer(ctr)); err != nil {
		t.Fatal(err)
	}
	for _, thing := range []string{"net " + string(half.ID), "ns " + m.nsDir(half.ID), "monitor " + string(half.ID), "rootfs " + string(ctr.ID), "engine " + string(ctr.ID)} {
		w.exists[thing] = true
	}
	before := []string{"net " + string(id), "ns " + m.nsDir(id), "monitor " + string(id)}
	next := newManager(t, w)
	if err := next.Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	// The half-made pod's monitor never answered: it has no process to end.
	delete(w.exists, "monitor "+string(half.ID))
	left := w.left()
	slices.Sort(left)
	slices.Sort(before)
	if !slices.Equal(left, before) {
		t.Errorf("left %q, want %q", left, before)
	}
	if ps := next.Pods(); len(ps) != 1 || ps[0].ID != id || ps[0].State != runtime.PodReady {
		t.Errorf("pods: %+v", ps)
	}
	if cs := next.Containers(); len(cs) != 0 {
		t.Errorf("containers: %+v", cs)
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "SIGRTMAX-1": 63, "SIGRTMAX": 64, "": 0, "65": 0, "-1": 0, "SIGRTMIN+99": 0, "SIGNOPE": 0} {
		if got := parseSignal(in); got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}
