package runtimesvc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// statsWorkers bounds how many cgroups are read at once; fewer items than
// statsShare are not worth another worker.
const (
	statsWorkers = 4
	statsShare   = 32
)

// ContainerStats reads what one running container uses.
func (s *Service) ContainerStats(ctx context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	if c.State != runtime.ContainerRunning {
		return nil, s.err(errNotRunning(c))
	}
	st, err := s.containerStats(ctx, &c)
	if err != nil {
		return nil, s.err(fmt.Errorf("stats of container %s: %w", c.ID, err))
	}
	return &cri.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats reads what all running containers use.
func (s *Service) ListContainerStats(ctx context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	list, err := s.statsOf(ctx, s.measurable(req.GetFilter()))
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.ListContainerStatsResponse{Stats: list}, nil
}

// measurable lists the running containers that a filter lets through.
func (s *Service) measurable(f *cri.ContainerStatsFilter) []*runtime.Container {
	var out []*runtime.Container
	for _, c := range s.o.Records.ContainerViews() {
		if c.State == runtime.ContainerRunning &&
			matches(string(c.ID), f.GetId(), c.Config.Labels, f.GetLabelSelector()) &&
			strings.HasPrefix(string(c.PodID), f.GetPodSandboxId()) {
			out = append(out, c)
		}
	}
	return out
}

// PodSandboxStats reads what one pod uses, with each of its running containers.
func (s *Service) PodSandboxStats(ctx context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, s.err(err)
	}
	if p.State != runtime.PodReady {
		return nil, s.err(fmt.Errorf("%w: pod %s is %s and uses nothing", runtime.ErrState, p.ID, p.State))
	}
	st, err := s.podStats(ctx, &p, s.running()[p.ID])
	if err != nil {
		return nil, s.err(fmt.Errorf("stats of pod %s: %w", p.ID, err))
	}
	return &cri.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats reads what all ready pods use.
func (s *Service) ListPodSandboxStats(ctx context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	list, err := s.podStatsOf(ctx, s.measurablePods(req.GetFilter()))
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.ListPodSandboxStatsResponse{Stats: list}, nil
}

func (s *Service) measurablePods(f *cri.PodSandboxStatsFilter) []*runtime.Pod {
	var out []*runtime.Pod
	for _, p := range s.o.Pods.PodViews() {
		if p.State == runtime.PodReady && matches(string(p.ID), f.GetId(), p.Config.Labels, f.GetLabelSelector()) {
			out = append(out, p)
		}
	}
	return out
}

func (s *Service) podStatsOf(ctx context.Context, pods []*runtime.Pod) ([]*cri.PodSandboxStats, error) {
	running := s.running()
	return gather(ctx, pods, func(ctx context.Context, p *runtime.Pod) (*cri.PodSandboxStats, error) {
		st, err := s.podStats(ctx, p, running[p.ID])
		if err != nil {
			s.log.Debug("pod left out of stats", "pod", string(p.ID), "error", err)
		}
		return st, err
	})
}

func (s *Service) running() map[runtime.PodID][]*runtime.Container {
	out := map[runtime.PodID][]*runtime.Container{}
	for _, c := range s.o.Records.ContainerViews() {
		if c.State == runtime.ContainerRunning {
			out[c.PodID] = append(out[c.PodID], c)
		}
	}
	return out
}

func (s *Service) statsOf(ctx context.Context, list []*runtime.Container) ([]*cri.ContainerStats, error) {
	return gather(ctx, list, func(ctx context.Context, c *runtime.Container) (*cri.ContainerStats, error) {
		st, err := s.containerStats(ctx, c)
		if err != nil {
			s.log.Debug("container left out of stats", "container", string(c.ID), "error", err)
		}
		return st, err
	})
}

// gather reads all items at once, a few at a time, in order. An item that
// fails is left out: it has most likely just gone. Only the end of ctx is an error.
func gather[T, R any](ctx context.Context, items []T, read func(context.Context, T) (*R, error)) ([]*R, error) {
	all := make([]*R, len(items))
	var next atomic.Int64
	var g sync.WaitGroup
	for range min(statsWorkers, (len(items)+statsShare-1)/statsShare) {
		g.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(items) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if r, err := read(ctx, items[i]); err == nil {
					all[i] = r
				}
			}
		})
	}
	g.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := all[:0]
	for _, r := range all {
		if r != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

func (s *Service) containerStats(ctx context.Context, c *runtime.Container) (*cri.ContainerStats, error) {
	u, err := s.o.Usages.ContainerUsage(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	out := &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{
			Id: string(c.ID), Metadata: containerMetadata(c.Config.Name),
			Labels: c.Config.Labels, Annotations: c.Config.Annotations,
		},
		Cpu:    s.cpu(string(c.ID), &u),
		Memory: memory(&u),
		Swap:   swap(&u),
		Io:     pressure(&u),
	}
	// Not yet measured is not the same as empty.
	if u.UpperMount != "" && u.UpperAt != 0 {
		out.WritableLayer = &cri.FilesystemUsage{
			Timestamp:  u.UpperAt,
			FsId:       &cri.FilesystemIdentifier{Mountpoint: u.UpperMount},
			UsedBytes:  value(u.UpperBytes),
			InodesUsed: value(u.UpperInodes),
		}
	}
	return out, nil
}

func (s *Service) podStats(ctx context.Context, p *runtime.Pod, containers []*runtime.Container) (*cri.PodSandboxStats, error) {
	u, err := s.o.Usages.PodUsage(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	linux := &cri.LinuxPodSandboxStats{
		Cpu:     s.cpu(string(p.ID), &u.Usage),
		Memory:  memory(&u.Usage),
		Process: &cri.ProcessUsage{Timestamp: u.ReadAt, ProcessCount: value(u.Processes)},
		Network: network(u),
		Io:      pressure(&u.Usage),
	}
	for _, c := range containers {
		st, err := s.containerStats(ctx, c)
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		if err == nil {
			linux.Containers = append(linux.Containers, st)
		}
	}
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id: string(p.ID), Metadata: podMetadata(p.Config.Name),
			Labels: p.Config.Labels, Annotations: p.Config.Annotations,
		},
		Linux: linux,
	}, nil
}

