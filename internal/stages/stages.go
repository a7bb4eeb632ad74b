// Package stages measures where the time of a call goes. A call carries a
// Recorder's view in its context; every layer it passes marks its stages with
//
//	defer stages.Start(ctx, "rootfs")()
//
// or, where the error or what lies below matters,
//
//	ctx, end := stages.Enter(ctx, "cni ADD")
//	...
//	end(err)
//
// and the Recorder sums count and time per call name and stage, knows which
// calls run and in which stage they are, and tells its observers. Without a
// recorder in the context a stage costs one context look-up and no clock.
//
// Invariants:
//   - stages may nest and overlap, so their sum may exceed the call's own time;
//   - names are constants of the program: the tables are bounded by the code,
//     and a table that grows past maxStages drops what is new; what varies is
//     an attribute, which only observers see.
package stages

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
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

// Active is a call under way.
type Active struct {
	Call    string    `json:"call"`
	Stage   string    `json:"stage,omitempty"` // the last that was entered
	Started time.Time `json:"started"`
}

// Attr is something that varies about a stage, such as a plugin's name.
type Attr struct{ Key, Value string }

// Observer is told of calls and stages as they begin and end. It may add to
// the context, which all that lies below will carry; it must not block. The
// stage of the call itself is "".
type Observer interface {
	Begin(ctx context.Context, call, stage string, attrs []Attr) (context.Context, End)
}

// End ends what an observer was told of. It may be nil.
type End func(d time.Duration, err error)

// Recorder sums. The zero value is not ready; use New.
type Recorder struct {
	observers []Observer // not changed after the first call

	mu     sync.Mutex
	calls  map[string]*call     // guarded by mu
	active map[*active]struct{} // guarded by mu
}

type call struct {
	mu     sync.Mutex
	total  Stat             // guarded by mu
	stages map[string]*Stat // guarded by mu
}

// active is one call under way; it lives in the context.
type active struct {
	*call
	recorder *Recorder
	name     string
	begin    time.Time
	stage    atomic.Pointer[string]
}

type key struct{}

func nothing()         {}
func nothingErr(error) {}

// New returns an empty Recorder that tells observers.
func New(observers ...Observer) *Recorder {
	return &Recorder{observers: observers, calls: map[string]*call{}, active: map[*active]struct{}{}}
}

// Begin starts a call; the context it returns carries the call to Start, and
// the function ends it. A nil Recorder records nothing.
func (r *Recorder) Begin(ctx context.Context, name string, attrs ...Attr) (context.Context, func(error)) {
	if r == nil {
		return ctx, nothingErr
	}
	a := &active{recorder: r, name: name, begin: time.Now()}
	r.mu.Lock()
	c := r.calls[name]
	if c == nil {
		c = &call{stages: map[string]*Stat{}}
		r.calls[name] = c
	}
	a.call = c
	r.active[a] = struct{}{}
	r.mu.Unlock()
	ctx, ends := r.tell(context.WithValue(ctx, key{}, a), name, "", attrs)
	return ctx, func(err error) {
		d := time.Since(a.begin)
		r.mu.Lock()
		delete(r.active, a)
		r.mu.Unlock()
		c.mu.Lock()
		c.total.add(d)
		c.mu.Unlock()
		finish(ends, d, err)
	}
}

func (r *Recorder) tell(ctx context.Context, call, stage string, attrs []Attr) (context.Context, []End) {
	if len(r.observers) == 0 {
		return ctx, nil
	}
	ends := make([]End, 0, len(r.observers))
	for _, o := range r.observers {
		var end End
		if ctx, end = o.Begin(ctx, call, stage, attrs); end != nil {
			ends = append(ends, end)
		}
	}
	return ctx, ends
}

func finish(ends []End, d time.Duration, err error) {
	for i := len(ends) - 1; i >= 0; i-- {
		ends[i](d, err)
	}
}

// Start starts a stage of the call that ctx carries; call the result to end it.
func Start(ctx context.Context, name string, attrs ...Attr) func() {
	if a, _ := ctx.Value(key{}).(*active); a == nil {
		return nothing
	}
	_, end := Enter(ctx, name, attrs...)
	return func() { end(nil) }
}

// Enter starts a stage whose error and whose own stages matter.
func Enter(ctx context.Context, name string, attrs ...Attr) (context.Context, func(error)) {
	a, _ := ctx.Value(key{}).(*active)
	if a == nil {
		return ctx, nothingErr
	}
	a.stage.Store(&name)
	ctx, ends := a.recorder.tell(ctx, a.name, name, attrs)
	begin := time.Now()
	return ctx, func(err error) {
		d := time.Since(begin)
		a.add(name, d)
		finish(ends, d, err)
	}
}

// Add counts a stage that was measured elsewhere, in another process say.
func Add(ctx context.Context, name string, d time.Duration) {
	if a, _ := ctx.Value(key{}).(*active); a != nil {
		a.add(name, d)
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

// Active lists the calls under way, the oldest first.
func (r *Recorder) Active() []Active {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Active, 0, len(r.active))
	for a := range r.active {
		v := Active{Call: a.name, Started: a.begin}
		if s := a.stage.Load(); s != nil {
			v.Stage = *s
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Active) int { return a.Started.Compare(b.Started) })
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
