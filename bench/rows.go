package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// timings collects durations by call name.
type timings struct {
	mu sync.Mutex
	by map[string][]float64
}

func (t *timings) time(name string, f func() error) (float64, error) {
	start := time.Now()
	err := f()
	ms := float64(time.Since(start).Microseconds()) / 1000
	if err != nil {
		return ms, fmt.Errorf("%s: %w", name, err)
	}
	t.put(name, ms)
	return ms, nil
}

func (t *timings) put(name string, ms float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string][]float64{}
	}
	t.by[name] = append(t.by[name], ms)
}

func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func sorted[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

var serial atomic.Int64

// pod is one pod with one container that traps SIGTERM.
type pod struct {
	cfg       *runtimeapi.PodSandboxConfig
	podID, id string
}

const script = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"

func (b *bench) newPod(host bool) *pod {
	n := serial.Add(1)
	net := runtimeapi.NamespaceMode_POD
	if host {
		net = runtimeapi.NamespaceMode_NODE
	}
	uid := fmt.Sprintf("bench-%d-%d", os.Getpid(), n)
	return &pod{cfg: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "bench", Uid: uid},
		LogDirectory: filepath.Join(b.o.logs, uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: b.o.cgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: net, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}}
}

// up runs the three calls and records each and their sum.
func (b *bench) up(ctx context.Context, p *pod, t *timings) (float64, error) {
	a, err := t.time("RunPodSandbox", func() error {
		r, err := b.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.cfg, RuntimeHandler: b.o.handler})
		p.podID = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return 0, err
	}
	c, err := t.time("CreateContainer", func() error {
		r, err := b.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: p.podID, SandboxConfig: p.cfg,
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
				Image:    &runtimeapi.ImageSpec{Image: b.o.image},
				Command:  []string{"sh", "-c", script},
				LogPath:  "main.log",
				Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: p.cfg.Linux.SecurityContext.NamespaceOptions,
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				}},
			},
		})
		p.id = r.GetContainerId()
		return err
	})
	if err != nil {
		return 0, err
	}
	s, err := t.time("StartContainer", func() error {
		_, err := b.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.id})
		return err
	})
	if err != nil {
		return 0, err
	}
	t.put("pod up", a+c+s)
	return a + c + s, nil
}

func (b *bench) exec(ctx context.Context, p *pod, t *timings) error {
	_, err := t.time("ExecSync", func() error {
		r, err := b.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{"true"}, Timeout: 30})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d", r.ExitCode)
		}
		return err
	})
	return err
}

func (b *bench) down(ctx context.Context, p *pod, t *timings) error {
	var sum float64
	for _, c := range []struct {
		name string
		f    func() error
	}{
		{"StopContainer", func() error {
			_, err := b.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.id, Timeout: 10})
			return err
		}},
		{"RemoveContainer", func() error {
			_, err := b.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.id})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := b.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.podID})
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := b.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.podID})
			return err
		}},
	} {
		ms, err := t.time(c.name, c.f)
		if err != nil {
			return err
		}
		sum += ms
	}
	t.put("pod down", sum)
	return nil
}

