// Package ledger owns the records of all pods and containers, on disk and in
// memory. Nobody else reads or writes the files.
//
// Layout of the directory:
//
//	lock                   held (flock) by the one process that has it open
//	pods/<id>.json         one record
//	containers/<id>.json   one record
//	damaged/               records set aside, see Damaged
//
// Invariants:
//   - a record in memory is on disk; a record is replaced by rename, so that a
//     process killed at any moment leaves each record old or new, never torn;
//   - a Put costs the same whatever the number of records: one file is written;
//   - values are immutable once inside: they are copied on the way in and out;
//   - a record only moves along runtime.MovePod and runtime.MoveContainer, its
//     identity never changes, and it begins in state creating;
//   - a pod with containers cannot be deleted, and a container is put for the
//     first time only while its pod is being made or ready;
//   - a Change sees the record that its result replaces: nothing gets lost
//     between, and what is deleted does not come back;
//   - a record that cannot be used never stops Open.
//
// Records are not flushed to the device: pods do not outlive a reboot, and a
// record that a power cut has emptied is reported as damaged with the id of
// its file name, which is enough to clean up after it.
//
// Lock order: entry.mu (one record, held across its disk write), then
// Ledger.mu (memory only, never held across a system call).
package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/internal/cleanup"
	"github.com/ocid-io/ocid/internal/filelock"
	"github.com/ocid-io/ocid/runtime"
)

const (
	podsDir       = "pods"
	containersDir = "containers"
	damagedDir    = "damaged"
	lockFile      = "lock"
	suffix        = ".json"
)

// containerKey is the identity of a container by name.
type containerKey struct {
	pod  runtime.PodID
	name runtime.ContainerName
}

// Ledger implements lifecycle.Ledger. All methods may be called concurrently.
type Ledger struct {
	dir  string
	log  *slog.Logger
	lock *os.File

	mu             sync.RWMutex
	pods           map[runtime.PodID]*entry[runtime.Pod]
	containers     map[runtime.ContainerID]*entry[runtime.Container]
	podNames       map[runtime.PodName]runtime.PodID
	containerNames map[containerKey]runtime.ContainerID
	containersOf   map[runtime.PodID]map[runtime.ContainerID]struct{}
	damaged        []Damage
	// All records oldest first, nil after a change until somebody asks.
	podList       []*runtime.Pod
	containerList []*runtime.Container
}

// entry is the place of one record.
type entry[R any] struct {
	mu   sync.Mutex // serialises changes of this record, disk and memory
	gone bool       // guarded by mu: no longer in the map, look again

	rec     *R   // guarded by Ledger.mu; nil before the first Put is on disk
	leaving bool // guarded by Ledger.mu: being deleted
}

// Open reads the ledger in dir, which is created if absent. Records that
// cannot be used are set aside and reported by Damaged. It fails if another
// process has the ledger open, or if the directory itself cannot be used.
func Open(dir string, log *slog.Logger) (*Ledger, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{podsDir, containersDir, damagedDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open ledger: %w", err)
		}
	}
	l := &Ledger{
		dir: dir, log: log,
		pods:           map[runtime.PodID]*entry[runtime.Pod]{},
		containers:     map[runtime.ContainerID]*entry[runtime.Container]{},
		podNames:       map[runtime.PodName]runtime.PodID{},
		containerNames: map[containerKey]runtime.ContainerID{},
		containersOf:   map[runtime.PodID]map[runtime.ContainerID]struct{}{},
	}
	var undo cleanup.Stack
	defer func() { _ = undo.Run() }()
	if err := l.takeLock(); err != nil {
		return nil, err
	}
	undo.Add(l.lock.Close)
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	undo.Release()
	return l, nil
}

// takeLock keeps a second daemon away from the same records.
func (l *Ledger) takeLock() error {
	f, err := os.OpenFile(filepath.Join(l.dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open ledger: %w", err)
	}
	if err := filelock.Take(f); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("open ledger: %s is in use by another process: %w", l.dir, runtime.ErrUnavailable)
		}
		return fmt.Errorf("open ledger: lock %s: %w", f.Name(), err)
	}
	l.lock = f
	return nil
}

// Close gives the directory up. No other method may be called after it.
func (l *Ledger) Close() error { return l.lock.Close() }

// acquire returns the entry for id with its mutex held, made if it is absent
// and make is set; nil if it is absent.
func acquire[ID comparable, R any](l *Ledger, m map[ID]*entry[R], id ID, create bool) *entry[R] {
	for {
		l.mu.Lock()
		e := m[id]
		if e == nil && create {
			e = &entry[R]{}
			m[id] = e
		}
		l.mu.Unlock()
		if e == nil {
			return nil
		}
		e.mu.Lock()
		if !e.gone {
			return e
		}
		e.mu.Unlock()
	}
}

// change is what differs between pods and containers in a Put.
type change[ID ~string, R any] struct {
	table  map[ID]*entry[R]
	list   *[]*R // guarded by Ledger.mu
	dir    string
	id     ID
	rec    *R
	admit  func(old, rec *R) error // under Ledger.mu: checks, and reserves names
	retire func(rec *R)            // under Ledger.mu: gives reserved names back
}

func put[ID ~string, R any](l *Ledger, c change[ID, R]) error {
	data, err := encode(c.rec)
	if err != nil {
		return err
	}
	e := acquire(l, c.table, c.id, true)
	defer e.mu.Unlock()
	return commit(l, e, c, data)
}

// alter replaces a record by what f makes of it. Nobody else changes the
// record, or deletes it, from before f reads it until its successor is in.
func alter[ID ~string, R any](l *Ledger, c change[ID, R], f func(old *R) (*R, error)) error {
	e := acquire(l, c.table, c.id, false)
	if e == nil {
		return runtime.ErrNotFound
	}
	defer e.mu.Unlock()
	// Whoever replaces e.rec holds e.mu too, so that it can be read without Ledger.mu.
	rec, err := f(e.rec)
	if err != nil {
		return err
	}
	data, err := encode(rec)
	if err != nil {
		return err
	}
	c.rec = rec
	return commit(l, e, c, data)
}

// commit writes c.rec, which data encodes. e.mu is held.
func commit[ID ~string, R any](l *Ledger, e *entry[R], c change[ID, R], data []byte) error {
	l.mu.Lock()
	fresh := e.rec == nil
	err := c.admit(e.rec, c.rec)
	if err != nil && fresh {
		delete(c.table, c.id)
		e.gone = true
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}

	err = atomicfile.Write(l.path(c.dir, string(c.id)), data, 0o600)

	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		e.rec = c.rec
		*c.list = nil
	case fresh:
		c.retire(c.rec)
		delete(c.table, c.id)
		e.gone = true
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// remove deletes a record; allow is asked under Ledger.mu, forget is told
// under Ledger.mu when the file is gone.
func remove[ID ~string, R any](l *Ledger, m map[ID]*entry[R], list *[]*R, dir string, id ID, allow func() error, forget func(*R)) error {
	e := acquire(l, m, id, false)
	if e == nil {
		return nil
	}
	defer e.mu.Unlock()
	l.mu.Lock()
	err := allow()
	e.leaving = err == nil
	l.mu.Unlock()
	if err != nil {
		return err
	}
	err = os.Remove(l.path(dir, string(id)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		e.leaving = false
		return fmt.Errorf("delete record: %w", err)
	}
	forget(e.rec)
	delete(m, id)
	*list = nil
	e.gone = true
	return nil
}

func (l *Ledger) path(dir, id string) string { return filepath.Join(l.dir, dir, id+suffix) }
