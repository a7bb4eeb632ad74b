package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/harness"
)

const (
	endurePods     = 2000
	endureParallel = 10
	endureWarm     = 100
)

// TestEndurance takes 2,000 pods through their lives with ten clients. One of
// them gives up half of its calls; one call in ten of the bridge plugin fails;
// monitors are killed at random. At the end nothing is left outside the daemon,
// and the daemon itself is as it was: goroutines, file descriptors, memory.
// OCID_ENDURANCE sets another number of pods, OCID_SEED repeats a run.
func TestEndurance(t *testing.T) {
	pods := endurePods
	if s := os.Getenv("OCID_ENDURANCE"); s != "" {
		pods = must[int](t)(strconv.Atoi(s))
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("OCID_SEED"); s != "" {
		seed = must[uint64](t)(strconv.ParseUint(s, 10, 64))
	}
	t.Logf("seed %d", seed)
	e, _ := own(t, harness.Options{Progress: os.Stderr, CNIDir: failingCNI(t)})
	ctx := deadline(t, 20*time.Minute)
	must[string](t)(e.Pull(ctx, harness.Busybox))
	k := &killer{e: e, stop: make(chan struct{}), only: "ocid-monitor", rng: rand.New(rand.NewPCG(seed, 1))}
	live := func(from, to int) []error { return k.lives(ctx, seed, from, to) }
	for _, err := range live(0, endureWarm) {
		t.Error(err)
	}
	check(t, settle(ctx, e, vitals{goroutines: 1 << 20, fds: 1 << 20}))
	snap := must[harness.Snapshot](t)(e.Snapshot())
	before := must[vitals](t)(measure(ctx, e))

	go k.run()
	begin := time.Now()
	errs := live(endureWarm, endureWarm+pods)
	close(k.stop)
	for _, err := range errs {
		t.Error(err)
	}
	t.Logf("%d pods in %s, %d monitors killed, %d calls given up", pods, time.Since(begin).Round(time.Second), k.monitor.Load(), k.client.Load())
	removeAll(t, e)
	for _, x := range must[[]string](t)(e.Leaks(snap)) {
		t.Errorf("left behind: %s", x)
	}
	if err := settle(ctx, e, before); err != nil {
		t.Error(err)
	}
	after := must[vitals](t)(measure(ctx, e))
	t.Logf("before %+v, after %+v", before, after)
	// Memory is what is left after a collection; a leak of 1 KiB per pod would show.
	if after.heap > before.heap+int64(pods)*1024 {
		t.Errorf("the daemon's live heap grew from %d to %d bytes over %d pods", before.heap, after.heap, pods)
	}
}

// lives takes pods from..to through their lives, ten at a time; the last of the
// ten clients gives up every second call.
func (k *killer) lives(ctx context.Context, seed uint64, from, to int) []error {
	var wg sync.WaitGroup
	var next atomic.Int64
	next.Store(int64(from))
	var mu sync.Mutex
	var errs []error
	for c := range endureParallel {
		giveUp := 0
		if c == endureParallel-1 {
			giveUp = 2
		}
		wg.Go(func() {
			for n := next.Add(1) - 1; n < int64(to); n = next.Add(1) - 1 {
				l := &life{k: k, giveUp: giveUp, pod: k.e.Pod(fmt.Sprintf("pod-%d", n), n%4 != 0), rng: rand.New(rand.NewPCG(seed, uint64(n)+1e6))}
				if err := l.whole(ctx); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("pod %d: %w", n, err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// failingCNI is a directory of plugins in which the bridge fails once in ten.
func failingCNI(t *testing.T) string {
	t.Helper()
	need(t)
	const plugins = "/usr/lib/cni"
	dir := t.TempDir()
	for _, d := range must[[]os.DirEntry](t)(os.ReadDir(plugins)) {
		if d.Name() != "bridge" {
			check(t, os.Symlink(filepath.Join(plugins, d.Name()), filepath.Join(dir, d.Name())))
		}
	}
	script := `#!/bin/sh
case $CNI_COMMAND in ADD|DEL)
	if [ $(($(od -An -N1 -tu1 /dev/urandom) % 10)) -eq 0 ]; then
		echo '{"cniVersion":"1.0.0","code":11,"msg":"refused on purpose: try again"}'
		exit 1
	fi ;;
esac
exec ` + plugins + `/bridge
`
	check(t, os.WriteFile(filepath.Join(dir, "bridge"), []byte(script), 0o755))
	return dir
}

// vitals is what a daemon consists of.
type vitals struct {
	goroutines, fds int
	heap            int64 // bytes that live after a collection
}

// settle waits until goroutines and file descriptors are back at their number.
func settle(ctx context.Context, e *harness.Env, want vitals) error {
	limit := time.Now().Add(30 * time.Second)
	for {
		v, err := measure(ctx, e)
		if err != nil {
			return err
		}
		if v.goroutines <= want.goroutines && v.fds <= want.fds {
			return nil
		}
		if time.Now().After(limit) {
			text, err := debugGet(ctx, e, "/debug/pprof/goroutine?debug=1")
			return errors.Join(err, fmt.Errorf("the daemon has %d goroutines and %d file descriptors, and had %d and %d:\n%s",
				v.goroutines, v.fds, want.goroutines, want.fds, text))
		}
		time.Sleep(100 * time.Millisecond) // background clean-up announces nothing
	}
}

func measure(ctx context.Context, e *harness.Env) (vitals, error) {
	var v vitals
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.PID()))
	if err != nil {
		return v, err
	}
	v.fds = len(fds)
	text, err := debugGet(ctx, e, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return v, err
	}
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &v.goroutines); err != nil {
		return v, fmt.Errorf("read the number of goroutines: %w", err)
	}
	// gc=1 collects first.
	if text, err = debugGet(ctx, e, "/debug/pprof/heap?debug=1&gc=1"); err != nil {
		return v, err
	}
	_, rest, ok := strings.Cut(text, "\n# HeapAlloc = ")
	number, _, ended := strings.Cut(rest, "\n")
	if !ok || !ended {
		return v, errors.New("the heap profile does not tell HeapAlloc")
	}
	v.heap, err = strconv.ParseInt(number, 10, 64)
	return v, err
}

// debugGet reads a page of the daemon's debug socket.
func debugGet(ctx context.Context, e *harness.Env, path string) (string, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(e.RunRoot, "debug.sock"))
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://debug"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return string(b), err
}
