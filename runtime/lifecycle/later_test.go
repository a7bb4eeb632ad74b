package lifecycle

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// comes waits for something that a background task does.
func comes(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("did not come to pass: %s", what)
		}
	}
}

// runs makes a pod with a container that runs.
func runs(t *testing.T, m *Manager) (runtime.PodID, runtime.ContainerID) {
	t.Helper()
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.CreateContainer(t.Context(), pod, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return pod, id
}

// An exit is told once. A full disk at that moment must not lose it.
func TestExitOutlivesAFullDisk(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.FirstRetry = time.Millisecond
	pod, id := runs(t, m)
	dir := filepath.Join(w.root, "ledger", "containers")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	gone := m.liveOf(id).gone
	w.mons[pod].exit(id) <- Exit{Code: 3}
	<-gone
	if s := m.o.Ledger.ContainerState(id); s != runtime.ContainerRunning {
		t.Fatalf("recorded %s on a disk that takes nothing", s)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	comes(t, "the exit", func() bool { return m.o.Ledger.ContainerState(id) == runtime.ContainerExited })
	if c, _ := m.Container(string(id)); c.ExitCode != 3 {
		t.Errorf("exit code %d", c.ExitCode)
	}
}

// A pod that lost its monitor has a network until it is stopped, and then none.
func TestStopAfterLossReleasesTheNetwork(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	pod, _ := runs(t, m)
	w.die(pod)
	comes(t, "a pod that is not ready", func() bool { return m.o.Ledger.PodState(pod) == runtime.PodNotReady })
	if err := m.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if p, _ := m.Pod(string(pod)); runtime.Has(p.Intents, runtime.IntentNetwork) {
		t.Errorf("the record says that there is a network: %v", p.Intents)
	}
}

// What a start cannot clean up, because the network is not up yet, is cleaned
// up while the daemon runs: nobody sees it, so nobody asks for it.
func TestReconcileTriesAgain(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	pod, _ := runs(t, m)
	broken := errors.New("broken")
	w.set("del", broken)
	if err := m.RemovePod(t.Context(), pod); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	m = newManager(t, w)
	m.o.FirstRetry = time.Millisecond
	if err := m.Reconcile(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	w.set("del", nil)
	comes(t, "the removal", func() bool { return len(m.Pods()) == 0 })
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A monitor that does not answer holds up no start, and its containers' exits
// are heard of once it does.
func TestReconcileWaitsForNoMonitor(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	pod, id := runs(t, m)
	gate := make(chan struct{})
	w.block["state"] = gate
	w.mons[pod] = &fakeMonitor{ // as the next daemon sees it
		world: w, pod: pod, exits: map[runtime.ContainerID]chan Exit{}, dead: make(chan struct{}),
		states: []ContainerStatus{{ID: id, Started: true}},
	}
	m = newManager(t, w)
	m.o.AnswerTime, m.o.FirstRetry = 10*time.Millisecond, time.Millisecond
	if err := m.Reconcile(t.Context()); err == nil {
		t.Fatal("no error")
	}
	if s := m.o.Ledger.PodState(pod); s != runtime.PodReady {
		t.Fatalf("the pod is %s", s)
	}
	close(gate)
	w.mons[pod].exit(id) <- Exit{Code: 5}
	comes(t, "the exit", func() bool {
		c, _ := m.Container(string(id))
		return c.State == runtime.ContainerExited && c.ExitCode == 5
	})
}

// A monitor that does not answer is killed when its pod goes.
func TestRemovalOfAPodWhoseMonitorHangs(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.AnswerTime = 10 * time.Millisecond
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	w.block["shutdown"] = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := m.RemovePod(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if n := len(m.Pods()); n != 0 {
		t.Errorf("%d pods", n)
	}
}

// After a reboot no pod is ready, whatever the network says.
func TestRebootWithoutNetwork(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	pod, id := runs(t, m)
	w.set("del", errors.New("broken"))
	m = newManager(t, w)
	m.o.BootID = "next"
	if err := m.Reconcile(t.Context()); err == nil {
		t.Error("no error")
	}
	if p, _ := m.Pod(string(pod)); p.State != runtime.PodNotReady || !runtime.Has(p.Intents, runtime.IntentNetwork) {
		t.Errorf("the pod is %s with %v", p.State, p.Intents)
	}
	if s := m.o.Ledger.ContainerState(id); s != runtime.ContainerExited {
		t.Errorf("the container is %s", s)
	}
	w.set("del", nil)
	if err := m.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if p, _ := m.Pod(string(pod)); runtime.Has(p.Intents, runtime.IntentNetwork) {
		t.Errorf("stopped, with %v", p.Intents)
	}
}

// A container that was recorded while its pod's removal began is removed too.
func TestRemovalTakesLateContainersToo(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.FirstRetry = time.Millisecond
	pod, id := runs(t, m)
	p, err := m.Pod(string(pod))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.undoPodOrLater(t.Context(), p); err == nil {
		t.Fatal("the pod's record went before its container's")
	}
	comes(t, "the removal", func() bool { return len(m.Pods()) == 0 })
	if s := m.o.Ledger.ContainerState(id); s != "" {
		t.Errorf("the container is %s", s)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A stop that waits for a container which is removed meanwhile ends with it.
func TestStopEndsWithARemoval(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.CreateContainer(t.Context(), pod, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	w.set("signal", runtime.ErrNotFound)
	stopped := make(chan error, 1)
	go func() { stopped <- m.StopContainer(t.Context(), id, 0) }()
	for s := range w.entered {
		if s == "signal" {
			break
		}
	}
	c, err := m.Container(string(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.undoContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for what is gone")
	}
	// Nothing is kept of what is not there.
	_ = m.StopContainer(t.Context(), id, 0)
	_, _ = m.execProcess(&c)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.live); n != 0 {
		t.Errorf("%d containers are kept in memory", n)
	}
}

// noCgroups has every control group there already.
type noCgroups struct{ Cgroups }

func (noCgroups) Missing(string) []string { return nil }

// The n-th pod costs what the first does: no record of another is copied.
func TestPodCopiesNoOtherPods(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.Cgroups = noCgroups{}
	put := func() {
		p := runtime.Pod{
			Version: runtime.RecordVersion, ID: runtime.PodID(newID()), State: runtime.PodCreating, BootID: "boot",
			Config: podConfig(newID()), CgroupsMade: []string{"/x"}, Intents: podIntents(podConfig("")),
		}
		p.Config.CgroupParent = "/kubepods/pod"
		p.Config.Labels = map[string]string{"a": "b"}
		if err := m.putPod(t.Context(), &p, "/kubepods/pod"); err != nil {
			t.Fatal(err)
		}
	}
	few := testing.AllocsPerRun(5, put)
	for range 300 {
		put()
	}
	if many := testing.AllocsPerRun(5, put); many > few+100 {
		t.Errorf("%.0f allocations at first, %.0f with 300 other pods", few, many)
	}
}
