package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet's labels and annotations are what makes lists long.
func dress(p *pod) (labels, annotations map[string]string) {
	labels = map[string]string{
		"io.kubernetes.pod.name": p.cfg.Metadata.Name, "io.kubernetes.pod.namespace": p.cfg.Metadata.Namespace,
		"io.kubernetes.pod.uid": p.cfg.Metadata.Uid, "io.kubernetes.container.name": "main", "app": "bench",
	}
	annotations = map[string]string{
		"io.kubernetes.container.hash": "5f3f1c2a", "io.kubernetes.container.restartCount": "0",
		"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
		"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
	}
	return labels, annotations
}

// crowd makes pods on the cluster network, each in a cgroup of its own as the
// kubelet makes them, with so many containers each; only the first runs.
func (b *bench) crowd(ctx context.Context, pods, each int, host bool) (made []*pod, err error) {
	for range pods {
		p := b.newPod(host)
		labels, annotations := dress(p)
		p.cfg.Labels, p.cfg.Annotations = labels, map[string]string{"kubernetes.io/config.source": "api"}
		p.cfg.Linux.CgroupParent += "/pod" + p.cfg.Metadata.Uid
		var scrap timings
		if _, err := b.up(ctx, p, &scrap); err != nil {
			return made, err
		}
		made = append(made, p)
		for n := range each - 1 {
			if _, err := b.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: p.podID, SandboxConfig: p.cfg,
				Config: &runtimeapi.ContainerConfig{
					Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprint("more", n)},
					Image:    &runtimeapi.ImageSpec{Image: b.o.image}, Command: []string{"sleep", "1000"},
					Labels: labels, Annotations: annotations, Linux: &runtimeapi.LinuxContainerConfig{},
				},
			}); err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

func (b *bench) disperse(ctx context.Context, pods []*pod) error {
	for _, p := range pods {
		if _, err := b.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.podID}); err != nil {
			return err
		}
		if _, err := b.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.podID}); err != nil {
			return err
		}
	}
	return nil
}

// lists times the calls that a kubelet makes all day, over 500 containers.
func (b *bench) lists(ctx context.Context, group string) error {
	each := 5
	pods, err := b.crowd(ctx, max(b.o.containers/each, 1), each, true)
	if err != nil {
		return err
	}
	idle := b.quiet(ctx)
	for _, c := range append(b.answers(), b.polls()...) {
		var t timings
		for range 100 {
			if _, err := t.time(c.name, func() error { return c.f(ctx) }); err != nil {
				return err
			}
		}
		b.add(row{
			Group: group, Name: c.name, P50: quantile(t.by[c.name], .5), P95: quantile(t.by[c.name], .95),
			Unit: "ms", N: len(pods) * each, Idle: idle,
		})
	}
	return b.disperse(ctx, pods)
}

// raw leaves an answer as it came.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return proto.Marshal(v.(proto.Message)) }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }
func (raw) Name() string                    { return "proto" }

// answers are list calls until the answer is here: what a client then spends
// on reading it is the client's.
func (b *bench) answers() (out []poll) {
	for name, req := range map[string]proto.Message{
		"ListPodSandbox": &runtimeapi.ListPodSandboxRequest{}, "ListContainers": &runtimeapi.ListContainersRequest{},
	} {
		out = append(out, poll{name + ", answer", func(ctx context.Context) error {
			var answer []byte
			return b.conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+name, req, &answer, grpc.ForceCodec(raw{}))
		}})
	}
	return out
}

type poll struct {
	name string
	f    func(context.Context) error
}

// polls are the calls of a kubelet that has nothing to do.
func (b *bench) polls() []poll {
	return []poll{
		{"ListPodSandbox", func(ctx context.Context) error {
			_, err := b.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}},
		{"ListContainers", func(ctx context.Context) error {
			_, err := b.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		}},
		{"ListContainerStats", func(ctx context.Context) error {
			_, err := b.rt.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func(ctx context.Context) error {
			_, err := b.rt.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		}},
		{"Version", func(ctx context.Context) error {
			_, err := b.rt.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		}},
		{"Status", func(ctx context.Context) error {
			_, err := b.rt.Status(ctx, &runtimeapi.StatusRequest{})
			return err
		}},
	}
}

// idlePods measures what the daemon costs while a client makes all those calls
// once a second over pods that do nothing.
func (b *bench) idlePods(ctx context.Context, group string) error {
	pid := b.daemon()
	if pid == 0 {
		return nil
	}
	pods, err := b.crowd(ctx, b.o.many, 1, false)
	if err != nil {
		return err
	}
	idle := b.quiet(ctx)
	// The kubelet relists each second and reads statistics every ten seconds.
	for _, every := range []struct {
		name  string
		stats int // seconds
	}{{"as a kubelet polls", statsInterval}, {"statistics each second too", 1}} {
		used, err := b.polled(ctx, pid, every.stats)
		if err != nil {
			return err
		}
		b.add(row{Group: group, Name: fmt.Sprintf("CPU, %d idle pods, %s", len(pods), every.name), P50: used, Unit: "% of core", N: len(pods), Idle: idle})
	}
	return b.disperse(ctx, pods)
}

// events measures how late the end of a container is told: from the time that
// the status gives for it to the time that the event is here.
func (b *bench) events(ctx context.Context, group string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	if _, err := stream.Header(); err != nil {
		return err
	}
	type arrival struct {
		e  *runtimeapi.ContainerEventResponse
		at time.Time
	}
	arrivals := make(chan arrival, 1000)
	failed := make(chan error, 1)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			arrivals <- arrival{e, time.Now()}
		}
	}()
	idle := b.quiet(ctx)
	var late []float64
	for range b.o.serial {
		p := b.newPod(true)
		var scrap timings
		if _, err := b.up(ctx, p, &scrap); err != nil {
			return err
		}
		go func() { _ = b.down(ctx, p, &timings{}) }()
		for seen := false; !seen; {
			select {
			case a := <-arrivals:
				seen = a.e.ContainerId == p.podID && a.e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
				if a.e.ContainerId != p.id || a.e.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
					continue
				}
				for _, s := range a.e.ContainersStatuses {
					if s.Id == p.id {
						late = append(late, float64(a.at.UnixNano()-s.FinishedAt)/1e6)
					}
				}
			case err := <-failed:
				return err
			}
		}
	}
	b.add(row{Group: group, Name: "from a container's end to its event", P50: quantile(late, .5), P95: quantile(late, .95), Unit: "ms", N: len(late), Idle: idle})
	return nil
}

// statsInterval is the kubelet's, in seconds: of its eviction manager and of
// whoever reads its summary.
const statsInterval = 10

// polled makes a kubelet's calls each second, those for statistics less often,
// and returns what the daemon used meanwhile, in percent of a core.
func (b *bench) polled(ctx context.Context, pid, stats int) (float64, error) {
	const settle, run = 15, 30 // seconds; the first ones still pay for the pods' making
	var before float64
	var start time.Time
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := range settle + run {
		if n == settle {
			before, start = cpuSeconds(pid), time.Now()
		}
		for _, c := range b.polls() {
			if strings.HasSuffix(c.name, "Stats") && n%stats != 0 {
				continue
			}
			if err := c.f(ctx); err != nil {
				return 0, fmt.Errorf("%s: %w", c.name, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return 100 * (cpuSeconds(pid) - before) / time.Since(start).Seconds(), nil
}
