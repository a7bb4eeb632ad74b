package integration

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/images"
)

// up runs one container in a pod of its own that the test's end removes.
func up(t *testing.T, ctx context.Context, e *harness.Env, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	t.Helper()
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() {
		if err := e.Down(context.Background(), podID); err != nil {
			t.Error(err)
		}
		os.RemoveAll(pod.LogDirectory)
	})
	return must[string](t)(e.RunContainer(ctx, podID, pod, c))
}

// cgroupDir is a process's cgroup in a v1 hierarchy, or in the unified one.
func cgroupDir(t *testing.T, pid int, controller string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	check(t, err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		part := strings.SplitN(s.Text(), ":", 3)
		if len(part) == 3 && (strings.Contains(","+part[1]+",", ","+controller+",")) {
			return filepath.Join("/sys/fs/cgroup", controller, part[2])
		}
	}
	t.Skipf("needs the cgroup v1 controller %s", controller)
	return ""
}

func TestSupplementalGroups(t *testing.T) {
	e, ctx := env(t)
	image := busyboxWith(t, ctx, e, "groups", nil, func(b *images.Builder) {
		b.File("etc/passwd", []byte("root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n"), 0o644)
		b.File("etc/group", []byte("root:x:0:\nalice:x:1000:\nstaff:x:50000:alice\n"), 0o644)
	})
	pod := e.Pod("groups", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID); os.RemoveAll(pod.LogDirectory) })
	for policy, want := range map[runtimeapi.SupplementalGroupsPolicy]string{
		runtimeapi.SupplementalGroupsPolicy_Merge: "1000 4000 50000", runtimeapi.SupplementalGroupsPolicy_Strict: "1000 4000",
	} {
		c := harness.Shell(strings.ToLower(policy.String()), harness.Forever)
		c.Image.Image = image
		s := c.Linux.SecurityContext
		s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &runtimeapi.Int64Value{Value: 1000}, []int64{4000}, policy
		id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
		wantSh(t, ctx, e, id, "id -G | xargs -n1 | sort -n | uniq | xargs", want)
		wantSh(t, ctx, e, id, "grep Groups: /proc/1/status | cut -f2 | xargs -n1 | sort -n | uniq | xargs", want)
		st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
		if n := len(st.GetUser().GetLinux().GetSupplementalGroups()); n != len(strings.Fields(want)) {
			t.Errorf("%s: the status shows %v", policy, st.GetUser())
		}
	}
	check(t, e.Down(ctx, podID))
}

func TestStopSignals(t *testing.T) {
	e, ctx := env(t)
	image := busyboxWith(t, ctx, e, "signals", func(c *v1.Config) { c.StopSignal = "SIGUSR2" }, func(b *images.Builder) { b.File("x", nil, 0o644) })
	script := "trap 'exit 11' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; echo ready; while :; do sleep 3600 & wait $!; done"
	for _, row := range []struct {
		image string
		ask   runtimeapi.Signal
		code  int32
	}{
		{harness.Busybox, 0, 15},
		{harness.Busybox, runtimeapi.Signal_SIGNAL_SIGUSR1, 11},
		{image, 0, 12},
		{image, runtimeapi.Signal_SIGNAL_SIGUSR1, 11},
	} {
		pod := e.Pod("signals", true)
		c := harness.Shell("main", script)
		c.Image.Image, c.StopSignal = row.image, row.ask
		id := up(t, ctx, e, pod, c)
		for {
			b, _ := os.ReadFile(filepath.Join(pod.LogDirectory, "main.log"))
			if strings.Contains(string(b), "ready") || ctx.Err() != nil {
				break
			}
		}
		check(t, e.StopContainer(ctx, id, 20))
		if st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); st.ExitCode != row.code {
			t.Errorf("image %s, signal %s: exit code %d, want %d", row.image, row.ask, st.ExitCode, row.code)
		}
	}
}

