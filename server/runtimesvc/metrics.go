package runtimesvc

import (
	"context"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Metrics are those of the kubelet's cAdvisor endpoint, under the same names
// and labels, for a kubelet that has no cAdvisor (PodAndContainerStatsFromCRI).
// CRI carries whole numbers: what is in seconds is cut to whole ones.

// baseLabels are those that every metric has. As in cAdvisor, "id" is the
// cgroup and "name" the container's id; a metric of a whole pod has no
// container and no image.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// subject is what metrics are taken of.
type subject struct {
	c    *runtime.Container // nil for a pod
	u    *runtime.Usage
	d    *runtime.UsageDetail // of u, never nil
	base []string
	now  time.Time
	// links are the interfaces of a pod.
	links []runtime.InterfaceUsage
}

// emit takes one value with the values of the labels beyond the base.
type emit func(v uint64, labels ...string)

// family is one metric with its labels and where its values come from.
type family struct {
	desc *cri.MetricDescriptor
	kind cri.MetricType
	read func(x *subject, out emit)
}

func newFamily(kind cri.MetricType, name, help string, labels []string, read func(*subject, emit)) family {
	return family{
		desc: &cri.MetricDescriptor{Name: name, Help: help, LabelKeys: append(append([]string(nil), baseLabels...), labels...)},
		kind: kind, read: read,
	}
}

// gauge and counter are families of one value.
func gauge(name, help string, read func(*subject) uint64) family {
	return newFamily(cri.MetricType_GAUGE, name, help, nil, func(x *subject, out emit) { out(read(x)) })
}

func counter(name, help string, read func(*subject) uint64) family {
	return newFamily(cri.MetricType_COUNTER, name, help, nil, func(x *subject, out emit) { out(read(x)) })
}

// when keeps a family to the subjects that it has something to say of.
func (f family) when(ok func(*subject) bool) family {
	read := f.read
	f.read = func(x *subject, out emit) {
		if ok(x) {
			read(x, out)
		}
	}
	return f
}

func (f family) collect(x *subject, to []*cri.Metric) []*cri.Metric {
	f.read(x, func(v uint64, labels ...string) {
		values := x.base
		if len(labels) > 0 {
			values = append(x.base[:len(x.base):len(x.base)], labels...)
		}
		to = append(to, &cri.Metric{Name: f.desc.Name, MetricType: f.kind, LabelValues: values, Value: value(v)})
	})
	return to
}

// ListMetricDescriptors names every metric that ListPodSandboxMetrics may have.
func (s *Service) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	resp := &cri.ListMetricDescriptorsResponse{}
	for _, list := range [][]family{containerFamilies, networkFamilies} {
		for _, f := range list {
			resp.Descriptors = append(resp.Descriptors, f.desc)
		}
	}
	return resp, nil
}

// ListPodSandboxMetrics reads the metrics of all ready pods.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	list, err := s.metricsOf(ctx, s.measurablePods(nil))
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: list}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in several messages.
func (s *Service) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, stream cri.RuntimeService_StreamPodSandboxMetricsServer) error {
	return s.err(sendBatches(stream.Context(), s.measurablePods(nil), s.metricsOf, func(list []*cri.PodSandboxMetrics) error {
		return stream.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: list})
	}))
}

func (s *Service) metricsOf(ctx context.Context, pods []*runtime.Pod) ([]*cri.PodSandboxMetrics, error) {
	running := s.running()
	return gather(ctx, pods, func(ctx context.Context, p *runtime.Pod) (*cri.PodSandboxMetrics, error) {
		m, err := s.podMetrics(ctx, p, running[p.ID])
		if err != nil {
			s.log.Debug("pod left out of metrics", "pod", string(p.ID), "error", err)
		}
		return m, err
	})
}

func (s *Service) podMetrics(ctx context.Context, p *runtime.Pod, containers []*runtime.Container) (*cri.PodSandboxMetrics, error) {
	u, err := s.o.Usages.PodDetail(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	name := p.Config.Name
	out := &cri.PodSandboxMetrics{PodSandboxId: string(p.ID)}
	x := &subject{u: &u.Usage, d: u.Detail, now: time.Now(), links: u.Network, base: []string{"", u.Cgroup, "", string(p.ID), name.Namespace, name.Name}}
	if u.Detail != nil { // the pod has a cgroup of its own
		for _, f := range containerFamilies {
			out.Metrics = f.collect(x, out.Metrics)
		}
	}
	for _, f := range networkFamilies {
		out.Metrics = f.collect(x, out.Metrics)
	}
	for _, c := range containers {
		u, err := s.o.Usages.ContainerDetail(ctx, c.ID)
		if err != nil || u.Detail == nil {
			continue // it has just ended
		}
		x := &subject{c: c, u: &u, d: u.Detail, now: time.Now(), base: []string{
			c.Config.Name.Name, c.CgroupPath, c.Config.Image, string(c.ID), name.Namespace, name.Name,
		}}
		cm := &cri.ContainerMetrics{ContainerId: string(c.ID)}
		for _, f := range containerFamilies {
			cm.Metrics = f.collect(x, cm.Metrics)
		}
		out.ContainerMetrics = append(out.ContainerMetrics, cm)
	}
	return out, nil
}

func seconds64(nanos uint64) uint64 { return nanos / 1e9 }

func unsigned(n int64) uint64 { return uint64(max(n, 0)) } //nolint:gosec // not negative

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
