package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

const (
	killLives    = 300
	killParallel = 8
	killKeep     = 6 // pods that run through the whole test
	killGiveUp   = 8 // of so many calls the client gives up one
)

// TestRandomKill takes 300 pods through their lives, eight at a time, while
// the daemon, monitors, runtime processes and the client's own calls are killed
// at random. Every call is retried under the same name until it succeeds. At
// the end each pod that was to stay runs, is known, and works; the others have
// left nothing. OCID_SEED repeats a run.
func TestRandomKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("OCID_SEED"); s != "" {
		seed = must[uint64](t)(strconv.ParseUint(s, 10, 64))
	}
	t.Logf("seed %d", seed)
	e, ctx := own(t, harness.Options{Progress: os.Stderr})
	check(t, warm(ctx, e))
	before := must[harness.Snapshot](t)(e.Snapshot())

	k := &killer{e: e, stop: make(chan struct{}), rng: rand.New(rand.NewPCG(seed, 1))}
	var keep []*life
	for i := range killKeep {
		l := &life{k: k, giveUp: killGiveUp, pod: e.Pod(fmt.Sprintf("keep-%d", i), i%3 != 0), rng: rand.New(rand.NewPCG(seed, uint64(1000+i)))}
		check(t, l.up(ctx))
		keep = append(keep, l)
	}
	e.Keep()
	go k.run()

	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, killLives)
	for range killParallel {
		wg.Go(func() {
			for n := next.Add(1); n <= killLives; n = next.Add(1) {
				l := &life{k: k, giveUp: killGiveUp, pod: e.Pod(fmt.Sprintf("life-%d", n), n%6 != 0), rng: rand.New(rand.NewPCG(seed, uint64(n)+1e6))}
				if err := l.whole(ctx); err != nil {
					errs <- fmt.Errorf("pod %d: %w", n, err)
				}
			}
		})
	}
	wg.Wait()
	close(k.stop)
	check(t, e.Ready(ctx))
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	t.Logf("killed: daemon %d, monitor %d, runtime %d, client calls %d",
		k.daemon.Load(), k.monitor.Load(), k.runtime.Load(), k.client.Load())
	for _, l := range keep {
		l.verify(t, ctx)
	}
	for _, l := range keep {
		check(t, l.down(ctx))
	}
	removeAll(t, e)
	left := must[[]string](t)(e.Leaks(before))
	for _, x := range left {
		t.Errorf("left behind: %s", x)
	}
}

// killer kills at random moments until stop is closed.
type killer struct {
	e    *harness.Env
	stop chan struct{}
	only string // the program to kill; "" is any
	rng  *rand.Rand

	daemon, monitor, runtime, client atomic.Int64
}

func (k *killer) run() {
	for {
		select {
		case <-k.stop:
			return
		case <-time.After(time.Duration(20+k.rng.IntN(180)) * time.Millisecond):
		}
		switch n := k.rng.IntN(10); {
		case k.only != "":
			k.killOne(k.only, &k.monitor)
		case n < 3:
			if pid := k.e.PID(); pid != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
				k.daemon.Add(1)
			}
		case n < 6:
			k.killOne("ocid-monitor", &k.monitor)
		default:
			k.killOne("ocid-runtime", &k.runtime)
		}
	}
}

// killOne kills a process of one program, but no monitor of a pod that stays:
// its containers' lives would rightly end with it.
func (k *killer) killOne(program string, count *atomic.Int64) {
	var pids []int
	for _, p := range k.e.Processes() {
		base := filepath.Base(strings.TrimSuffix(p.Exe, " (deleted)"))
		// The runtime may run from a sealed copy of its binary in memory.
		name := base == program || program == "ocid-runtime" && strings.HasPrefix(p.Exe, "/memfd:")
		if name && !k.kept(p) {
			pids = append(pids, p.PID)
		}
	}
	if len(pids) > 0 && unix.Kill(pids[k.rng.IntN(len(pids))], unix.SIGKILL) == nil {
		count.Add(1)
	}
}

var keptPods sync.Map // pod id -> true

func (k *killer) kept(p harness.Process) bool {
	found := false
	keptPods.Range(func(id, _ any) bool {
		found = strings.Contains(p.Args, id.(string))
		return !found
	})
	return found
}