// TestDeviceRules: a device is there with the access asked for, and nothing
// else can be used even where it can be made.
func TestDeviceRules(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse, a device that any root may open")
	}
	e, ctx := env(t)
	c := harness.Shell("main", harness.Forever)
	c.Devices = []*runtimeapi.Device{
		{HostPath: "/dev/fuse", ContainerPath: "/dev/log-read", Permissions: "r"},
		{HostPath: "/dev/zero", ContainerPath: "/dev/own/zero", Permissions: "rwm"},
	}
	id := up(t, ctx, e, e.Pod("devices", true), c)
	wantSh(t, ctx, e, id, "head -c 2 /dev/own/zero | wc -c; echo > /dev/own/zero && echo written", "2\nwritten")
	wantSh(t, ctx, e, id, "(exec 3< /dev/log-read) && echo read; (exec 3> /dev/log-read) 2>/dev/null || echo refused", "read\nrefused")
	wantSh(t, ctx, e, id, "mknod /disk b 7 0 && echo made; (exec 3< /disk) 2>/dev/null || echo refused", "made\nrefused")
}

func TestPodSysctls(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("sysctls", false)
	pod.Linux.Sysctls = map[string]string{
		"net.ipv4.ip_local_port_range": "40000 40100", "net.core.somaxconn": "99",
		"kernel.shm_rmid_forced": "1", "kernel.msgmax": "4321", "fs.mqueue.msg_max": "7",
	}
	id := up(t, ctx, e, pod, harness.Shell("main", harness.Forever))
	wantSh(t, ctx, e, id, "cd /proc/sys; cat net/ipv4/ip_local_port_range net/core/somaxconn kernel/shm_rmid_forced kernel/msgmax fs/mqueue/msg_max | xargs", "40000 40100 99 1 4321 7")
	if b := string(must[[]byte](t)(os.ReadFile("/proc/sys/kernel/msgmax"))); strings.TrimSpace(b) == "4321" {
		t.Error("the host's own value changed")
	}
	for _, name := range []string{"kernel.panic", "vm.swappiness", "fs.file-max", "kernel.msg_other", "kernel.shmx/../panic"} {
		bad := e.Pod("sysctls", false)
		bad.Linux.Sysctls = map[string]string{name: "1"}
		if _, err := e.RunPod(ctx, bad, ""); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

func TestResourceFiles(t *testing.T) {
	e, ctx := env(t)
	c := harness.Shell("main", harness.Forever)
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20, CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 300,
		CpusetCpus: "0", OomScoreAdj: 500,
	}
	id := up(t, ctx, e, e.Pod("resources", true), c)
	pid := containerPID(t, ctx, e, id)
	for _, row := range [][3]string{
		{"memory", "memory.limit_in_bytes", fmt.Sprint(64 << 20)},
		{"memory", "memory.memsw.limit_in_bytes", fmt.Sprint(96 << 20)},
		{"cpu", "cpu.cfs_period_us", "50000"},
		{"cpu", "cpu.cfs_quota_us", "25000"},
		{"cpu", "cpu.shares", "300"},
		{"cpuset", "cpuset.cpus", "0"},
	} {
		b, err := os.ReadFile(filepath.Join(cgroupDir(t, pid, row[0]), row[1]))
		if err != nil || strings.TrimSpace(string(b)) != row[2] {
			t.Errorf("%s is %q (%v), want %s", row[1], b, err, row[2])
		}
	}
	if b := string(must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)))); strings.TrimSpace(b) != "500" {
		t.Errorf("oom_score_adj is %q", b)
	}
	bad := harness.Shell("unified", harness.Forever)
	bad.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.reclaim": "1G"}}
	pod := e.Pod("unified", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	if _, err := e.CreateContainer(ctx, podID, pod, bad); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a cgroup file that is no limit: %v", err)
	}
	check(t, e.Down(ctx, podID))
}
