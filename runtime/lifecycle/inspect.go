package lifecycle

import (
	"slices"
	"sync/atomic"
	"time"
)

// Operation is an operation under way, with or without a caller that waits.
type Operation struct {
	What    string    `json:"what"`
	Stage   string    `json:"stage,omitempty"` // the last that was entered
	Started time.Time `json:"started"`
}

// Counts is what a Manager has counted since it was made.
type Counts struct {
	Monitors        int    `json:"monitors"` // connected
	MonitorsStarted uint64 `json:"monitorsStarted"`
	MonitorsLost    uint64 `json:"monitorsLost"`
	LeakedPods      uint64 `json:"leakedPods"`   // pod directories without a record
	LeakedRootFS    uint64 `json:"leakedRootFS"` // root file systems without a container
	Retrying        int    `json:"retrying"`     // clean-ups that failed and are tried again
}

type counters struct{ started, lost, pods, roots atomic.Uint64 }

// Operations lists the operations under way, the oldest first.
func (m *Manager) Operations() []Operation {
	f := &m.flights
	f.mu.Lock()
	out := make([]Operation, 0, len(f.ops))
	for _, op := range f.ops {
		o := Operation{What: op.what, Started: op.started}
		if s := op.stage.Load(); s != nil {
			o.Stage = *s
		}
		out = append(out, o)
	}
	f.mu.Unlock()
	slices.SortFunc(out, func(a, b Operation) int { return a.Started.Compare(b.Started) })
	return out
}

// Counts answers without a look at the world.
func (m *Manager) Counts() Counts {
	c := Counts{
		MonitorsStarted: m.counters.started.Load(), MonitorsLost: m.counters.lost.Load(),
		LeakedPods: m.counters.pods.Load(), LeakedRootFS: m.counters.roots.Load(),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.Monitors, c.Retrying = len(m.pods), len(m.retrying)
	return c
}