// life is one pod with one container.
type life struct {
	k         *killer
	pod       *runtimeapi.PodSandboxConfig
	giveUp    int // one call in so many is given up, 0 for none
	rng       *rand.Rand
	podID, id string
}

// retry repeats a call until it succeeds; now and then the client gives up in
// the middle of it.
func (l *life) retry(ctx context.Context, what string, f func(context.Context) error) error {
	limit := time.Now().Add(90 * time.Second)
	for {
		call, cancel := context.WithTimeout(ctx, 30*time.Second)
		if l.giveUp > 0 && l.rng.IntN(l.giveUp) == 0 {
			cancel()
			call, cancel = context.WithTimeout(ctx, time.Duration(l.rng.IntN(40))*time.Millisecond)
		}
		err := f(call)
		gaveUp := call.Err() != nil
		cancel()
		if err == nil {
			return nil
		}
		if gaveUp {
			l.k.client.Add(1)
		}
		if errors.Is(err, errDead) || time.Now().After(limit) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		time.Sleep(time.Duration(5+l.rng.IntN(20)) * time.Millisecond) // as the kubelet backs off
	}
}

// errDead: the monitor of this pod was killed, and the container with it.
var errDead = errors.New("the container has ended")

func (l *life) up(ctx context.Context) error {
	e := l.k.e
	err := l.retry(ctx, "RunPodSandbox", func(ctx context.Context) (err error) {
		l.podID, err = e.RunPod(ctx, l.pod, "")
		return err
	})
	if err != nil {
		return err
	}
	if strings.HasPrefix(l.pod.Metadata.Name, "keep") {
		keptPods.Store(l.podID, true)
	}
	err = l.retry(ctx, "CreateContainer", func(ctx context.Context) (err error) {
		l.id, err = e.CreateContainer(ctx, l.podID, l.pod, harness.Shell("main", harness.Forever))
		return l.alive(ctx, err)
	})
	if err != nil {
		return err
	}
	return l.retry(ctx, "StartContainer", func(ctx context.Context) error {
		err := e.StartContainer(ctx, l.id)
		if s, serr := e.Status(ctx, l.id); err != nil && serr == nil {
			switch s.State {
			case runtimeapi.ContainerState_CONTAINER_RUNNING:
				return nil // an earlier try that the client did not hear of
			case runtimeapi.ContainerState_CONTAINER_EXITED:
				return errDead
			default: // still created: try again
			}
		}
		return err
	})
}

// alive turns an error into errDead when the pod has lost its monitor.
func (l *life) alive(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	r, serr := l.k.e.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: l.podID})
	if serr == nil && r.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		return errDead
	}
	return err
}

func (l *life) down(ctx context.Context) error {
	e := l.k.e
	if err := l.retry(ctx, "StopPodSandbox", func(ctx context.Context) error { return e.StopPod(ctx, l.podID) }); err != nil {
		return err
	}
	keptPods.Delete(l.podID)
	return l.retry(ctx, "RemovePodSandbox", func(ctx context.Context) error { return e.RemovePod(ctx, l.podID) })
}

func (l *life) whole(ctx context.Context) error {
	err := l.up(ctx)
	if err != nil && !errors.Is(err, errDead) {
		return err
	}
	if err == nil && l.rng.IntN(2) == 0 {
		// The container may have lost its monitor; only a hang would be wrong.
		call, cancel := context.WithTimeout(ctx, 30*time.Second)
		_, _ = l.k.e.Exec(call, l.id, "true")
		cancel()
	}
	return l.down(ctx)
}

func (l *life) verify(t *testing.T, ctx context.Context) {
	t.Helper()
	s, err := l.k.e.Status(ctx, l.id)
	if err != nil {
		t.Errorf("%s is not known any more: %v", l.pod.Metadata.Name, err)
		return
	}
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%s is %v (%s, %s), not running", l.pod.Metadata.Name, s.State, s.Reason, s.Message)
		return
	}
	r, err := l.k.e.Exec(ctx, l.id, "echo", "here")
	if err != nil || string(r.Stdout) != "here\n" {
		t.Errorf("exec in %s: %v, %v", l.pod.Metadata.Name, r, err)
	}
}
