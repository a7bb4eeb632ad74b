package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/test/kubelet/node"
)

// TestInitAndSidecar: init containers run one after the other, a sidecar among
// them starts before the next and outlives the main container.
func TestInitAndSidecar(t *testing.T) {
	n, ctx := beside(t)
	dir := hostDir(t, n)
	p := up(ctx, t, n, "init", fmt.Sprintf(`
  terminationGracePeriodSeconds: 20
  initContainers:
  - name: first
    image: BUSYBOX
    command: [sh, -c, "echo first >>/host/order"]
    volumeMounts: [{name: host, mountPath: /host}, {name: share, mountPath: /share}]
  - name: side
    image: BUSYBOX
    restartPolicy: Always
    command: [sh, -c, "echo side >>/host/order; touch /share/up; trap 'echo side ends >>/host/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
    startupProbe: {exec: {command: [test, -e, /share/up]}, periodSeconds: 1}
    volumeMounts: [{name: host, mountPath: /host}, {name: share, mountPath: /share}]
  - name: second
    image: BUSYBOX
    command: [sh, -c, "test -e /share/up && echo second >>/host/order"]
    volumeMounts: [{name: host, mountPath: /host}, {name: share, mountPath: /share}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "echo main >>/host/order; trap 'echo main ends >>/host/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
    readinessProbe: {exec: {command: [grep, -q, main, /host/order]}, periodSeconds: 1}
    volumeMounts: [{name: host, mountPath: /host}, {name: share, mountPath: /share}]
  volumes:
  - {name: host, hostPath: {path: %s}}
  - {name: share, emptyDir: {}}
`, dir))
	for _, name := range []string{"first", "second"} {
		c := p.Container(name)
		if c == nil || c.State.Terminated == nil || c.State.Terminated.Reason != "Completed" {
			t.Errorf("init container %s: %+v", name, c)
		}
	}
	if c := p.Container("side"); c == nil || c.State.Running == nil || c.Started == nil || !*c.Started {
		t.Errorf("the sidecar does not run: %+v", c)
	}
	check(t, withdraw(ctx, n, "init"))
	got := string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "order"))))
	if want := "first\nside\nsecond\nmain\nmain ends\nside ends\n"; got != want {
		t.Errorf("order:\n%s\nwant:\n%s", got, want)
	}
}

// TestProbes: exec, HTTP and TCP probes see a container come and go, and a
// failing liveness probe restarts it.
func TestProbes(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "probes", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: HTTPD
    startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /index.html, port: 80}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
  - name: worker
    image: BUSYBOX
    command: [sh, -c, "touch /live /ready; FOREVER"]
    readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [cat, /live]}, periodSeconds: 1, failureThreshold: 1}
