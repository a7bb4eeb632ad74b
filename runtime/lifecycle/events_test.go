package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// follow subscribes and returns a function that gives the next n events.
func follow(t *testing.T, m *Manager) func(n int) []*runtime.Event {
	t.Helper()
	ready, events := make(chan struct{}), make(chan *runtime.Event, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Events(ctx, func() error { close(ready); return nil }, func(e *runtime.Event) error {
			events <- e
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	<-ready
	return func(n int) (out []*runtime.Event) {
		t.Helper()
		for range n {
			select {
			case e := <-events:
				out = append(out, e)
			case <-time.After(10 * time.Second):
				t.Fatalf("only %d of %d events came", len(out), n)
			}
		}
		return out
	}
}

func describe(pod runtime.PodID, events []*runtime.Event) string {
	var out []string
	for _, e := range events {
		who := "container"
		if e.ID == string(pod) {
			who = "pod"
		}
		var states []string
		for _, c := range e.Containers {
			states = append(states, string(c.State))
		}
		out = append(out, fmt.Sprintf("%s %s, pod %s%v", who, e.Type, e.Pod.State, states))
	}
	return strings.Join(out, "\n")
}

func TestEventsOfALife(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	ctx := t.Context()
	next := follow(t, m)
	pod, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.CreateContainer(ctx, pod, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{m.StartContainer(ctx, id), m.StopContainer(ctx, id, 0), m.RemoveContainer(ctx, id), m.StopPod(ctx, pod), m.RemovePod(ctx, pod)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := next(8)
	want := strings.TrimSpace(`
pod created, pod ready[]
pod started, pod ready[]
container created, pod ready[created]
container started, pod ready[running]
container stopped, pod ready[exited]
container deleted, pod ready[]
pod stopped, pod notready[]
pod deleted, pod removing[]`)
	if d := describe(pod, got); d != want {
		t.Errorf("got\n%s\nwant\n%s", d, want)
	}
	for i, e := range got[1:] {
		if e.At <= got[i].At {
			t.Errorf("event %d is not later than the one before", i+1)
		}
	}
}

// A pod removed while it runs is stopped first, in the events too.
func TestEventsOfARemovalAtOnce(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	next := follow(t, m)
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	want := "pod created, pod ready[]\npod started, pod ready[]\npod stopped, pod removing[]\npod deleted, pod removing[]"
	if d := describe(pod, next(4)); d != want {
		t.Errorf("got\n%s", d)
	}
}

// What no client ever saw has no events; nor has a change that is none.
func TestNoEvents(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	next := follow(t, m)
	w.set("pin", errors.New("broken"))
	if _, err := m.RunPod(t.Context(), podConfig("never")); err == nil {
		t.Fatal("not broken")
	}
	w.set("pin", nil)
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	w.set("create", errors.New("broken"))
	if _, err := m.CreateContainer(t.Context(), pod, containerConfig("c")); err == nil {
		t.Fatal("not broken")
	}
	p, err := m.o.Ledger.Pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	p.IPs = []string{"10.0.0.9"}
	if err := m.o.Ledger.PutPod(p); err != nil {
		t.Fatal(err)
	}
	if err := m.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	want := "pod created, pod ready[]\npod started, pod ready[]\npod stopped, pod notready[]"
	if d := describe(pod, next(3)); d != want {
		t.Errorf("got\n%s", d)
	}
	if n := len(m.journal.hidden); n != 0 {
		t.Errorf("%d hidden objects are kept for ever", n)
	}
}

// A reader that does not keep up is told so, after all that fitted.
func TestEventsLost(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	hold := make(chan struct{})
	ready := make(chan struct{})
	result := make(chan error, 1)
	var got int
	go func() {
		result <- m.Events(t.Context(), func() error { close(ready); return nil }, func(*runtime.Event) error {
			<-hold
			got++
			return nil
		})
	}()
	<-ready
	pod, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	const more = eventBuffer + 10
	for range more {
		m.journal.tell(pod, string(pod), runtime.EventStopped)
	}
	close(hold)
	if err := <-result; !errors.Is(err, runtime.ErrLost) || !strings.Contains(err.Error(), "or more") {
		t.Errorf("ended with %v", err)
	}
	// One may have been taken out before the buffer was full.
	if got != eventBuffer && got != eventBuffer+1 {
		t.Errorf("%d events came before the end", got)
	}
	if n := m.journal.readers.Load(); n != 0 {
		t.Errorf("%d readers are left", n)
	}
}

func TestEventsEnd(t *testing.T) {
	m := newManager(t, newWorld(t))
	ready := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		result <- m.Events(t.Context(), func() error { close(ready); return nil }, func(*runtime.Event) error { return nil })
	}()
	<-ready
	m.EndEvents()
	m.EndEvents()
	if err := <-result; !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("ended with %v", err)
	}
	if err := m.Events(t.Context(), func() error { return nil }, nil); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("a new reader got %v", err)
	}
}
