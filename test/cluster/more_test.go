package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestResize: a running container gets other limits, without a restart.
func TestResize(t *testing.T) {
	c := up(t)
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: resized}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "FOREVER"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
`)
	c.do("wait", "--for=condition=ready", "pod/resized", "--timeout=60s")
	// Both layouts of the hierarchies; one is there.
	const look = `cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us memory.max cpu.max 2>/dev/null; true`
	if got := strings.Fields(c.do("exec", "resized", "--", "sh", "-c", look)); len(got) < 2 || got[0] != "67108864" || got[1] != "20000" {
		t.Errorf("limits before: %v", got)
	}
	c.do("patch", "pod", "resized", "--subresource=resize", "-p",
		`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"150m","memory":"48Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
	c.until("300m 96Mi", "get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.cpu} {.status.containerStatuses[0].resources.limits.memory}")
	if got := strings.Fields(c.do("exec", "resized", "--", "sh", "-c", look)); len(got) < 2 || got[0] != "100663296" || got[1] != "30000" {
		t.Errorf("limits after: %v", got)
	}
	if got := c.do("get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("restarts: %s", got)
	}
}

// TestRuntimeClass: a pod under another OCI runtime, and one whose handler does
// not exist.
func TestRuntimeClass(t *testing.T) {
	c := up(t)
	c.apply(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: other}
handler: runc
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: unknown}
handler: unknown
---
apiVersion: v1
kind: Pod
metadata: {name: by-runc}
spec:
  runtimeClassName: other
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "FOREVER"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: by-none}
spec:
  runtimeClassName: unknown
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "FOREVER"]}]
`)
	c.do("wait", "--for=condition=ready", "pod/by-runc", "--timeout=60s")
	if got := c.do("exec", "by-runc", "--", "hostname"); got != "by-runc\n" {
		t.Errorf("exec: %q", got)
	}
	err := c.await(c.ctx, "an event that names the missing handler", func() bool {
		out, err := c.kubectl(c.ctx, "get", "events", "--field-selector=involvedObject.name=by-none", "-o", "jsonpath={.items[*].message}")
		return err == nil && strings.Contains(out, `"unknown"`)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestUserNamespaces: a Deployment whose pods have user namespaces, with a token
// and a configuration in volumes.
func TestUserNamespaces(t *testing.T) {
	c := up(t)
	c.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {key: first}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: inside}
spec:
  replicas: 3
  selector: {matchLabels: {app: inside}}
  template:
    metadata: {labels: {app: inside}}
    spec:
      hostUsers: false
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: BUSYBOX
        command: [sh, -c, "FOREVER"]
        volumeMounts: [{name: settings, mountPath: /settings}]
      volumes: [{name: settings, configMap: {name: settings}}]
`)
	c.do("rollout", "status", "deployment/inside", "--timeout=60s")
	seen := map[string]bool{}
	for _, pod := range strings.Fields(c.do("get", "pods", "-l", "app=inside", "-o", "jsonpath={.items[*].metadata.name}")) {
		out := c.do("exec", pod, "--", "sh", "-c", "cat /settings/key; echo; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; cat /proc/self/uid_map")
		f := strings.Fields(out)
		if len(f) != 5 || f[0] != "first" || f[1] != "token" || f[3] == "0" || seen[f[3]] {
			t.Errorf("%s: %q; host users before: %v", pod, out, seen)
			continue
		}
		seen[f[3]] = true
	}
	if len(seen) != 3 {
		t.Errorf("three pods have the host users %v", seen)
	}
}

// TestDaemonKilledInRollout: a rollout ends well though the daemon is killed
// again and again in it, and no container that ran was restarted.
func TestDaemonKilledInRollout(t *testing.T) {
	c := up(t)
	c.apply(deployment)
	c.do("scale", "deployment/web", "--replicas=8")
	c.do("rollout", "status", "deployment/web", "--timeout=120s")
	c.do("set", "env", "deployment/web", "ROUND=3")
	done := make(chan error, 1)
	go func() {
		_, err := c.kubectl(c.ctx, "rollout", "status", "deployment/web", "--timeout=180s")
		done <- err
	}()
	env := c.nodes[0].Env
	for kills := 0; ; kills++ {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			t.Logf("the daemon was killed %d times", kills)
			checkRollout(t, c)
			return
		case <-time.After(1500 * time.Millisecond): // the next kill
		}
		if err := env.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := env.Start(context.WithoutCancel(c.ctx)); err != nil {
			t.Fatal(err)
		}
	}
}

func checkRollout(t *testing.T, c k) {
	t.Helper()
	// A container that ran and was ended has a last state with its id.
	out := c.do("get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.containers[0].env[0].value}/{.status.containerStatuses[0].lastState.terminated.containerID} {end}`)
	n := 0
	for _, p := range strings.Fields(out) {
		if p == "3/" {
			n++
		}
	}
	if n != 8 {
		t.Errorf("%d of 8 pods are new and unharmed: %s", n, fmt.Sprint(out))
	}
}
