package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/streamclient"
)

const (
	streamBytes = 2 << 30
	streamRuns  = 3
	// benchPort is where a server in the pod sends what it has.
	benchPort = 7001
)

// streams measures how fast bytes come out of a pod: from a command's stdout
// and from a port. Client, runtime and pod share the machine.
func (b *bench) streams(ctx context.Context, group string) error {
	var scrap timings
	p := b.newPod(false)
	if _, err := b.up(ctx, p, &scrap); err != nil {
		return err
	}
	defer func() { _ = b.down(context.WithoutCancel(ctx), p, &scrap) }()
	for _, m := range []struct {
		name string
		f    func(context.Context, *pod) (int64, error)
	}{{"exec stream", b.execStream}, {"port-forward", b.portForward}} {
		idle := b.quiet(ctx)
		var v []float64
		for range streamRuns {
			start := time.Now()
			n, err := m.f(ctx, p)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if n < streamBytes {
				return fmt.Errorf("%s: only %d bytes came", m.name, n)
			}
			v = append(v, float64(n)/1e6/time.Since(start).Seconds())
		}
		b.add(row{Group: group, Name: m.name, P50: quantile(v, .5), Unit: "MB/s", N: streamRuns, Idle: idle})
	}
	return nil
}

func (b *bench) execStream(ctx context.Context, p *pod) (int64, error) {
	r, err := b.rt.Exec(ctx, &runtimeapi.ExecRequest{
		ContainerId: p.id, Stdout: true, Stderr: true,
		Cmd: []string{"dd", "if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", streamBytes>>20)},
	})
	if err != nil {
		return 0, err
	}
	s, err := streamclient.Open(r.Url, streamclient.Want{Stdout: true, Stderr: true})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	go func() { _, _ = io.Copy(io.Discard, s.Stderr) }()
	n, err := io.Copy(io.Discard, s.Stdout)
	if err != nil {
		return n, err
	}
	end, err := s.Wait()
	if err == nil && (end.Failure != "" || end.Code != 0) {
		err = fmt.Errorf("dd ended with %d %s", end.Code, end.Failure)
	}
	return n, err
}

// portForward reads from a server that was started for it in the pod.
func (b *bench) portForward(ctx context.Context, p *pod) (int64, error) {
	serve, stop := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_, _ = b.rt.ExecSync(serve, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: []string{
			"nc", "-l", "-p", fmt.Sprint(benchPort), "-e", "dd", "if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", streamBytes>>20),
		}})
	}()
	defer func() { stop(); <-served }()
	r, err := b.rt.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.podID, Port: []int32{benchPort}})
	if err != nil {
		return 0, err
	}
	f, err := streamclient.OpenForward(r.Url)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var last error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		data, errs, err := f.Dial(benchPort)
		if err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, data)
		if n > 0 || err != nil {
			return n, err
		}
		words, _ := io.ReadAll(errs) // nobody listens yet
		last = errors.New(string(words))
	}
	return 0, last
}
