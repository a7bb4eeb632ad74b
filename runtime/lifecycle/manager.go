package lifecycle

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// Options is what a Manager is made of. All interface fields are required.
type Options struct {
	RunDir       string // pods' run directories live in RunDir/pods; on tmpfs
	Ledger       Ledger
	Images       Images
	Namespaces   Namespaces
	Network      Network
	Dialer       Dialer
	Monitors     Monitors
	MountShm     func(dir string, size int64) error
	CgroupParent string   // for pods that name none; a slice with the systemd driver
	Systemd      bool     // cgroups are made by systemd: slices and scopes
	Cgroups      Cgroups  // nil: the cgroups above a pod are left alone
	CgroupV2     bool     // the host has a unified hierarchy only
	DaemonCaps   []string // capabilities that may be handed on
	MinOOMScore  int
	BootID       string
	SeccompRoot  string // localhost profiles with relative paths; "" refuses them
	Usage        UsageReader
	UpperDir     func(id string) string // writable layer of a root file system; nil: not measured
	// CheckpointDir is for files of checkpoints and restores under way; on disk,
	// of this Manager alone. "" refuses both.
	CheckpointDir string
	// Stat tells whether a mount source is there, in bounded time whatever file
	// system it is on; nil is os.Stat.
	Stat          func(ctx context.Context, path string) error
	Extensions    Extensions
	Plugins       Plugins // nil: none
	Log           *slog.Logger
	OperationTime time.Duration // limit of one operation; 0 is four minutes
	AnswerTime    time.Duration // how long a monitor may take to join or to end; 0 is 15 seconds
	FirstRetry    time.Duration // pause before a failed clean-up is tried again; 0 is a second
}

// Manager carries out operations on pods and containers.
// Lock order: a pod's turn, then a container's turn, then mu.
type Manager struct {
	o       Options
	log     *slog.Logger
	journal *journal // what o.Ledger is

	flights  flights
	lacking  lacking
	counters counters
	uppers   uppers
	podTurn  turns
	ctrTurn  turns

	forwards forwards

	mu   sync.Mutex
	pods map[runtime.PodID]Monitor              // guarded by mu: connected monitors
	live map[runtime.ContainerID]*liveContainer // guarded by mu
	// podReadings are what was last read of pods; guarded by mu.
	podReadings map[runtime.PodID]*reading
	// retrying holds the objects whose clean-up is tried again; guarded by mu.
	retrying map[string]bool
}

// liveContainer is what is known of a container only while this process runs.
type liveContainer struct {
	gone    chan struct{} // closed when the record says exited, or is gone
	once    sync.Once
	process specs.Process // template for exec; Args empty until loaded
	loaded  bool
	usage   reading
	upper   upperUsage
}

