package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/kubelet/node"
	"golang.org/x/sys/unix"
)

// TestPodFields: what a pod can ask for besides containers, as its processes see it.
func TestPodFields(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "fields", `
  terminationGracePeriodSeconds: 1
  hostname: chosen
  shareProcessNamespace: true
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.7], searches: [one.test, two.test], options: [{name: ndots, value: "3"}]}
  hostAliases: [{ip: 192.0.2.9, hostnames: [alias.test]}]
  securityContext:
    supplementalGroups: [5001]
    supplementalGroupsPolicy: Strict
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    workingDir: /tmp
    env:
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    resources: {limits: {memory: 40Mi}}
    securityContext:
      runAsUser: 33
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
      seccompProfile: {type: RuntimeDefault}
  - name: other
    image: BUSYBOX
    command: [sh, -c, "exec sleep 98765"]
    securityContext: {capabilities: {add: [SYS_PTRACE]}}
`)
	for script, want := range map[string]string{
		"hostname":              "chosen",
		"cat /etc/resolv.conf":  "search one.test two.test\nnameserver 192.0.2.7\noptions ndots:3\n",
		"grep alias /etc/hosts": "192.0.2.9\talias.test",
		"cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "80",
		"ps -o args":                        "sleep 98765",
		"id":                                "uid=33(www-data) gid=33(www-data) groups=33(www-data),5001\n",
		"pwd; echo $MEMORY":                 "/tmp\n41943040\n",
		"echo [$POD_IP]":                    "[" + p.Status.PodIP + "]",
		"grep CapBnd /proc/self/status":     "0000000000000400",
		"grep NoNewPrivs /proc/self/status": "1",
		"grep Seccomp: /proc/self/status":   "2",
		"ls -la /proc/1/root/ 2>&1":         "ermission denied",
	} {
		if got := shell(ctx, t, n, p, "main", script); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := shell(ctx, t, n, p, "other", "grep Seccomp: /proc/self/status"); !strings.Contains(got, "2") {
		t.Errorf("the kubelet's default seccomp profile: %q", got)
	}
}

