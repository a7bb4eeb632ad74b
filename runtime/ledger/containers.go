package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ocid-io/ocid/runtime"
)

// PutContainer is PutPod for containers. The first Put of a container fails
// with runtime.ErrNotFound if its pod has no record.
func (l *Ledger) PutContainer(c runtime.Container) error {
	if c.Version == 0 {
		c.Version = runtime.RecordVersion
	}
	if err := checkContainer(&c); err != nil {
		return fmt.Errorf("put container %s: %w: %w", c.ID, runtime.ErrInvalid, err)
	}
	rec := cloneContainer(&c)
	ch := l.changeOfContainer(c.ID)
	ch.rec = &rec
	if err := put(l, ch); err != nil {
		return fmt.Errorf("put container %s: %w", c.ID, err)
	}
	return nil
}

// ChangeContainer is ChangePod for containers.
func (l *Ledger) ChangeContainer(id runtime.ContainerID, f func(c *runtime.Container) error) (runtime.Container, error) {
	var out runtime.Container
	err := alter(l, l.changeOfContainer(id), func(old *runtime.Container) (*runtime.Container, error) {
		c := cloneContainer(old)
		if err := f(&c); err != nil {
			return nil, err
		}
		if err := checkContainer(&c); err != nil || c.ID != id {
			return nil, errors.Join(runtime.ErrInvalid, err)
		}
		c = cloneContainer(&c) // f may have left pointers of its caller's in it
		out = cloneContainer(&c)
		return &c, nil
	})
	if err != nil {
		return runtime.Container{}, fmt.Errorf("change container %q: %w", id, err)
	}
	return out, nil
}

func (l *Ledger) changeOfContainer(id runtime.ContainerID) change[runtime.ContainerID, runtime.Container] {
	return change[runtime.ContainerID, runtime.Container]{
		table: l.containers, list: &l.containerList, dir: containersDir, id: id,
		admit: l.admitContainer, retire: l.unindexContainer,
	}
}

func (l *Ledger) admitContainer(old, rec *runtime.Container) error {
	if old != nil {
		if old.PodID != rec.PodID || old.Config.Name != rec.Config.Name {
			return fmt.Errorf("%w: the pod and the name of a container do not change", runtime.ErrInvalid)
		}
		_, err := runtime.MoveContainer(old.State, rec.State)
		return err
	}
	if rec.State != runtime.ContainerCreating {
		return fmt.Errorf("%w: a container begins in state %s, not %s", runtime.ErrState, runtime.ContainerCreating, rec.State)
	}
	pod := l.pods[rec.PodID]
	if pod == nil || pod.rec == nil || pod.leaving {
		return fmt.Errorf("its pod %s: %w", rec.PodID, runtime.ErrNotFound)
	}
	if s := pod.rec.State; s != runtime.PodCreating && s != runtime.PodReady {
		return fmt.Errorf("%w: its pod is %s", runtime.ErrState, s)
	}
	if id, taken := l.containerNames[keyOf(rec)]; taken {
		if other := l.containers[id]; other != nil && (other.rec == nil || other.rec.State != runtime.ContainerRemoving) {
			return fmt.Errorf("%w: container %s has the same name", runtime.ErrState, id)
		}
	}
	l.indexContainer(rec)
	return nil
}

func keyOf(c *runtime.Container) containerKey {
	return containerKey{pod: c.PodID, name: c.Config.Name}
}

// indexContainer must be called with l.mu held.
func (l *Ledger) indexContainer(c *runtime.Container) {
	l.containerNames[keyOf(c)] = c.ID
	set := l.containersOf[c.PodID]
	if set == nil {
		set = map[runtime.ContainerID]struct{}{}
		l.containersOf[c.PodID] = set
	}
	set[c.ID] = struct{}{}
}

