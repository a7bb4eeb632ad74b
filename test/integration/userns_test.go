package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// shift is where ids of the pods here begin on the host.
const shift = 1 << 20

func idMap() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: shift, Length: 65536}}
}

// userPod is a pod with a user namespace, with or without a PID namespace that
// its containers share.
func userPod(e *harness.Env, name string, sharePID bool) *runtimeapi.PodSandboxConfig {
	pod := e.Pod(name, false)
	ns := pod.Linux.SecurityContext.NamespaceOptions
	ns.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: idMap(), Gids: idMap()}
	if sharePID {
		ns.Pid = runtimeapi.NamespaceMode_POD
	}
	return pod
}

func sharedPID(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	return c
}

// sh runs a script in a container and returns its output.
func sh(t *testing.T, ctx context.Context, e *harness.Env, id, script string) string {
	t.Helper()
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", script))
	if r.ExitCode != 0 {
		t.Errorf("%s: exit code %d: %s%s", script, r.ExitCode, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func wantSh(t *testing.T, ctx context.Context, e *harness.Env, id, script, want string) {
	t.Helper()
	if got := sh(t, ctx, e, id, script); got != want {
		t.Errorf("%s: got %q, want %q", script, got, want)
	}
}

func ownerOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestUserNamespace(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("share PID %t", share), func(t *testing.T) {
			e, ctx := env(t)
			userNamespace(t, ctx, e, share)
		})
	}
}

func userNamespace(t *testing.T, ctx context.Context, e *harness.Env, share bool) {
	pod := userPod(e, "userns", share)
	pod.Hostname = "inside"
	pod.Linux.Sysctls = map[string]string{"kernel.shmmax": "654321", "net.ipv4.ip_unprivileged_port_start": "81"}
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	volume := filepath.Join(e.Dir, "volume-"+pod.Metadata.Uid)
	check(t, os.MkdirAll(volume, 0o755))
	t.Cleanup(func() { os.RemoveAll(volume) })
	check(t, os.WriteFile(filepath.Join(volume, "old"), []byte("kept"), 0o600))

	c := harness.Shell("main", "echo started; "+harness.Forever)
	if share {
		sharedPID(c)
	}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	c.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/volume", HostPath: volume, UidMappings: idMap(), GidMappings: idMap()},
		{ContainerPath: "/unmapped", HostPath: volume},
	}
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/zip", Permissions: "rw"}}
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))

	wantSh(t, ctx, e, id, "cat /proc/self/uid_map | xargs", fmt.Sprint("0 ", shift, " 65536"))
	wantSh(t, ctx, e, id, "id -u; stat -c %u:%g / /bin/sh /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /volume /volume/old | sort -u", "0\n0:0")
	wantSh(t, ctx, e, id, "stat -c %u /unmapped", "65534")
	wantSh(t, ctx, e, id, "hostname; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_unprivileged_port_start", "inside\n654321\n81")
	// What the pod's root may do: its own files, /dev/shm, mqueue, devices, ids.
	wantSh(t, ctx, e, id, "cat /volume/old && echo new > /volume/new && chown 7:8 /volume/new && "+
		"echo x > /dev/shm/f && echo '10.9.9.9 added' >> /etc/hosts && touch /dev/mqueue/q && mkdir /etc/made && "+
		"chown 33 /bin/nc && head -c 3 /dev/zip | wc -c && mount -t tmpfs none /mnt 2>/dev/null || echo no-mount", "kept3\nno-mount")
	wantSh(t, ctx, e, id, "ls /sys/class/net | sort | xargs", "eth0 lo")
	wantSh(t, ctx, e, id, "cat /dev/null; echo > /dev/null; test -c /dev/ptmx -o -L /dev/ptmx && echo ok", "ok")

	if got, want := ownerOf(t, filepath.Join(volume, "new")), "7:8"; got != want {
		t.Errorf("a file made in a mapped volume belongs to %s on the host, want %s", got, want)
	}
	upper := filepath.Join(e.Root, "rootfs", id, "upper")
	for path, want := range map[string]string{
		"etc/made": fmt.Sprintf("%d:%d", shift, shift), "bin/nc": fmt.Sprintf("%d:%d", shift+33, shift),
	} {
		if got := ownerOf(t, filepath.Join(upper, path)); got != want {
			t.Errorf("%s belongs to %s on the host, want %s", path, got, want)
		}
	}
	st := must[*runtimeapi.PodSandboxStatusResponse](t)(e.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true}))
	if u := st.Status.Linux.Namespaces.Options.UsernsOptions; u.GetMode() != runtimeapi.NamespaceMode_POD || len(u.GetUids()) != 1 || u.Uids[0].HostId != shift {
		t.Errorf("the pod's status says %v", u)
	}
	pid := containerPID(t, ctx, e, id)
	for _, p := range podProcesses(t, pid, share) {
		b := string(must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/status", p))))
		if !strings.Contains(b, fmt.Sprintf("\nUid:\t%d\t", shift)) {
			t.Errorf("process %d of the pod has another identity than the pod's root:\n%s", p, b)
		}
	}

	second := harness.Shell("second", harness.Forever)
	second.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
	if share {
		sharedPID(second)
	}
	other := must[string](t)(e.RunContainer(ctx, podID, pod, second))
	wantSh(t, ctx, e, other, "id -u; cat /dev/shm/f", "1234\nx")
	if share {
		wantSh(t, ctx, e, other, "ps -o user,args | grep -c 'sleep 3600$'", "2")
	}
	debug := harness.Shell("debug", harness.Forever)
	debug.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
	target := must[string](t)(e.RunContainer(ctx, podID, pod, debug))
	if sh(t, ctx, e, target, "readlink /proc/self/ns/pid") != sh(t, ctx, e, id, "readlink /proc/self/ns/pid") {
		t.Error("the ephemeral container is not in its target's PID namespace")
	}
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
	check(t, os.RemoveAll(volume))
}