// lives takes n pods through their whole lives with three execs each.
func (b *bench) lives(ctx context.Context, group string, host bool, n, workers int) error {
	warm := b.newPod(host)
	var scrap timings
	if _, err := b.up(ctx, warm, &scrap); err != nil {
		return err
	}
	if err := b.down(ctx, warm, &scrap); err != nil {
		return err
	}
	idle := b.quiet(ctx)
	var t timings
	var next atomic.Int64
	errs := make(chan error, workers)
	start := time.Now()
	for range workers {
		go func() {
			for next.Add(1) <= int64(n) {
				p := b.newPod(host)
				_, err := b.up(ctx, p, &t)
				for i := 0; err == nil && i < 3; i++ {
					err = b.exec(ctx, p, &t)
				}
				if err == nil {
					err = b.down(ctx, p, &t)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all []error
	for range workers {
		all = append(all, <-errs)
	}
	wall := time.Since(start).Seconds()
	if err := errors.Join(all...); err != nil {
		return err
	}
	for _, name := range []string{"RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "pod up", "pod down"} {
		b.add(row{Group: group, Name: name, P50: quantile(t.by[name], .5), P95: quantile(t.by[name], .95), Unit: "ms", N: len(t.by[name]), Idle: idle})
	}
	b.add(row{Group: group, Name: "whole lives with 3 execs each", P50: float64(n) / wall, Unit: "pods/s", N: n, Idle: idle})
	return nil
}

func (b *bench) execAlone(ctx context.Context, group string) error {
	var t, scrap timings
	p := b.newPod(true)
	if _, err := b.up(ctx, p, &scrap); err != nil {
		return err
	}
	idle := b.quiet(ctx)
	for range 3 * b.o.serial {
		if err := b.exec(ctx, p, &t); err != nil {
			return err
		}
	}
	v := t.by["ExecSync"]
	b.add(row{Group: group, Name: "ExecSync", P50: quantile(v, .5), P95: quantile(v, .95), Unit: "ms", N: len(v), Idle: idle})
	return b.down(ctx, p, &scrap)
}

// fifty measures memory and restart with 50 pods on the host's network.
func (b *bench) fifty(ctx context.Context, group string) error {
	const n = 50
	var scrap timings
	var pods []*pod
	for range n {
		p := b.newPod(true)
		if _, err := b.up(ctx, p, &scrap); err != nil {
			return err
		}
		pods = append(pods, p)
	}
	idle := b.quiet(ctx)
	if pid := b.daemon(); pid != 0 {
		b.add(row{Group: group, Name: "PSS of the daemon", P50: pss(pid) / 1024, Unit: "MB", Idle: idle})
	}
	var kib float64
	count := 0
	for _, pid := range named(b.o.match) {
		kib += pss(pid)
		count++
	}
	if count > 0 {
		b.add(row{Group: group, Name: "PSS per pod without its workload", P50: kib / n, Unit: "KiB", N: count, Idle: idle})
	}
	if b.daemon() != 0 {
		if err := b.restart(ctx, group, n, idle); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if err := b.down(ctx, p, &scrap); err != nil {
			return err
		}
	}
	return nil
}

// growth compares the first pods with the last of many that stay.
func (b *bench) growth(ctx context.Context, group string) error {
	var scrap timings
	var pods []*pod
	var ms []float64
	idle := b.quiet(ctx)
	for range b.o.many {
		p := b.newPod(true)
		v, err := b.up(ctx, p, &scrap)
		if err != nil {
			return err
		}
		pods = append(pods, p)
		ms = append(ms, v)
	}
	const few = 15 // one pod alone is noise
	k := min(few, len(ms)/2)
	first, last := quantile(ms[:k], .5), quantile(ms[len(ms)-k:], .5)
	b.add(row{Group: group, Name: fmt.Sprintf("pod up, median of the first %d", k), P50: first, Unit: "ms", N: k, Idle: idle})
	b.add(row{Group: group, Name: fmt.Sprintf("pod up, median of the last %d of %d", k, b.o.many), P50: last, Unit: "ms", N: k, Idle: idle})
	b.add(row{Group: group, Name: "last against first", P50: last / first, Unit: "times", Idle: idle})
	for _, p := range pods {
		if err := b.down(ctx, p, &scrap); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pull(ctx context.Context, group string) error {
	if b.o.bigImage == "" {
		return nil
	}
	spec := &runtimeapi.ImageSpec{Image: b.o.bigImage}
	idle := b.quiet(ctx)
	before := cpuSeconds(b.daemon())
	start := time.Now()
	if _, err := b.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	b.add(row{Group: group, Name: "wall", P50: time.Since(start).Seconds(), Unit: "s", Idle: idle})
	if pid := b.daemon(); pid != 0 {
		b.add(row{Group: group, Name: "CPU of the daemon and its children", P50: cpuSeconds(pid) - before, Unit: "s", Idle: idle})
		b.add(row{Group: group, Name: "peak RSS of the daemon", P50: peakRSS(pid) / 1024, Unit: "MB", Idle: idle})
	}
	_, err := b.im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
	return err
}
