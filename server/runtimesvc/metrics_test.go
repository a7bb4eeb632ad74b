package runtimesvc

import (
	"errors"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// find returns the metrics of a name, as "value label=value ...".
func find(d map[string]*cri.MetricDescriptor, list []*cri.Metric, name string) (out []*cri.Metric, text []string) {
	for _, m := range list {
		if m.Name != name {
			continue
		}
		out = append(out, m)
		s := ""
		for i, v := range m.LabelValues {
			s += " " + d[name].LabelKeys[i] + "=" + v
		}
		text = append(text, s)
	}
	return out, text
}

func TestMetrics(t *testing.T) {
	c, ctx := dial(t, newService(newFake())), t.Context()
	dl, err := c.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	descriptors := map[string]*cri.MetricDescriptor{}
	for _, d := range dl.Descriptors {
		if descriptors[d.Name] != nil || d.Help == "" || !slices.IsSorted(d.LabelKeys[:len(baseLabels)]) {
			t.Errorf("descriptor %v", d)
		}
		descriptors[d.Name] = d
	}
	// What dashboards and alerts for Kubernetes are made of.
	for _, want := range []string{
		"container_cpu_usage_seconds_total", "container_cpu_cfs_throttled_periods_total", "container_memory_working_set_bytes",
		"container_memory_rss", "container_memory_failures_total", "container_network_receive_bytes_total",
		"container_network_transmit_packets_dropped_total", "container_fs_usage_bytes", "container_fs_reads_total",
		"container_processes", "container_spec_memory_limit_bytes", "container_start_time_seconds",
		"container_pressure_io_waiting_seconds_total", "container_oom_events_total", "container_last_seen",
	} {
		if descriptors[want] == nil {
			t.Errorf("%s is missing", want)
		}
	}
	l, err := c.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
	if err != nil || len(l.PodMetrics) != 1 || len(l.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("%v, %v", l, err)
	}
	pod := l.PodMetrics[0]
	ctr := pod.ContainerMetrics[0]
	for _, m := range slices.Concat(pod.Metrics, ctr.Metrics) {
		if d := descriptors[m.Name]; d == nil || len(d.LabelKeys) != len(m.LabelValues) {
			t.Errorf("%v does not fit its descriptor %v", m, d)
		}
	}
	reads, labels := find(descriptors, ctr.Metrics, "container_fs_reads_total")
	if len(reads) != 1 || reads[0].Value.Value != 3 || reads[0].MetricType != cri.MetricType_COUNTER ||
		labels[0] != " container= id= image=busybox name=cc1 namespace= pod=aa1 device=/dev/sda" {
		t.Errorf("%v %q", reads, labels)
	}
	if ws, _ := find(descriptors, ctr.Metrics, "container_memory_working_set_bytes"); len(ws) != 1 || ws[0].Value.Value != 3 || ws[0].MetricType != cri.MetricType_GAUGE {
		t.Errorf("%v", ws)
	}
	if q, _ := find(descriptors, ctr.Metrics, "container_spec_cpu_quota"); len(q) != 0 {
		t.Errorf("a quota that nobody set: %v", q)
	}
	rx, labels := find(descriptors, pod.Metrics, "container_network_receive_bytes_total")
	if len(rx) != 3 || rx[2].Value.Value != 5 || labels[2] != " container= id=/pods/x image= name=aa1 namespace= pod=aa1 interface=eth0" {
		t.Errorf("%v %q", rx, labels)
	}
	if _, labels := find(descriptors, pod.Metrics, "container_start_time_seconds"); len(labels) != 0 {
		t.Errorf("a pod has a container's metric: %q", labels)
	}
}

func TestStreamMetrics(t *testing.T) {
	c, ctx := dial(t, newService(many())), t.Context()
	l, err := c.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []*cri.PodSandboxMetrics
	st, err := c.StreamPodSandboxMetrics(ctx, &cri.StreamPodSandboxMetricsRequest{})
	for _, r := range all(t, st, err) {
		got = append(got, r.PodSandboxMetrics...)
	}
	strip := func(list []*cri.PodSandboxMetrics) {
		for _, p := range list {
			for _, m := range append(p.Metrics, p.ContainerMetrics[0].Metrics...) {
				if m.Name == "container_last_seen" {
					m.Value = nil // the time of the call
				}
			}
		}
	}
	strip(got)
	strip(l.PodMetrics)
	same(t, "metrics", got, l.PodMetrics)
}

func TestPressureAndSwap(t *testing.T) {
	u := &runtime.Usage{ReadAt: 7, SwapUsage: 3, SwapLimit: 10, Pressure: &runtime.Pressure{
		IO: runtime.Stall{Some: runtime.StallTime{Avg10: 1.5, TotalNanos: 9}, Full: runtime.StallTime{Avg60: 2}},
	}}
	if p := pressure(u); p.Timestamp != 7 || p.Psi.Some.Total != 9 || p.Psi.Some.Avg10 != 1.5 || p.Psi.Full.Avg60 != 2 {
		t.Errorf("%v", p)
	}
	if sw := swap(u); sw.SwapAvailableBytes.GetValue() != 7 {
		t.Errorf("%v", sw)
	}
	if sw := swap(&runtime.Usage{}); sw.SwapAvailableBytes != nil {
		t.Errorf("room without a limit: %v", sw)
	}
	if pressure(&runtime.Usage{}) != nil || memory(&runtime.Usage{}).Psi != nil {
		t.Error("pressure that nobody measured")
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	f := newFake()
	s := newService(f)
	update := func(req *cri.UpdatePodSandboxResourcesRequest) error {
		_, err := s.UpdatePodSandboxResources(t.Context(), req)
		return err
	}
	if err := update(&cri.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "aa1", Resources: &cri.LinuxContainerResources{CpuShares: 5},
	}); err != nil || !slices.Contains(f.calls, "update pod aa true false") {
		t.Errorf("%v, %q", err, f.calls)
	}
	err := update(&cri.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "aa1", Overhead: &cri.LinuxContainerResources{MemoryLimitInBytes: -1, CpuPeriod: 3},
		Resources: &cri.LinuxContainerResources{CpuQuota: -7},
	})
	for _, field := range []string{"overhead.memory_limit_in_bytes", "overhead.cpu_period", "resources.cpu_quota"} {
		if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := update(&cri.UpdatePodSandboxResourcesRequest{PodSandboxId: "ff"}); !errors.Is(err, runtime.ErrNotFound) {
		t.Error(err)
	}
}