// New returns a Manager; call Reconcile before any other method.
func New(o Options) *Manager {
	if o.OperationTime == 0 {
		o.OperationTime = 4 * time.Minute
	}
	if o.AnswerTime == 0 {
		o.AnswerTime = 15 * time.Second
	}
	if o.FirstRetry == 0 {
		o.FirstRetry = firstRetry
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	j := newJournal(o.Ledger)
	o.Ledger = j
	m := &Manager{
		o: o, log: o.Log, journal: j,
		flights: flights{ops: map[string]*operation{}},
		podTurn: turns{held: map[string]*turn{}},
		ctrTurn: turns{held: map[string]*turn{}},
		pods:    map[runtime.PodID]Monitor{},
		live:    map[runtime.ContainerID]*liveContainer{},

		retrying:    map[string]bool{},
		podReadings: map[runtime.PodID]*reading{},
	}
	o.Monitors.OnLoss(m.lost)
	return m
}

// Drain waits for the operations in flight, or for ctx.
func (m *Manager) Drain(ctx context.Context) {
	done := make(chan struct{})
	go func() { m.flights.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func (m *Manager) podDir(id runtime.PodID) string {
	return filepath.Join(m.o.RunDir, "pods", string(id))
}

func (m *Manager) nsDir(id runtime.PodID) string { return filepath.Join(m.podDir(id), "ns") }

func (m *Manager) bundle(c *runtime.Container) string {
	return filepath.Join(m.podDir(c.PodID), "containers", string(c.ID))
}

// monitor returns the pod's monitor, connecting when it has to.
func (m *Manager) monitor(ctx context.Context, id runtime.PodID) (Monitor, error) {
	m.mu.Lock()
	mon := m.pods[id]
	m.mu.Unlock()
	if mon != nil {
		return mon, nil
	}
	mon, err := m.o.Monitors.Connect(ctx, id, m.podDir(id))
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.pods[id]; old != nil {
		return old, nil
	}
	m.pods[id] = mon
	return mon, nil
}

func (m *Manager) liveOf(id runtime.ContainerID) *liveContainer {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.live[id]
	if l == nil {
		l = &liveContainer{gone: make(chan struct{})}
		m.live[id] = l
	}
	return l
}

func (m *Manager) forget(id runtime.ContainerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.live[id]; l != nil {
		l.upper.gone.Store(true)
		l.end()
		delete(m.live, id)
	}
}

// end wakes who waits for the container's end. Idempotent.
func (l *liveContainer) end() { l.once.Do(func() { close(l.gone) }) }

// Pod finds a pod by id or by an unambiguous prefix of it.
func (m *Manager) Pod(id string) (runtime.Pod, error) {
	if len(id) == 64 {
		return m.o.Ledger.Pod(runtime.PodID(id))
	}
	var found []runtime.PodID
	for _, p := range m.o.Ledger.PodViews() {
		if id != "" && strings.HasPrefix(string(p.ID), id) {
			found = append(found, p.ID)
		}
	}
	if len(found) != 1 {
		return runtime.Pod{}, noSingle("pod", id, len(found))
	}
	return m.o.Ledger.Pod(found[0])
}

// Container finds a container by id or by an unambiguous prefix of it.
func (m *Manager) Container(id string) (runtime.Container, error) {
	if len(id) == 64 {
		return m.o.Ledger.Container(runtime.ContainerID(id))
	}
	var found []runtime.ContainerID
	for _, c := range m.o.Ledger.ContainerViews() {
		if id != "" && strings.HasPrefix(string(c.ID), id) {
			found = append(found, c.ID)
		}
	}
	if len(found) != 1 {
		return runtime.Container{}, noSingle("container", id, len(found))
	}
	return m.o.Ledger.Container(found[0])
}

func noSingle(what, id string, n int) error {
	if n == 0 {
		return fmt.Errorf("%s %q: %w", what, id, runtime.ErrNotFound)
	}
	return fmt.Errorf("%s %q: %w: %d ids begin with that", what, id, runtime.ErrInvalid, n)
}

// Pods lists all pods, those being made or removed too.
func (m *Manager) Pods() []runtime.Pod { return m.o.Ledger.Pods() }

// Containers lists all containers, those being made or removed too.
func (m *Manager) Containers() []runtime.Container { return m.o.Ledger.Containers() }

// PodViews and ContainerViews are Pods and Containers without copies: nobody
// may change what they return.
func (m *Manager) PodViews() []*runtime.Pod { return m.o.Ledger.PodViews() }

// ContainerViews lists all containers, see PodViews.
func (m *Manager) ContainerViews() []*runtime.Container { return m.o.Ledger.ContainerViews() }

// ContainerViewsOf lists the containers of one pod, see PodViews.
func (m *Manager) ContainerViewsOf(id runtime.PodID) []*runtime.Container {
	return m.o.Ledger.ContainerViewsOf(id)
}

// NetworkReady reports nil or why pods cannot be attached now.
func (m *Manager) NetworkReady() error { return m.o.Network.Ready() }

func (m *Manager) knownHandler(name string) error {
	all := m.o.Monitors.Handlers()
	for _, h := range all {
		if h == name {
			return nil
		}
	}
	if name == "" {
		return nil
	}
	return fmt.Errorf("%w: no runtime handler %q is configured (there are: %s)",
		runtime.ErrInvalid, name, strings.Join(all, ", "))
}

func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
