package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// pidOf is the host's number of a container's first process.
func pidOf(t *testing.T, ctx context.Context, e *harness.Env, id string) int {
	t.Helper()
	r := must[*runtimeapi.ContainerStatusResponse](t)(e.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true}))
	var info struct {
		PID int `json:"pid"`
	}
	check(t, json.Unmarshal([]byte(r.Info["info"]), &info))
	return info.PID
}

// cgroupOf is the cgroup of a process: in the memory hierarchy on cgroup v1.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	b := must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)))
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(l), ":", 3)
		if f[1] == "memory" || f[1] == "" && harness.Unified() {
			return f[2]
		}
	}
	t.Fatalf("process %d is in no cgroup that counts: %s", pid, b)
	return ""
}

// handlers are those that this machine can run.
func handlers() []string {
	if harness.Unified() {
		return []string{"", "runc", "crun"}
	}
	return []string{"", "runc"}
}

func needUnified(t *testing.T) {
	t.Helper()
	if !harness.Unified() {
		t.Skip("needs cgroup v2 alone (make test-vm has it)")
	}
}

func needSystemd(t *testing.T, e *harness.Env) {
	t.Helper()
	if !e.Systemd {
		t.Skip("needs the systemd cgroup driver: systemd as PID 1 and cgroup v2 (make test-vm has them)")
	}
}

func TestCgroupPlacement(t *testing.T) {
	e, ctx := env(t)
	conf := must[*runtimeapi.RuntimeConfigResponse](t)(e.Runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}))
	if got := conf.Linux.CgroupDriver == runtimeapi.CgroupDriver_SYSTEMD; got != e.Systemd {
		t.Errorf("RuntimeConfig says %s, and the systemd driver is in use: %t", conf.Linux.CgroupDriver, e.Systemd)
	}
	for _, handler := range handlers() {
		t.Run("handler "+handler, func(t *testing.T) {
			podID, id, err := e.Up(ctx, e.Pod("place", true), handler, harness.Shell("main", harness.Forever))
			check(t, err)
			want := path.Join(e.CgroupDir, id)
			if e.Systemd {
				want = path.Join(e.CgroupDir, "ocid-"+id+".scope")
			}
			if got := cgroupOf(t, pidOf(t, ctx, e, id)); got != want && !strings.HasPrefix(got, want+"/") {
				t.Errorf("the container is in %s, want %s", got, want)
			}
			st := must[*runtimeapi.ContainerStatsResponse](t)(e.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))
			if st.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || st.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
				t.Errorf("statistics are empty: %v", st.Stats)
			}
			check(t, e.Down(ctx, podID))
			for _, r := range harness.CgroupRoots() {
				if _, err := os.Stat(filepath.Join(r, want)); err == nil {
					t.Errorf("%s is left in %s", want, r)
				}
				if _, err := os.Stat(filepath.Join(r, e.CgroupDir)); err != nil {
					t.Errorf("the parent that the client made is gone: %v", err)
				}
			}
		})
	}
}

// TestOOMKill: an exit by the OOM killer is told as such each time, also where
// systemd removes the cgroup at once.
func TestOOMKill(t *testing.T) {
	e, ctx := env(t)
	for _, handler := range handlers() {
		t.Run("handler "+handler, func(t *testing.T) {
			for i := range 4 {
				c := harness.Shell("greedy", "tail /dev/zero")
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
				podID, id, err := e.Up(ctx, e.Pod("oom", true), handler, c)
				check(t, err)
				st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id))
				if st.Reason != "OOMKilled" || st.ExitCode != 137 {
					t.Errorf("time %d: %q with code %d, want OOMKilled with 137", i, st.Reason, st.ExitCode)
				}
				check(t, e.Down(ctx, podID))
			}
		})
	}
}

func TestUnifiedKeys(t *testing.T) {
	needUnified(t)
	e, ctx := env(t)
	for _, handler := range handlers() {
		t.Run("handler "+handler, func(t *testing.T) {
			c := harness.Shell("main", harness.Forever)
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{
				MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
				Unified: map[string]string{"memory.high": "50331648", "memory.oom.group": "1", "pids.max": "77"},
			}
			podID, id, err := e.Up(ctx, e.Pod("unified", true), handler, c)
			check(t, err)
			dir := "/sys/fs/cgroup" + cgroupOf(t, pidOf(t, ctx, e, id))
			wantFiles(t, dir, map[string]string{
				"memory.max": "67108864", "memory.high": "50331648", "memory.oom.group": "1",
				"pids.max": "77", "cpu.max": "50000 100000",
			})
			_, err = e.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: id,
				Linux: &runtimeapi.LinuxContainerResources{
					MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 70000,
					Unified: map[string]string{"memory.high": "83886080"},
				},
			})
			check(t, err)
			wantFiles(t, dir, map[string]string{"memory.max": "100663296", "memory.high": "83886080", "cpu.max": "70000 100000"})
			check(t, e.Down(ctx, podID))
		})
	}
}

func wantFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
}

// TestSwapLimit: with a limit equal to that of memory there is no swap, with a
// larger one the difference.
func TestSwapLimit(t *testing.T) {
	needUnified(t)
	e, ctx := env(t)
	for want, limit := range map[string]int64{"0": 64 << 20, "33554432": 96 << 20} {
		c := harness.Shell("main", harness.Forever)
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: limit}
		podID, id, err := e.Up(ctx, e.Pod("swap", true), "", c)
		check(t, err)
		wantFiles(t, "/sys/fs/cgroup"+cgroupOf(t, pidOf(t, ctx, e, id)), map[string]string{"memory.swap.max": want})
		check(t, e.Down(ctx, podID))
	}
}

// TestCgroupsThatCameWithPods: a parent that no client has made goes with the
// last pod in it.
func TestCgroupsThatCameWithPods(t *testing.T) {
	e, ctx := env(t)
	parent, dir := e.SubCgroup("made")
	var pods []string
	for _, name := range []string{"one", "two"} {
		pod := e.Pod(name, true)
		pod.Linux.CgroupParent = parent
		podID, _, err := e.Up(ctx, pod, "", harness.Shell("main", harness.Forever))
		check(t, err)
		pods = append(pods, podID)
	}
	there := func() bool {
		for _, r := range harness.CgroupRoots() {
			if _, err := os.Stat(filepath.Join(r, dir)); err == nil {
				return true
			}
		}
		return false
	}
	check(t, e.Down(ctx, pods[0]))
	if !there() {
		t.Error("the cgroup went with the first of two pods")
	}
	check(t, e.Down(ctx, pods[1]))
	if there() {
		t.Errorf("%s is left behind", dir)
	}
}

// TestNoUnitsLeft: systemd has forgotten the scopes of containers that are gone,
// however they went.
func TestNoUnitsLeft(t *testing.T) {
	e, ctx := env(t)
	needSystemd(t, e)
	for name, script := range map[string]string{"ends": "exit 3", "stays": harness.Forever, "greedy": "tail /dev/zero"} {
		c := harness.Shell(name, script)
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
		podID, id, err := e.Up(ctx, e.Pod(name, true), "", c)
		check(t, err)
		if name != "stays" {
			must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id))
		}
		check(t, e.Down(ctx, podID))
	}
	var out []byte
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) { // systemd tells nobody that it forgot
		out = must[[]byte](t)(exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "ocid-*.scope").Output())
		if len(strings.TrimSpace(string(out))) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	t.Errorf("systemd still knows\n%s", out)
}

// TestMonitorKilledUnderSystemd: what a killed monitor leaves is ended, and its
// scopes go.
func TestMonitorKilledUnderSystemd(t *testing.T) {
	e, ctx := env(t)
	needSystemd(t, e)
	podID, id, err := e.Up(ctx, e.Pod("lost", true), "", harness.Shell("main", "tail -f /dev/null & tail -f /dev/null & wait"))
	check(t, err)
	for _, p := range e.Processes() {
		if filepath.Base(p.Exe) == "ocid-monitor" && strings.Contains(p.Args, podID) {
			check(t, unix.Kill(p.PID, unix.SIGKILL))
		}
	}
	st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id))
	if st.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", st.ExitCode)
	}
	check(t, e.Down(ctx, podID))
	if _, err := os.Stat("/sys/fs/cgroup" + path.Join(e.CgroupDir, "ocid-"+id+".scope")); err == nil {
		t.Error("the scope is left behind")
	}
}

// TestMonitorCgroup: monitors live where the configuration says.
func TestMonitorCgroup(t *testing.T) {
	needUnified(t)
	e, ctx := own(t, harness.Options{ExtraTOML: "[runtime]\nmonitor_cgroup = \"pod\"\n"})
	needSystemd(t, e)
	must[string](t)(e.Pull(ctx, harness.Busybox))
	podID, _, err := e.Up(ctx, e.Pod("mon", true), "", harness.Shell("main", harness.Forever))
	check(t, err)
	want := path.Join(e.CgroupDir, "ocid-monitor-"+podID+".scope")
	found := false
	for _, p := range e.Processes() {
		if filepath.Base(p.Exe) == "ocid-monitor" {
			found = true
			if got := cgroupOf(t, p.PID); got != want {
				t.Errorf("the monitor is in %s, want %s", got, want)
			}
		}
	}
	if !found {
		t.Error("no monitor runs")
	}
	check(t, e.Down(ctx, podID))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // systemd removes it, some time
		if _, err := os.Stat("/sys/fs/cgroup" + want); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the monitor's scope is left behind")
		}
	}
}