`)
	ready := func(name string, want bool) {
		t.Helper()
		p = must[*node.Pod](t)(n.AwaitPod(ctx, "probes", fmt.Sprintf("%s ready=%v", name, want), func(p *node.Pod) bool {
			c := p.Container(name)
			return c != nil && c.Ready == want
		}))
	}
	shell(ctx, t, n, p, "worker", "rm /ready")
	shell(ctx, t, n, p, "web", "mv /www/index.html /www/away")
	ready("worker", false)
	ready("web", false)
	shell(ctx, t, n, p, "worker", "touch /ready")
	shell(ctx, t, n, p, "web", "mv /www/away /www/index.html")
	ready("worker", true)
	ready("web", true)
	for _, c := range p.Status.ContainerStatuses {
		if c.RestartCount != 0 {
			t.Errorf("readiness restarted %s", c.Name)
		}
	}
	first := p.Container("worker").ContainerID
	shell(ctx, t, n, p, "worker", "rm /live")
	p = must[*node.Pod](t)(n.AwaitPod(ctx, "probes", "restart by liveness", func(p *node.Pod) bool {
		c := p.Container("worker")
		return c != nil && c.RestartCount == 1 && c.Ready
	}))
	if p.Container("worker").ContainerID == first {
		t.Error("the restarted container kept its id")
	}
	if c := p.Container("web"); c.RestartCount != 0 {
		t.Error("the neighbour was restarted too")
	}
}

// TestCrashBackOff: a container that ends by itself is restarted, then waits.
func TestCrashBackOff(t *testing.T) {
	n, ctx := beside(t)
	apply(ctx, t, n, "crash", `
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "echo I fail; exit 3"]
`)
	p := must[*node.Pod](t)(n.AwaitPod(ctx, "crash", "back-off", func(p *node.Pod) bool {
		c := p.Container("main")
		return c != nil && c.RestartCount >= 1 && c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
	}))
	last := p.Container("main").LastState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last state: %+v", last)
	}
	body := must[[]byte](t)(n.Get(ctx, "/containerLogs/default/"+n.Static("crash")+"/main?previous=true"))
	if string(body) != "I fail\n" {
		t.Errorf("log of the previous container: %q", body)
	}
}

// TestVolumes: emptyDir on disk and in memory, hostPath, a read-only root, a
// read-only volume, and a volume's files for a group.
func TestVolumes(t *testing.T) {
	n, ctx := beside(t)
	dir := hostDir(t, n)
	check(t, os.WriteFile(filepath.Join(dir, "in"), []byte("from the host\n"), 0o644))
	p := up(ctx, t, n, "volumes", fmt.Sprintf(`
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 4711}
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 1234, runAsGroup: 1234}
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /fixed, readOnly: true}
  - name: other
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    volumeMounts: [{name: disk, mountPath: /disk}]
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: %s, type: Directory}}
`, dir))
	for script, want := range map[string]string{
		"id -G":        "1234 4711",
		"echo x >/new": "Read-only file system",
		"echo x >/disk/file && stat -c %g /disk/file":  "4711",
		"grep ' /memory ' /proc/mounts":                "size=1024k",
		"dd if=/dev/zero of=/memory/f bs=64k count=32": "No space left",
		"cat /host/in":                          "from the host",
		"echo out >/host/out && cat /fixed/out": "out",
		"echo x >/fixed/no":                     "Read-only file system",
		"test -w /etc/hosts && echo writable; grep -c volumes /etc/hostname": "1",
	} {
		if got := shell(ctx, t, n, p, "main", script); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := shell(ctx, t, n, p, "other", "cat /disk/file"); got != "x\n" {
		t.Errorf("the other container reads %q from the shared volume", got)
	}
	if b := must[[]byte](t)(os.ReadFile(filepath.Join(dir, "out"))); string(b) != "out\n" {
		t.Errorf("the host reads %q", b)
	}
}

// TestLimits: memory, processes and CPU are really bounded, and a container
// that the kernel ends for its memory is reported so.
func TestLimits(t *testing.T) {
	n, ctx := beside(t)
	apply(ctx, t, n, "oom", `
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: eater
    image: BUSYBOX
    command: [sh, -c, "exec tail /dev/zero"]
    resources: {limits: {memory: 24Mi}}
  - name: beside
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    resources: {limits: {memory: 24Mi, cpu: 100m}, requests: {memory: 8Mi, cpu: 50m}}
`)
	p := must[*node.Pod](t)(n.AwaitPod(ctx, "oom", "an end for lack of memory", func(p *node.Pod) bool {
		c := p.Container("eater")
		return c != nil && c.State.Terminated != nil
	}))
	if s := p.Container("eater").State.Terminated; s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("the eater's end: %+v", s)
	}
	if c := p.Container("beside"); c.State.Running == nil {
		t.Errorf("its neighbour: %+v", c)
	}
	throttled(ctx, t, n, p)
	// Last: a container with no process to spare takes no exec.
	out := shell(ctx, t, n, p, "beside", "i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done 2>&1 | head -1; true")
	if !strings.Contains(out, "can't fork") {
		t.Errorf("200 processes where the limit is 100: %q", out)
	}
}

// throttled uses more CPU than a container may and looks at what the kernel did.
func throttled(ctx context.Context, t *testing.T, n *node.Node, p *node.Pod) {
	t.Helper()
	out := shell(ctx, t, n, p, "beside", `timeout 1 sh -c 'while :; do :; done'
cd /sys/fs/cgroup; test -e cpu.stat || cd cpu; grep -w nr_throttled cpu.stat; cat cpu.cfs_quota_us cpu.max 2>/dev/null`)
	f := strings.Fields(out)
	if len(f) < 3 || f[1] == "0" || f[2] != "10000" {
		t.Errorf("a tenth of a CPU: %q", out)
	}
}
