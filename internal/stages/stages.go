// Package stages measures where the time of a call goes. A call carries a
// Recorder's view in its context; every layer it passes marks its stages with
//
//	defer stages.Start(ctx, "cni add")()
//
// and the Recorder sums count and time per call name and stage. Without a
// recorder in the context a stage costs one context look-up and no clock.
//
// Invariants:
//   - stages may nest and overlap, so their sum may exceed the call's own time;
//   - names are constants of the program: the tables are bounded by the code,
//     and a table that grows past maxStages drops what is new.
package stages

import (
	"context"
	"sync"
	"time"
)

// maxStages bounds the stages of one call name against a name made at run time.
const maxStages = 256

// Stat is the sum of one stage, or of a whole call.
type Stat struct {
	Count   uint64 `json:"count"`
	TotalNS int64  `json:"totalNS"`
	MaxNS   int64  `json:"maxNS"`
}

func (s *Stat) add(d time.Duration) {
	s.Count++
	s.TotalNS += int64(d)
	s.MaxNS = max(s.MaxNS, int64(d))
}

// Call is the sum of all calls of one name.
type Call struct {
	Stat
	Stages map[string]Stat `json:"stages,omitempty"`
}

// Recorder sums. The zero value is not ready; use New.
type Recorder struct {
	mu    sync.Mutex
	calls map[string]*call // guarded by mu
}

type call struct {
	mu     sync.Mutex
	total  Stat             // guarded by mu
	stages map[string]*Stat // guarded by mu
}

type key struct{}

func nothing() {}

// New returns an empty Recorder.
func New() *Recorder { return &Recorder{calls: map[string]*call{}} }

// Begin starts a call; the context it returns carries the call to Start, and
// the function ends it. A nil Recorder records nothing.
func (r *Recorder) Begin(ctx context.Context, name string) (context.Context, func()) {
	if r == nil {
		return ctx, nothing
	}
	r.mu.Lock()
	c := r.calls[name]
	if c == nil {
		c = &call{stages: map[string]*Stat{}}
		r.calls[name] = c
	}
	r.mu.Unlock()
	begin := time.Now()
	return context.WithValue(ctx, key{}, c), func() {
		d := time.Since(begin)
		c.mu.Lock()
		c.total.add(d)
		c.mu.Unlock()
	}
}

// Start starts a stage of the call that ctx carries; call the result to end it.
func Start(ctx context.Context, name string) func() {
	c, _ := ctx.Value(key{}).(*call)
	if c == nil {
		return nothing
	}
	begin := time.Now()
	return func() { c.add(name, time.Since(begin)) }
}

// Add counts a stage that was measured elsewhere, in another process say.
func Add(ctx context.Context, name string, d time.Duration) {
	if c, _ := ctx.Value(key{}).(*call); c != nil {
		c.add(name, d)
	}
}

func (c *call) add(name string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stages[name]
	if s == nil {
		if len(c.stages) >= maxStages {
			return
		}
		s = &Stat{}
		c.stages[name] = s
	}
	s.add(d)
}

// Snapshot returns a copy of all sums, by call name.
func (r *Recorder) Snapshot() map[string]Call {
	out := map[string]Call{}
	if r == nil {
		return out
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, c := range r.calls {
		c.mu.Lock()
		v := Call{Stat: c.total, Stages: make(map[string]Stat, len(c.stages))}
		for stage, s := range c.stages {
			v.Stages[stage] = *s
		}
		c.mu.Unlock()
		out[name] = v
	}
	return out
}

// Reset forgets all sums. Calls under way are lost to the next snapshot.
func (r *Recorder) Reset() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.calls = map[string]*call{}
	r.mu.Unlock()
}
