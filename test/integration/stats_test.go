package integration

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// TestStatsTellTheTruth compares what a container is known to use with what the
// stats and the metrics say.
func TestStatsTellTheTruth(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("stats", false)
	pod.Linux.CgroupParent, _ = e.SubCgroup("pod" + pod.Metadata.Uid)
	c := harness.Shell("c", "dd if=/dev/zero of=/written bs=1024 count=3000 2>/dev/null; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; touch /done; sleep 1000 & sleep 1000")
	podID, id, err := e.Up(ctx, pod, "", c)
	check(t, err)
	t.Cleanup(func() { check(t, e.Down(ctx, podID)) })
	for {
		r, err := e.Exec(ctx, id, "ls", "/done")
		check(t, err)
		if r.ExitCode == 0 {
			break
		}
	}
	var st *runtimeapi.ContainerStats
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r := must[*runtimeapi.ContainerStatsResponse](t)(e.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))
		st = r.Stats
		if st.WritableLayer.GetUsedBytes().GetValue() >= 3000<<10 || time.Now().After(end) {
			break
		}
	}
	if n := st.WritableLayer.GetUsedBytes().GetValue(); n < 3000<<10 || n > 4000<<10 || st.WritableLayer.InodesUsed.GetValue() < 3 {
		t.Errorf("writable layer: %v", st.WritableLayer)
	}
	if st.Cpu.UsageCoreNanoSeconds.GetValue() < 5e6 || st.Memory.WorkingSetBytes.GetValue() == 0 || st.Memory.PageFaults.GetValue() == 0 {
		t.Errorf("stats: %v", st)
	}
	ps := must[*runtimeapi.PodSandboxStatsResponse](t)(e.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: podID})).Stats
	if ps.Linux.Process.ProcessCount.GetValue() != 2 || len(ps.Linux.Containers) != 1 {
		t.Errorf("pod: %v", ps.Linux.Process)
	}
	if ps.Linux.Cpu.UsageCoreNanoSeconds.GetValue() < st.Cpu.UsageCoreNanoSeconds.GetValue() {
		t.Errorf("the pod has used %v, its container %v", ps.Linux.Cpu, st.Cpu)
	}
	if n := ps.Linux.Network; n == nil || n.DefaultInterface.GetName() != "eth0" {
		t.Errorf("network: %v", n)
	}
	m := must[*runtimeapi.ListPodSandboxMetricsResponse](t)(e.Runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}))
	found := map[string]uint64{}
	for _, p := range m.PodMetrics {
		if p.PodSandboxId != podID {
			continue
		}
		for _, x := range p.Metrics {
			found["pod "+x.Name] = x.Value.Value
		}
		for _, x := range p.ContainerMetrics[0].Metrics {
			found[x.Name] = x.Value.Value
		}
	}
	if found["container_processes"] != 2 || found["container_file_descriptors"] == 0 || found["container_fs_usage_bytes"] < 3000<<10 ||
		found["container_fs_limit_bytes"] == 0 || found["pod container_memory_usage_bytes"] == 0 || found["container_ulimits_soft"] == 0 {
		t.Errorf("metrics: %v", found)
	}
	_, err = e.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: podID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	})
	check(t, err)
}