// unindexContainer must be called with l.mu held.
func (l *Ledger) unindexContainer(c *runtime.Container) {
	if l.containerNames[keyOf(c)] == c.ID {
		delete(l.containerNames, keyOf(c))
	}
	set := l.containersOf[c.PodID]
	delete(set, c.ID)
	if len(set) == 0 {
		delete(l.containersOf, c.PodID)
	}
}

// Container returns a copy of the record, or an error that wraps runtime.ErrNotFound.
func (l *Ledger) Container(id runtime.ContainerID) (runtime.Container, error) {
	rec := l.containerRec(id)
	if rec == nil {
		return runtime.Container{}, fmt.Errorf("container %q: %w", id, runtime.ErrNotFound)
	}
	return cloneContainer(rec), nil
}

// ContainerView returns the ledger's own record, which nobody may change.
func (l *Ledger) ContainerView(id runtime.ContainerID) (*runtime.Container, error) {
	rec := l.containerRec(id)
	if rec == nil {
		return nil, fmt.Errorf("container %q: %w", id, runtime.ErrNotFound)
	}
	return rec, nil
}

// containerRec answers from memory; nil if there is no such record.
func (l *Ledger) containerRec(id runtime.ContainerID) *runtime.Container {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if e := l.containers[id]; e != nil {
		return e.rec
	}
	return nil
}

// Containers returns copies of all records, oldest first.
func (l *Ledger) Containers() []runtime.Container { return cloneContainers(l.ContainerViews()) }

// ContainerViews is PodViews for containers.
func (l *Ledger) ContainerViews() []*runtime.Container {
	l.mu.RLock()
	list := l.containerList
	l.mu.RUnlock()
	if list != nil {
		return list
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	recs := make([]*runtime.Container, 0, len(l.containers))
	for _, e := range l.containers {
		if e.rec != nil {
			recs = append(recs, e.rec)
		}
	}
	sortContainers(recs)
	l.containerList = recs
	return recs
}

// ContainerState answers from memory without a copy; "" if there is none.
func (l *Ledger) ContainerState(id runtime.ContainerID) runtime.ContainerState {
	if rec := l.containerRec(id); rec != nil {
		return rec.State
	}
	return ""
}

// ContainersOf returns copies of the records of a pod's containers, oldest first.
func (l *Ledger) ContainersOf(id runtime.PodID) []runtime.Container {
	return cloneContainers(l.ContainerViewsOf(id))
}

// ContainerViewsOf is ContainerViews for one pod.
func (l *Ledger) ContainerViewsOf(id runtime.PodID) []*runtime.Container {
	l.mu.RLock()
	set := l.containersOf[id]
	recs := make([]*runtime.Container, 0, len(set))
	for cid := range set {
		if e := l.containers[cid]; e != nil && e.rec != nil {
			recs = append(recs, e.rec)
		}
	}
	l.mu.RUnlock()
	sortContainers(recs)
	return recs
}

func sortContainers(recs []*runtime.Container) {
	slices.SortFunc(recs, func(a, b *runtime.Container) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}

func cloneContainers(recs []*runtime.Container) []runtime.Container {
	out := make([]runtime.Container, len(recs))
	for i, r := range recs {
		out[i] = cloneContainer(r)
	}
	return out
}

// ContainerByName finds the container of a pod that has a name.
func (l *Ledger) ContainerByName(pod runtime.PodID, n runtime.ContainerName) (runtime.Container, bool) {
	l.mu.RLock()
	id, ok := l.containerNames[containerKey{pod: pod, name: n}]
	l.mu.RUnlock()
	if !ok {
		return runtime.Container{}, false
	}
	rec := l.containerRec(id)
	if rec == nil {
		return runtime.Container{}, false
	}
	return cloneContainer(rec), true
}

// DeleteContainer forgets a container. Deleting one that is not there is no error.
func (l *Ledger) DeleteContainer(id runtime.ContainerID) error {
	err := remove(l, l.containers, &l.containerList, containersDir, id, func() error { return nil }, l.unindexContainer)
	if err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}
