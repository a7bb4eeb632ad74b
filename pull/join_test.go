package pull

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

var errGate = errors.New("gate opened")

// gateSink holds every pull at its start until the gate opens or the pull is
// given up.
type gateSink struct {
	gate  chan struct{}
	began atomic.Int32
	gone  chan struct{}
}

func (g *gateSink) Begin(ctx context.Context) (string, func(bool), error) {
	g.began.Add(1)
	select {
	case <-g.gate:
		return "", nil, errGate
	case <-ctx.Done():
		close(g.gone)
		return "", nil, ctx.Err()
	}
}

func (g *gateSink) Has(context.Context, string) bool { return false }

func (g *gateSink) Destination(reference.Named) (types.ImageReference, error) {
	return nil, errors.New("not reached")
}

func (g *gateSink) Commit(context.Context, string, []string) error {
	return errors.New("not reached")
}

func newGate() (*Puller, *gateSink) {
	g := &gateSink{gate: make(chan struct{}), gone: make(chan struct{})}
	return New(Options{Dest: g}), g
}

// await returns when n callers wait for the request.
func (p *Puller) await(req Request, n int) {
	for {
		p.mu.Lock()
		op := p.ops[req.key()]
		have := 0
		if op != nil {
			have = len(op.waiters)
		}
		p.mu.Unlock()
		if have == n {
			return
		}
		runtime.Gosched()
	}
}

func TestPullsJoin(t *testing.T) {
	p, g := newGate()
	req := Request{Reference: "registry.example/app:1"}
	errs := make(chan error, 5)
	first, giveUp := context.WithCancel(t.Context())
	go func() {
		_, err := p.Pull(first, req)
		errs <- err
	}()
	p.await(req, 1)
	for range 4 {
		go func() {
			_, err := p.Pull(t.Context(), req)
			errs <- err
		}()
	}
	p.await(req, 5)
	// The one who began it leaves; the work goes on for the others.
	giveUp()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatalf("who gave up: %v", err)
	}
	close(g.gate)
	for range 4 {
		if err := <-errs; !errors.Is(err, errGate) {
			t.Fatalf("who joined: %v", err)
		}
	}
	if n := g.began.Load(); n != 1 {
		t.Fatalf("the work was done %d times", n)
	}
}

func TestLastOneStopsTheWork(t *testing.T) {
	p, g := newGate()
	req := Request{Reference: "registry.example/app:1"}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, err := p.Pull(ctx, req)
		errs <- err
	}()
	p.await(req, 1)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-g.gone
}

func TestOtherCredentialsDoNotJoin(t *testing.T) {
	base := Request{Reference: "registry.example/app:1", Auth: &Auth{Username: "a", Password: "b"}}
	same := base
	same.Auth = &Auth{Username: "a", Password: "b"}
	if base.key() != same.key() {
		t.Fatal("equal requests have different keys")
	}
	for name, change := range map[string]func(*Request){
		"password":  func(r *Request) { r.Auth = &Auth{Username: "a", Password: "c"} },
		"none":      func(r *Request) { r.Auth = nil },
		"shifted":   func(r *Request) { r.Auth = &Auth{Username: "a\" \"b"} },
		"platform":  func(r *Request) { r.Platform.Arch = "s390x" },
		"insecure":  func(r *Request) { r.Insecure = true },
		"reference": func(r *Request) { r.Reference = "registry.example/app:2" },
	} {
		other := base
		change(&other)
		if other.key() == base.key() {
			t.Errorf("%s: joins", name)
		}
	}
}

func TestServerHost(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"registry.example":            "registry.example",
		"registry.example:5000":       "registry.example:5000",
		"https://registry.example/v2": "registry.example",
		"https://index.docker.io/v1/": "docker.io",
		"registry-1.docker.io":        "docker.io",
	} {
		if got := serverHost(in); got != want {
			t.Errorf("serverHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "docker.io/library/busybox", "a.b/c@sha256:" + strings.Repeat("0", 64), "a.b:1/c:d@sha256:x", "..", "\x00"} {
		f.Add(s)
	}
	p, _ := newGate()
	f.Fuzz(func(t *testing.T, ref string) {
		names, err := p.candidates(Request{Reference: ref})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", ref, err)
			}
			return
		}
		for _, n := range names {
			if reference.IsNameOnly(n) {
				t.Fatalf("%q became %q, which is nothing that can be pulled", ref, n)
			}
		}
	})
}
