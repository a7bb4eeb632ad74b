package stages

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
				end(nil)
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
	end(nil)
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
	end(nil)
	if n := len(r.Snapshot()["c"].Stages); n != maxStages {
		t.Fatalf("%d stages kept", n)
	}
}

// spy is an observer that writes down what it is told.
type spy struct {
	mu  sync.Mutex
	log []string
}

type under struct{}

func (s *spy) Begin(ctx context.Context, call, stage string, attrs []Attr) (context.Context, End) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parent, _ := ctx.Value(under{}).(string)
	name := call + "/" + stage
	s.log = append(s.log, fmt.Sprint("begin ", name, " under ", parent, attrs))
	return context.WithValue(ctx, under{}, name), func(_ time.Duration, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.log = append(s.log, fmt.Sprint("end ", name, " ", err))
	}
}

func TestObserver(t *testing.T) {
	s := &spy{}
	r := New(s)
	ctx, end := r.Begin(context.Background(), "Run")
	sub, endCNI := Enter(ctx, "cni ADD", Attr{"network", "n"})
	Start(sub, "plugin")()
	endCNI(errors.New("bad"))
	if a := r.Active(); len(a) != 1 || a[0].Call != "Run" || a[0].Stage != "plugin" {
		t.Errorf("active: %+v", a)
	}
	end(nil)
	if a := r.Active(); len(a) != 0 {
		t.Errorf("still active: %+v", a)
	}
	want := []string{
		"begin Run/ under []",
		"begin Run/cni ADD under Run/[{network n}]",
		"begin Run/plugin under Run/cni ADD[]",
		"end Run/plugin <nil>",
		"end Run/cni ADD bad",
		"end Run/ <nil>",
	}
	if !slices.Equal(s.log, want) {
		t.Errorf("told %q\nwant %q", s.log, want)
	}
}

func BenchmarkStart(b *testing.B) {
	ctx, end := New().Begin(context.Background(), "c")
	defer end(nil)
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