// network is nil on the host's network, whose traffic is not the pod's.
func network(u runtime.PodUsage) *cri.NetworkUsage {
	if len(u.Network) == 0 {
		return nil
	}
	out := &cri.NetworkUsage{Timestamp: u.NetworkAt}
	for _, i := range u.Network {
		n := &cri.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors),
			TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors),
		}
		if i.Name == "eth0" || (out.DefaultInterface == nil && i.Name != "lo") {
			if out.DefaultInterface != nil {
				out.Interfaces = append(out.Interfaces, out.DefaultInterface)
			}
			out.DefaultInterface = n
			continue
		}
		out.Interfaces = append(out.Interfaces, n)
	}
	return out
}

func memory(u *runtime.Usage) *cri.MemoryUsage {
	out := &cri.MemoryUsage{
		Timestamp:       u.ReadAt,
		WorkingSetBytes: value(u.MemoryWorkingSet),
		AvailableBytes:  value(u.MemoryAvailable),
		UsageBytes:      value(u.MemoryUsage),
		RssBytes:        value(u.MemoryRSS),
		PageFaults:      value(u.PageFaults),
		MajorPageFaults: value(u.MajorPageFaults),
	}
	if u.Pressure != nil {
		out.Psi = psi(u.Pressure.Memory)
	}
	return out
}

// swap tells no room left where there is no limit to measure it by.
func swap(u *runtime.Usage) *cri.SwapUsage {
	out := &cri.SwapUsage{Timestamp: u.ReadAt, SwapUsageBytes: value(u.SwapUsage)}
	if u.SwapLimit > 0 {
		out.SwapAvailableBytes = value(u.SwapLimit - min(u.SwapUsage, u.SwapLimit))
	}
	return out
}

func (s *Service) cpu(id string, u *runtime.Usage) *cri.CpuUsage {
	out := &cri.CpuUsage{Timestamp: u.Timestamp, UsageCoreNanoSeconds: value(u.CPUNanos)}
	if rate, ok := s.rates.add(id, u.Timestamp, u.CPUNanos); ok {
		out.UsageNanoCores = value(rate)
	}
	if u.Pressure != nil {
		out.Psi = psi(u.Pressure.CPU)
	}
	return out
}

// pressure is nil where the kernel does not measure it: CRI has nothing else
// to say of input and output here.
func pressure(u *runtime.Usage) *cri.IoUsage {
	if u.Pressure == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: u.ReadAt, Psi: psi(u.Pressure.IO)}
}

func psi(s runtime.Stall) *cri.PsiStats {
	data := func(t runtime.StallTime) *cri.PsiData {
		return &cri.PsiData{Total: t.TotalNanos, Avg10: t.Avg10, Avg60: t.Avg60, Avg300: t.Avg300}
	}
	return &cri.PsiStats{Full: data(s.Full), Some: data(s.Some)}
}

func value(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }

// minInterval is the shortest time that a rate is taken over; readers that
// come more often get the last one.
const minInterval = 1e9

// maxRates bounds the table; when it is full it starts anew, which costs each
// reader one answer without a rate.
const maxRates = 1 << 14

// rates turns counters into rates between two readings.
type rates struct {
	mu   sync.Mutex
	last map[string]sample // guarded by mu
}

type sample struct {
	at    int64
	cpu   uint64
	rate  uint64
	valid bool
}

// add takes a reading and returns nanocores, if there is an earlier one.
func (r *rates) add(id string, at int64, cpu uint64) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.last[id]
	switch {
	case !ok || cpu < old.cpu || at < old.at: // first, or the counter began anew
		if len(r.last) >= maxRates {
			clear(r.last)
		}
		r.last[id] = sample{at: at, cpu: cpu}
		return 0, false
	case at-old.at < minInterval:
		return old.rate, old.valid
	}
	rate := uint64(float64(cpu-old.cpu) * 1e9 / float64(at-old.at))
	r.last[id] = sample{at: at, cpu: cpu, rate: rate, valid: true}
	return rate, true
}

func (r *rates) forget(id string) {
	r.mu.Lock()
	delete(r.last, id)
	r.mu.Unlock()
}
