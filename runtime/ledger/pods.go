package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/ocid-io/ocid/runtime"
)

// PutPod writes the record to disk, then to memory. A move that the state
// machine does not know wraps runtime.ErrState; a record that is malformed, or
// that changes what identifies the pod, wraps runtime.ErrInvalid.
func (l *Ledger) PutPod(p runtime.Pod) error {
	if p.Version == 0 {
		p.Version = runtime.RecordVersion
	}
	if err := checkPod(&p); err != nil {
		return fmt.Errorf("put pod %s: %w: %w", p.ID, runtime.ErrInvalid, err)
	}
	rec := clonePod(&p)
	ch := l.changeOfPod(p.ID)
	ch.rec = &rec
	if err := put(l, ch); err != nil {
		return fmt.Errorf("put pod %s: %w", p.ID, err)
	}
	return nil
}

// ChangePod lets f change the record and returns what is recorded now. Nothing
// comes between what f sees and what is written. An error of f leaves all as it
// was and is wrapped; so is runtime.ErrNotFound. f must not use the ledger.
func (l *Ledger) ChangePod(id runtime.PodID, f func(p *runtime.Pod) error) (runtime.Pod, error) {
	var out runtime.Pod
	err := alter(l, l.changeOfPod(id), func(old *runtime.Pod) (*runtime.Pod, error) {
		p := clonePod(old)
		if err := f(&p); err != nil {
			return nil, err
		}
		if err := checkPod(&p); err != nil || p.ID != id {
			return nil, errors.Join(runtime.ErrInvalid, err)
		}
		// f may have left pointers of its caller's in it.
		p = clonePod(&p)
		out = clonePod(&p)
		return &p, nil
	})
	if err != nil {
		return runtime.Pod{}, fmt.Errorf("change pod %q: %w", id, err)
	}
	return out, nil
}

func (l *Ledger) changeOfPod(id runtime.PodID) change[runtime.PodID, runtime.Pod] {
	return change[runtime.PodID, runtime.Pod]{
		table: l.pods, list: &l.podList, dir: podsDir, id: id, admit: l.admitPod, retire: l.unnamePod,
	}
}

func (l *Ledger) admitPod(old, rec *runtime.Pod) error {
	if old != nil {
		if old.Config.Name != rec.Config.Name {
			return fmt.Errorf("%w: the name of a pod does not change", runtime.ErrInvalid)
		}
		_, err := runtime.MovePod(old.State, rec.State)
		return err
	}
	if rec.State != runtime.PodCreating {
		return fmt.Errorf("%w: a pod begins in state %s, not %s", runtime.ErrState, runtime.PodCreating, rec.State)
	}
	// A pod on its way out gives its name up; any other keeps it.
	if id, taken := l.podNames[rec.Config.Name]; taken {
		if other := l.pods[id]; other != nil && (other.rec == nil || other.rec.State != runtime.PodRemoving) {
			return fmt.Errorf("%w: pod %s has the same name", runtime.ErrState, id)
		}
	}
	l.podNames[rec.Config.Name] = rec.ID
	return nil
}

// unnamePod must be called with l.mu held.
func (l *Ledger) unnamePod(p *runtime.Pod) {
	if l.podNames[p.Config.Name] == p.ID {
		delete(l.podNames, p.Config.Name)
	}
}

// podRec answers from memory; nil if there is no such record.
func (l *Ledger) podRec(id runtime.PodID) *runtime.Pod {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if e := l.pods[id]; e != nil {
		return e.rec
	}
	return nil
}

// Pod returns a copy of the record, or an error that wraps runtime.ErrNotFound.
func (l *Ledger) Pod(id runtime.PodID) (runtime.Pod, error) {
	rec := l.podRec(id)
	if rec == nil {
		return runtime.Pod{}, fmt.Errorf("pod %q: %w", id, runtime.ErrNotFound)
	}
	return clonePod(rec), nil
}

// Pods returns copies of all records, oldest first.
func (l *Ledger) Pods() []runtime.Pod {
	recs := l.PodViews()
	out := make([]runtime.Pod, len(recs))
	for i, r := range recs {
		out[i] = clonePod(r)
	}
	return out
}

// PodViews returns all records, oldest first. They are the ledger's own: the
// caller must change neither them nor the slice. A record never changes; a
// later Put replaces it by another.
func (l *Ledger) PodViews() []*runtime.Pod {
	l.mu.RLock()
	list := l.podList
	l.mu.RUnlock()
	if list != nil {
		return list
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	recs := make([]*runtime.Pod, 0, len(l.pods))
	for _, e := range l.pods {
		if e.rec != nil {
			recs = append(recs, e.rec)
		}
	}
	slices.SortFunc(recs, func(a, b *runtime.Pod) int {
		return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	l.podList = recs
	return recs
}

// PodState answers from memory without a copy; "" if there is no such pod.
func (l *Ledger) PodState(id runtime.PodID) runtime.PodState {
	if rec := l.podRec(id); rec != nil {
		return rec.State
	}
	return ""
}

// PodByName finds the pod that has a name. While a pod is being removed and
// another has taken its name, it is the other.
func (l *Ledger) PodByName(n runtime.PodName) (runtime.Pod, bool) {
	l.mu.RLock()
	id, ok := l.podNames[n]
	l.mu.RUnlock()
	if !ok {
		return runtime.Pod{}, false
	}
	rec := l.podRec(id)
	if rec == nil {
		return runtime.Pod{}, false
	}
	return clonePod(rec), true
}

// DeletePod forgets a pod. Deleting one that is not there is no error; one
// that has containers is refused with runtime.ErrState.
func (l *Ledger) DeletePod(id runtime.PodID) error {
	err := remove(l, l.pods, &l.podList, podsDir, id, func() error {
		if n := len(l.containersOf[id]); n > 0 {
			return fmt.Errorf("%w: it still has %d containers", runtime.ErrState, n)
		}
		return nil
	}, l.unnamePod)
	if err != nil {
		return fmt.Errorf("delete pod %s: %w", id, err)
	}
	return nil
}
