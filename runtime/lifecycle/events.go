package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// eventBuffer is how many events may wait for one reader. A reader that falls
// further behind learns that it has lost some and must list again.
const eventBuffer = 1024

// journal is the ledger as the Manager sees it: every record passes through
// it, and what a client can see of the change is told to the readers of events.
//
// Invariants:
//   - an event comes after its record is in the ledger, and shows the pod as
//     it then was or as it was later, never earlier than the event before it;
//   - what was never listed (a container whose making failed) has no events;
//   - a reader gets every event since its subscription, or ErrLost.
//
// Without readers a change costs one atomic load. mu is taken after any turn
// and before the ledger's own locks, and never across a disk write.
type journal struct {
	Ledger

	readers atomic.Int32

	mu     sync.Mutex
	subs   map[*subscription]struct{} // guarded by mu, as all below
	hidden map[string]bool            // being removed and never listed
	last   int64                      // At of the last event
	closed bool
}

// subscription is one reader's queue.
type subscription struct {
	events chan *runtime.Event
	lost   atomic.Int64
	end    chan struct{} // closed when the daemon stops
}

func newJournal(l Ledger) *journal {
	return &journal{Ledger: l, subs: map[*subscription]struct{}{}, hidden: map[string]bool{}}
}

// PutPod implements Ledger.
func (j *journal) PutPod(p runtime.Pod) error {
	was := j.PodState(p.ID)
	if err := j.Ledger.PutPod(p); err != nil {
		return err
	}
	j.podMoved(&p, was)
	return nil
}

// ChangePod implements Ledger.
func (j *journal) ChangePod(id runtime.PodID, f func(p *runtime.Pod) error) (runtime.Pod, error) {
	var was runtime.PodState
	p, err := j.Ledger.ChangePod(id, func(p *runtime.Pod) error {
		was = p.State
		return f(p)
	})
	if err == nil {
		j.podMoved(&p, was)
	}
	return p, err
}

func (j *journal) podMoved(p *runtime.Pod, was runtime.PodState) {
	if was == p.State {
		return
	}
	switch p.State {
	case runtime.PodReady:
		j.tell(p.ID, string(p.ID), runtime.EventCreated, runtime.EventStarted)
	case runtime.PodNotReady:
		j.tell(p.ID, string(p.ID), runtime.EventStopped)
	case runtime.PodRemoving:
		switch was {
		case runtime.PodCreating:
			j.hide(string(p.ID))
		case runtime.PodReady:
			j.tell(p.ID, string(p.ID), runtime.EventStopped)
		case runtime.PodNotReady, runtime.PodRemoving:
		}
	case runtime.PodCreating:
	}
}

// DeletePod implements Ledger.
func (j *journal) DeletePod(id runtime.PodID) error {
	last, err := j.Pod(id)
	if err != nil {
		return j.Ledger.DeletePod(id)
	}
	if err := j.Ledger.DeletePod(id); err != nil {
		return err
	}
	if !j.shown(string(id)) {
		return nil
	}
	j.tellOf(&last, string(id), runtime.EventDeleted)
	return nil
}

// PutContainer implements Ledger.
func (j *journal) PutContainer(c runtime.Container) error {
	was := j.ContainerState(c.ID)
	if err := j.Ledger.PutContainer(c); err != nil {
		return err
	}
	j.containerMoved(&c, was)
	return nil
}

// ChangeContainer implements Ledger.
func (j *journal) ChangeContainer(id runtime.ContainerID, f func(c *runtime.Container) error) (runtime.Container, error) {
	var was runtime.ContainerState
	c, err := j.Ledger.ChangeContainer(id, func(c *runtime.Container) error {
		was = c.State
		return f(c)
	})
	if err == nil {
		j.containerMoved(&c, was)
	}
	return c, err
}

func (j *journal) containerMoved(c *runtime.Container, was runtime.ContainerState) {
	if was == c.State {
		return
	}
	switch c.State {
	case runtime.ContainerCreated:
		j.tell(c.PodID, string(c.ID), runtime.EventCreated)
	case runtime.ContainerRunning:
		j.tell(c.PodID, string(c.ID), runtime.EventStarted)
	case runtime.ContainerExited:
		j.tell(c.PodID, string(c.ID), runtime.EventStopped)
	case runtime.ContainerRemoving:
		switch was {
		case runtime.ContainerCreating:
			j.hide(string(c.ID))
		case runtime.ContainerRunning:
			j.tell(c.PodID, string(c.ID), runtime.EventStopped)
		case runtime.ContainerCreated, runtime.ContainerExited, runtime.ContainerRemoving:
		}
	case runtime.ContainerCreating:
	}
}

