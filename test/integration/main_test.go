// Package integration drives the built binaries over their socket, as root, in
// private namespaces. It needs bin/ (make build) and Debian's CNI plugins; a
// test that lacks something says what in its skip.
package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/harness"
)

var shared struct {
	once sync.Once
	env  *harness.Env
	err  error
}

// unable says why nothing here can run, or is empty.
var unable string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		unable = "needs root"
		return m.Run()
	}
	if err := harness.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if shared.env != nil {
		if code != 0 {
			fmt.Fprintf(os.Stderr, "the end of the daemon's log:\n%s\n", shared.env.LogTail(40))
		}
		if err := shared.env.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			return 1
		}
	}
	return code
}

func need(t *testing.T) {
	t.Helper()
	if unable != "" {
		t.Skip(unable)
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs the CNI plugins of Debian's containernetworking-plugins")
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// env returns the daemon that most tests share, with busybox pulled and one pod
// gone by, and checks at the test's end that it left nothing behind.
func env(t *testing.T) (*harness.Env, context.Context) {
	t.Helper()
	need(t)
	ctx := deadline(t, 2*time.Minute)
	shared.once.Do(func() {
		shared.env, shared.err = harness.New(ctx, harness.Options{Progress: os.Stderr})
		if shared.err == nil {
			shared.err = warm(ctx, shared.env)
		}
	})
	if shared.err != nil {
		t.Fatalf("start the daemon: %v", shared.err)
	}
	noLeaks(t, shared.env)
	return shared.env, ctx
}

// own starts a daemon for one test.
func own(t *testing.T, o harness.Options) (*harness.Env, context.Context) {
	t.Helper()
	need(t)
	ctx := deadline(t, 10*time.Minute)
	e, err := harness.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the daemon's log:\n%s", e.LogTail(60))
			if keep := os.Getenv("RESULTS"); keep != "" {
				if b, err := os.ReadFile(e.LogFile()); err == nil {
					_ = os.WriteFile(filepath.Join(keep, t.Name()+".log"), b, 0o644)
				}
			}
		}
		if err := e.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return e, ctx
}

// warm pulls busybox and lets one pod live on the bridge, so that what is made
// once (the bridge, chains, top-level cgroups and directories) is there.
func warm(ctx context.Context, e *harness.Env) error {
	if e.PID() == 0 {
		if err := e.Start(ctx); err != nil {
			return err
		}
	}
	if _, err := e.Pull(ctx, harness.Busybox); err != nil {
		return err
	}
	for _, handler := range handlers() {
		podID, _, err := e.Up(ctx, e.Pod("warm", false), handler, harness.Shell("warm", harness.Forever))
		if err != nil {
			return err
		}
		if err := e.Down(ctx, podID); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(e.Dir, "logs"))
}

func noLeaks(t *testing.T, e *harness.Env) {
	t.Helper()
	before, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := e.Leaks(before)
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