// TestUserNamespaceRefusals: what cannot be had with a user namespace.
func TestUserNamespaceRefusals(t *testing.T) {
	e, ctx := env(t)
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"host network":  func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE },
		"host pid":      func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE },
		"host ipc":      func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE },
		"no mapping":    func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"two mappings":  func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = append(idMap(), idMap()...) },
		"not root":      func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].ContainerId = 1 },
		"empty mapping": func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].Length = 0 },
		"overflow":      func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 1<<32 - 2 },
		"container":     func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER },
	} {
		pod := userPod(e, "refused", false)
		change(pod.Linux.SecurityContext.NamespaceOptions)
		if id, err := e.RunPod(ctx, pod, ""); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
			_ = e.Down(ctx, id)
		}
	}
	if _, err := e.RunPod(ctx, userPod(e, "refused", false), "runc"); status.Code(err) != codes.InvalidArgument {
		s := must[*runtimeapi.StatusResponse](t)(e.Runtime.Status(ctx, &runtimeapi.StatusRequest{}))
		t.Errorf("a runtime without id-mapped mounts: %v; handlers are %v", err, s.RuntimeHandlers)
	}
	pod := userPod(e, "mapped", false)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	for name, change := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"user that is not mapped": func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 70000}
		},
		"group that is not mapped": func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{70000} },
		"the host's": func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
		},
	} {
		c := harness.Shell("c", harness.Forever)
		change(c.Linux.SecurityContext)
		if _, err := e.CreateContainer(ctx, podID, pod, c); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
}

// TestUserNamespaceSurvives: a killed daemon leaves the pod as it is.
func TestUserNamespaceSurvives(t *testing.T) {
	e, ctx := env(t)
	pod := userPod(e, "survivor", true)
	podID, id, err := e.Up(ctx, pod, "", sharedPID(harness.Shell("main", harness.Forever)))
	check(t, err)
	check(t, e.Signal(unix.SIGKILL))
	check(t, e.Start(ctx))
	wantSh(t, ctx, e, id, "id -u; cat /proc/self/uid_map | xargs", fmt.Sprint("0\n0 ", shift, " 65536"))
	late := must[string](t)(e.RunContainer(ctx, podID, pod, sharedPID(harness.Shell("late", harness.Forever))))
	wantSh(t, ctx, e, late, "ps | grep -c 'sleep 3600$'", "2")
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
}

// containerPID is the host's pid of a container's first process.
func containerPID(t *testing.T, ctx context.Context, e *harness.Env, id string) int {
	t.Helper()
	r := must[*runtimeapi.ContainerStatusResponse](t)(e.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true}))
	var info struct {
		PID int `json:"pid"`
	}
	check(t, json.Unmarshal([]byte(r.Info["info"]), &info))
	if info.PID == 0 {
		t.Fatal("the container's status has no pid")
	}
	return info.PID
}

// podProcesses are the container's first process and, where the pod shares a
// PID namespace, the one that holds it.
func podProcesses(t *testing.T, pid int, share bool) []int {
	t.Helper()
	out := []int{pid}
	if !share {
		return out
	}
	ns := must[string](t)(os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)))
	for _, d := range must[[]os.DirEntry](t)(os.ReadDir("/proc")) {
		p, err := strconv.Atoi(d.Name())
		if err != nil || p == pid {
			continue
		}
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p)); err == nil && got == ns {
			out = append(out, p)
		}
	}
	if len(out) < 2 {
		t.Error("nothing holds the pod's PID namespace")
	}
	return out
}