// TestPrivileged: the host's namespaces and devices, and mounts that a container
// makes for the machine.
func TestPrivileged(t *testing.T) {
	n, ctx := beside(t)
	dir := hostDir(t, n)
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=777"))
	t.Cleanup(func() {
		for unix.Unmount(filepath.Join(dir, "made"), unix.MNT_DETACH) == nil {
		}
		check(t, unix.Unmount(dir, unix.MNT_DETACH))
	})
	check(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
	check(t, os.MkdirAll(filepath.Join(dir, "made"), 0o755))
	p := up(ctx, t, n, "privileged", fmt.Sprintf(`
  terminationGracePeriodSeconds: 1
  hostPID: true
  hostIPC: true
  hostNetwork: true
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "mount -t tmpfs inside /host/made && touch /host/made/file; FOREVER"]
    readinessProbe: {exec: {command: [cat, /host/made/file]}, periodSeconds: 1}
    securityContext: {privileged: true}
    volumeMounts: [{name: host, mountPath: /host, mountPropagation: Bidirectional}]
  - name: watcher
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    volumeMounts: [{name: host, mountPath: /host, mountPropagation: HostToContainer, readOnly: true, recursiveReadOnly: Disabled}]
  volumes: [{name: host, hostPath: {path: %s}}]
`, dir))
	if _, err := os.Stat(filepath.Join(dir, "made", "file")); err != nil {
		t.Errorf("a mount of the container does not reach the machine: %v", err)
	}
	for script, want := range map[string]string{
		"ps -o args":                   "kubelet --config",
		"ls -d /dev/loop-control":      "/dev/loop-control",
		"grep Seccomp: /proc/1/status": "0",
		"ip -o link":                   "node0",
	} {
		if got := shell(ctx, t, n, p, "main", script); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	check(t, unix.Mount("tmpfs", filepath.Join(dir, "made"), "tmpfs", 0, ""))
	check(t, os.WriteFile(filepath.Join(dir, "made", "later"), nil, 0o644))
	if got := shell(ctx, t, n, p, "watcher", "ls /host/made"); got != "later\n" {
		t.Errorf("a later mount of the machine, in the container: %q", got)
	}
}

// TestImageVolume: an image's files as a volume, whole and in part.
func TestImageVolume(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "imagevolume", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    volumeMounts:
    - {name: image, mountPath: /whole}
    - {name: image, mountPath: /part, subPath: www}
  volumes: [{name: image, image: {reference: HTTPD, pullPolicy: IfNotPresent}}]
`)
	for script, want := range map[string]string{
		"cat /whole/www/index.html": "It works!",
		"ls /part":                  "index.html",
		"touch /whole/www/x":        "Read-only file system",
	} {
		if got := shell(ctx, t, n, p, "main", script); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
}

// TestAlpha runs the kubelet with what is still off by default there and asks
// the runtime for more: events, streamed lists, statistics, stop signals.
func TestAlpha(t *testing.T) {
	n, ctx := kubelet(t)
	check(t, restartKubelet(ctx, n, unix.SIGTERM, map[string]any{"featureGates": map[string]any{
		"EventedPLEG": true, "CRIListStreaming": true, "PodAndContainerStatsFromCRI": true, "ContainerStopSignals": true,
	}}))
	t.Cleanup(func() { check(t, restartKubelet(ctx, n, unix.SIGTERM, nil)) })
	p := up(ctx, t, n, "alpha", `
  terminationGracePeriodSeconds: 30
  os: {name: linux}
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap 'echo usr1; exit 0' USR1; trap : TERM; while :; do sleep 3600 & wait $!; done"]
    lifecycle: {stopSignal: SIGUSR1}
  - name: brief
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
`)
	t.Run("events", func(t *testing.T) {
		// Relisting every 300 s cannot be what tells of the end.
		start := time.Now()
		shell(ctx, t, n, p, "main", "true")
		c := cri(ctx, t, n, p.Container("brief"))
		check(t, n.Env.StopContainer(ctx, c.Id, 0))
		must[*node.Pod](t)(n.AwaitPod(ctx, "alpha", "restart", func(p *node.Pod) bool {
			c := p.Container("brief")
			return c != nil && c.RestartCount == 1 && c.State.Running != nil
		}))
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("the kubelet learned of an end after %v", d)
		}
		m := string(must[[]byte](t)(n.Get(ctx, "/metrics")))
		if !strings.Contains(m, "\nkubelet_evented_pleg_connection_success_count 1\n") {
			t.Error("the kubelet is not connected to the events once")
		}
		if strings.Contains(m, "\nkubelet_evented_pleg_connection_error_count") && !strings.Contains(m, "\nkubelet_evented_pleg_connection_error_count 0\n") {
			t.Error("the connection for events failed")
		}
	})
	t.Run("streamed lists", func(t *testing.T) {
		b := must[[]byte](t)(os.ReadFile(n.Env.LogFile()))
		for _, call := range []string{"StreamPodSandboxes", "StreamContainers"} {
			if !strings.Contains(string(b), call) {
				t.Errorf("the kubelet did not call %s", call)
			}
		}
	})
	t.Run("statistics", func(t *testing.T) { statistics(t, n) })
	t.Run("stop signal", func(t *testing.T) {
		start := time.Now()
		check(t, withdraw(ctx, n, "alpha"))
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("SIGUSR1 would have ended it at once; it took %v", d)
		}
	})
}

// statistics looks at the kubelet's summary and metrics, made from the CRI's.
func statistics(t *testing.T, n *node.Node) {
	ctx := t.Context()
	var s struct {
		Pods []struct {
			PodRef     struct{ Name string }
			CPU        struct{ UsageCoreNanoSeconds uint64 }
			Memory     struct{ WorkingSetBytes uint64 }
			Network    struct{ RxBytes *uint64 }
			Containers []struct {
				Name   string
				CPU    struct{ UsageCoreNanoSeconds uint64 }
				Memory struct{ WorkingSetBytes uint64 }
				Rootfs struct{ UsedBytes *uint64 }
			}
		}
	}
	check(t, n.Await(ctx, "statistics of the pod", func() (bool, error) {
		b, err := n.Get(ctx, "/stats/summary")
		if err != nil {
			return false, err
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return false, err
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != n.Static("alpha") || len(p.Containers) != 2 {
				continue
			}
			ok := p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0 && p.Network.RxBytes != nil
			for _, c := range p.Containers {
				ok = ok && c.CPU.UsageCoreNanoSeconds > 0 && c.Memory.WorkingSetBytes > 0 && c.Rootfs.UsedBytes != nil
			}
			return ok, nil
		}
		return false, nil
	}))
	m := string(must[[]byte](t)(n.Get(ctx, "/metrics/cadvisor")))
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total", "container_fs_usage_bytes", "container_processes"} {
		if !strings.Contains(m, name+"{") {
			t.Errorf("no %s among the kubelet's metrics", name)
		}
	}
}
