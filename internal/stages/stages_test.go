package stages

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestSums(t *testing.T) {
	r := New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				ctx, end := r.Begin(context.Background(), "RunPodSandbox")
				// An operation that outlives its caller keeps its call.
				ctx = context.WithoutCancel(ctx)
				Start(ctx, "pin")()
				Add(ctx, "cni", 5*time.Nanosecond)
				end()
			}
		})
	}
	wg.Wait()
	got := r.Snapshot()["RunPodSandbox"]
	if got.Count != 800 || got.Stages["pin"].Count != 800 {
		t.Fatalf("counts: %+v", got)
	}
	if c := got.Stages["cni"]; c.TotalNS != 4000 || c.MaxNS != 5 {
		t.Fatalf("cni: %+v", c)
	}
	r.Reset()
	if len(r.Snapshot()) != 0 {
		t.Fatal("reset left something")
	}
}

func TestNoRecorder(t *testing.T) {
	Start(context.Background(), "x")()
	Add(context.Background(), "x", 1)
	var r *Recorder
	ctx, end := r.Begin(context.Background(), "y")
	Start(ctx, "x")()
	end()
	r.Reset()
	if len(r.Snapshot()) != 0 {
		t.Fatal("a nil recorder recorded")
	}
}

func TestBounded(t *testing.T) {
	r := New()
	ctx, end := r.Begin(context.Background(), "c")
	for i := range 2 * maxStages {
		Add(ctx, fmt.Sprint(i), 1)
	}
	end()
	if n := len(r.Snapshot()["c"].Stages); n != maxStages {
		t.Fatalf("%d stages kept", n)
	}
}

func BenchmarkStart(b *testing.B) {
	ctx, end := New().Begin(context.Background(), "c")
	defer end()
	for b.Loop() {
		Start(ctx, "s")()
	}
}

func BenchmarkStartNone(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		Start(ctx, "s")()
	}
}
