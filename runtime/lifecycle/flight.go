package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
)

// operation is one call in flight. It runs in a goroutine of its own with a
// context that the callers cannot cancel, so that it ends well whoever leaves.
type operation struct {
	what    string
	started time.Time
	stage   atomic.Pointer[string]
	done    chan struct{}
	result  string
	err     error
}

// enter names the stage that the operation is in now, for the callers that
// give up and for the trace; the returned function ends the stage.
func (o *operation) enter(ctx context.Context, stage string) func() {
	o.stage.Store(&stage)
	return stages.Start(ctx, stage)
}

// within is enter for a stage whose error and whose own stages matter.
func (o *operation) within(ctx context.Context, stage string) (context.Context, func(error)) {
	o.stage.Store(&stage)
	return stages.Enter(ctx, stage)
}

// flights joins operations with an equal key.
type flights struct {
	mu  sync.Mutex
	ops map[string]*operation // guarded by mu
	wg  sync.WaitGroup
}

// do runs fn under key, or joins the one that runs. limit bounds fn itself;
// ctx bounds only this caller's wait.
func (f *flights) do(ctx context.Context, key, what string, limit time.Duration, fn func(context.Context, *operation) (string, error)) (string, error) {
	f.mu.Lock()
	op, joined := f.ops[key]
	if !joined {
		op = &operation{what: what, started: time.Now(), done: make(chan struct{})}
		f.ops[key] = op
		f.wg.Add(1)
		go f.run(context.WithoutCancel(ctx), key, op, limit, fn)
	}
	f.mu.Unlock()
	select {
	case <-op.done:
		return op.result, op.err
	case <-ctx.Done():
		stage := "start"
		if s := op.stage.Load(); s != nil {
			stage = *s
		}
		return "", fmt.Errorf("%s: %w: stage %q, %s since the request; it goes on, and a retry joins it",
			what, ctx.Err(), stage, time.Since(op.started).Round(time.Millisecond))
	}
}

func (f *flights) run(ctx context.Context, key string, op *operation, limit time.Duration, fn func(context.Context, *operation) (string, error)) {
	defer f.wg.Done()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			op.err = fmt.Errorf("%s: panic: %v", op.what, p)
		}
		f.mu.Lock()
		delete(f.ops, key)
		f.mu.Unlock()
		close(op.done)
	}()
	op.result, op.err = fn(ctx, op)
	if op.err != nil && ctx.Err() != nil {
		op.err = fmt.Errorf("%w: %w (limit %s)", op.err, runtime.ErrTimeout, limit)
	}
}

// turns lets one caller at a time work on one key; waiting obeys the context.
// It orders the steps of one object's life and guards no shared data.
type turns struct {
	mu   sync.Mutex
	held map[string]*turn // guarded by mu
}

type turn struct {
	slot  chan struct{}
	users int
}

func (t *turns) take(ctx context.Context, key string) (func(), error) {
	t.mu.Lock()
	x, ok := t.held[key]
	if !ok {
		x = &turn{slot: make(chan struct{}, 1)}
		t.held[key] = x
	}
	x.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		if x.users--; x.users == 0 {
			delete(t.held, key)
		}
		t.mu.Unlock()
	}
	select {
	case x.slot <- struct{}{}:
		return func() { <-x.slot; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