// DeleteContainer implements Ledger.
func (j *journal) DeleteContainer(id runtime.ContainerID) error {
	c, err := j.Container(id)
	if err != nil {
		return j.Ledger.DeleteContainer(id)
	}
	if err := j.Ledger.DeleteContainer(id); err != nil {
		return err
	}
	if j.shown(string(id)) {
		j.tell(c.PodID, string(id), runtime.EventDeleted)
	}
	return nil
}

func (j *journal) hide(id string) {
	j.mu.Lock()
	j.hidden[id] = true
	j.mu.Unlock()
}

// shown tells whether clients have seen what is now deleted.
func (j *journal) shown(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	hidden := j.hidden[id]
	delete(j.hidden, id)
	return !hidden
}

// tell reports events of a pod that has a record.
func (j *journal) tell(pod runtime.PodID, id string, types ...runtime.EventType) {
	if j.readers.Load() == 0 {
		return
	}
	if p, err := j.Pod(pod); err == nil {
		j.tellOf(&p, id, types...)
	}
}

// tellOf reports events of pod p, of which the ledger may know something newer.
func (j *journal) tellOf(p *runtime.Pod, id string, types ...runtime.EventType) {
	if j.readers.Load() == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if newer, err := j.Pod(p.ID); err == nil {
		p = &newer
	}
	containers := j.ContainerViewsOf(p.ID)
	for _, t := range types {
		j.last = max(time.Now().UnixNano(), j.last+1)
		e := &runtime.Event{Type: t, ID: id, At: j.last, Pod: *p, Containers: containers}
		for s := range j.subs {
			s.put(e)
		}
	}
}

// put queues an event. Once one is lost no other is queued: what comes after a
// gap would look complete.
func (s *subscription) put(e *runtime.Event) {
	if s.lost.Load() == 0 {
		select {
		case s.events <- e:
			return
		default:
		}
	}
	s.lost.Add(1)
}

func (j *journal) subscribe() (*subscription, error) {
	s := &subscription{events: make(chan *runtime.Event, eventBuffer), end: make(chan struct{})}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, fmt.Errorf("%w: the daemon is stopping", runtime.ErrUnavailable)
	}
	j.subs[s] = struct{}{}
	j.readers.Add(1)
	return s, nil
}

func (j *journal) unsubscribe(s *subscription) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.subs[s]; ok {
		delete(j.subs, s)
		j.readers.Add(-1)
	}
}

// end closes all subscriptions and lets none begin.
func (j *journal) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.closed = true
	for s := range j.subs {
		close(s.end)
	}
}

// next waits for an event. Those that were queued before a loss come first.
func (s *subscription) next(ctx context.Context) (*runtime.Event, error) {
	select {
	case e := <-s.events:
		return e, nil
	default:
	}
	if n := s.lost.Load(); n > 0 {
		return nil, fmt.Errorf("%w: %d or more did not fit into this reader's buffer of %d: list again and subscribe anew",
			runtime.ErrLost, n, eventBuffer)
	}
	select {
	case e := <-s.events:
		return e, nil
	case <-s.end:
		return nil, fmt.Errorf("%w: the daemon is stopping", runtime.ErrUnavailable)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Events calls each for every event from now on, in order, until ctx ends or
// each fails. It calls ready once, when no later event can be missed. A caller
// that is too slow gets an error that wraps runtime.ErrLost.
func (m *Manager) Events(ctx context.Context, ready func() error, each func(*runtime.Event) error) error {
	s, err := m.journal.subscribe()
	if err != nil {
		return err
	}
	defer m.journal.unsubscribe(s)
	if err := ready(); err != nil {
		return err
	}
	for {
		e, err := s.next(ctx)
		if err != nil {
			return err
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// EndEvents ends every call of Events with runtime.ErrUnavailable and refuses
// new ones: streams without an end would hold up the server's stop.
func (m *Manager) EndEvents() { m.journal.end() }
