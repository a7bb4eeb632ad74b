// Package cluster proves ocid under a whole control plane: Debian's etcd, and
// Kubernetes built from its module (hack/tools). One node first; TestTwoNodes
// adds a second. It needs bin/ (make build).
package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/harness"
)

var shared struct {
	c   *cluster
	err error
	why string // nothing can run, for this
}

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		shared.why = "needs root"
		return m.Run()
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		shared.why = "needs Debian's etcd-server"
		return m.Run()
	}
	if err := harness.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	shared.c, shared.err = start(ctx)
	cancel()
	code := m.Run()
	if dir := os.Getenv("RESULTS"); dir != "" && code != 0 {
		shared.c.save(dir, os.Stderr)
	}
	if err := shared.c.close(); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
		return 1
	}
	return code
}

// k is kubectl for one test: a failure of it is the test's.
type k struct {
	*cluster
	t   *testing.T
	ctx context.Context //nolint:containedctx // the test's own, for its length
}

func up(t *testing.T) k {
	t.Helper()
	if shared.why != "" {
		t.Skip(shared.why)
	}
	if shared.err != nil {
		t.Fatalf("start the cluster: %v", shared.err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	c := k{shared.c, t, ctx}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.kubectl(context.Background(), "describe", "pods", "-A")
			t.Log(out)
		}
	})
	return c
}

func (c k) do(args ...string) string {
	c.t.Helper()
	out, err := c.kubectl(c.ctx, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// apply makes objects and removes them at the test's end, waiting for that.
func (c k) apply(yaml string) {
	c.t.Helper()
	yaml = strings.NewReplacer("BUSYBOX", harness.Busybox, "HTTPD", httpd, "FOREVER", harness.Forever).Replace(yaml)
	if _, err := c.pipe(c.ctx, yaml, "apply", "-f", "-"); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if _, err := c.pipe(context.Background(), yaml, "delete", "--ignore-not-found", "--cascade=foreground", "--timeout=120s", "-f", "-"); err != nil {
			c.t.Error(err)
		}
	})
}

// until waits for a condition that a kubectl command prints.
func (c k) until(want string, args ...string) {
	c.t.Helper()
	var last string
	err := c.await(c.ctx, want, func() bool {
		last, _ = c.kubectl(c.ctx, args...)
		return last == want
	})
	if err != nil {
		c.t.Fatalf("kubectl %s: %q: %v", strings.Join(args, " "), last, err)
	}
}

const httpd = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: HTTPD
        env: [{name: ROUND, value: "1"}]
        readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
`

// TestDeployment: scaled from nothing to twenty, rolled to another template, and
// back to nothing.
func TestDeployment(t *testing.T) {
	c := up(t)
	c.apply(deployment)
	c.do("scale", "deployment/web", "--replicas=20")
	c.do("rollout", "status", "deployment/web", "--timeout=180s")
	c.until("20", "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}")
	c.do("set", "env", "deployment/web", "ROUND=2")
	c.do("rollout", "status", "deployment/web", "--timeout=180s")
	out := c.do("get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.containers[0].env[0].value}/{.status.containerStatuses[0].restartCount} {end}`)
	if n := strings.Count(out, "2/0"); n != 20 {
		t.Errorf("%d of 20 pods are ready with the new template and never restarted: %s", n, out)
	}
	c.do("scale", "deployment/web", "--replicas=0")
	c.do("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=120s")
}

// TestJobs: a Job runs to its end, and a CronJob starts one.
func TestJobs(t *testing.T) {
	c := up(t)
	c.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: often}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: main, image: BUSYBOX, command: [echo, ticked]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  completions: 6
  parallelism: 3
  completionMode: Indexed
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: OnFailure
      containers:
      - name: main
        image: BUSYBOX
        command: [sh, -c, "echo part $JOB_COMPLETION_INDEX"]
`)
	c.do("wait", "--for=condition=complete", "job/once", "--timeout=120s")
	out := c.do("logs", "-l", "app=once", "--max-log-requests=10")
	for i := range 6 {
		if !strings.Contains(out, fmt.Sprintf("part %d\n", i)) {
			t.Errorf("part %d is missing in the logs: %q", i, out)
		}
	}
	c.until("1", "get", "jobs", "-o", `jsonpath={.items[?(@.metadata.ownerReferences[0].kind=="CronJob")].status.succeeded}`)
}

// TestDaemonSet: one pod on each node.
func TestDaemonSet(t *testing.T) {
	c := up(t)
	c.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 1
      hostNetwork: true
      containers: [{name: main, image: BUSYBOX, command: [sh, -c, "FOREVER"]}]
`)
	c.do("rollout", "status", "daemonset/everywhere", "--timeout=60s")
	got := c.do("get", "pods", "-l", "app=everywhere", "-o", "jsonpath={range .items[*]}{.spec.nodeName} {.status.podIP};{end}")
	if got != "node-1 "+lan+"11;" {
		t.Errorf("pods: %s", got)
	}
}

const tool = `
apiVersion: v1
kind: Pod
metadata: {name: tool}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: BUSYBOX, stdin: true, command: [sh, -c, "echo begun; while read l; do echo got $l; done; FOREVER"]}
  - {name: web, image: HTTPD}
`

// TestKubectl: exec, cp, logs, attach, port-forward and debug.
func TestKubectl(t *testing.T) {
	c := up(t)
	c.apply(tool)
	c.do("wait", "--for=condition=ready", "pod/tool", "--timeout=60s")
	t.Run("exec", func(t *testing.T) {
		out, err := c.pipe(c.ctx, "input\n", "exec", "-i", "tool", "-c", "main", "--", "sh", "-c", "cat; echo $0 >&2; exit 5", "word")
		if out != "input\n" || err == nil || !strings.Contains(err.Error(), "exit code 5") || !strings.Contains(err.Error(), "word") {
			t.Errorf("%q, %v", out, err)
		}
	})
	t.Run("cp", func(t *testing.T) {
		from, to := filepath.Join(c.dir, "from"), filepath.Join(c.dir, "to")
		data := strings.Repeat("0123456789abcdef", 1<<18)
		if err := os.WriteFile(from, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		c.do("cp", from, "tool:/tmp/there", "-c", "main")
		c.do("cp", "tool:/tmp/there", to, "-c", "main")
		if b, err := os.ReadFile(to); err != nil || string(b) != data {
			t.Errorf("%d bytes came back of %d: %v", len(b), len(data), err)
		}
	})
	t.Run("attach and logs", func(t *testing.T) { attach(t, c) })
	t.Run("port-forward", func(t *testing.T) { portForward(t, c) })
	t.Run("debug", func(t *testing.T) { debug(t, c) })
}

// lines runs kubectl and gives its output line by line, until stop.
func (c k) lines(t *testing.T, args ...string) (next func() string, in io.Writer, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(c.ctx)
	cmd := c.command(ctx, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(stdout)
	next = func() string {
		t.Helper()
		l, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("kubectl %s: %q, %v", strings.Join(args, " "), l, err)
		}
		return l
	}
	return next, stdin, func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}
}

func attach(t *testing.T, c k) {
	follow, _, stopLogs := c.lines(t, "logs", "-f", "tool", "-c", "main")
	defer stopLogs()
	if l := follow(); l != "begun\n" {
		t.Errorf("the log's first line: %q", l)
	}
	out, in, stop := c.lines(t, "attach", "-i", "-q", "tool", "-c", "main")
	defer stop()
	if _, err := io.WriteString(in, "this\n"); err != nil {
		t.Fatal(err)
	}
	if l := out(); l != "got this\n" {
		t.Errorf("attached: %q", l)
	}
	if l := follow(); l != "got this\n" {
		t.Errorf("followed: %q", l)
	}
}

func portForward(t *testing.T, c k) {
	next, _, stop := c.lines(t, "port-forward", "pod/tool", ":80")
	defer stop()
	m := regexp.MustCompile(`127\.0\.0\.1:[0-9]+`).FindString(next())
	for range 3 {
		req, err := http.NewRequestWithContext(c.ctx, http.MethodGet, "http://"+m, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !strings.Contains(string(b), "It works!") {
			t.Errorf("forwarded: %q, %v", b, err)
		}
	}
}

// debug adds an ephemeral container that sees its target's processes, and one
// pod that sees the node's files.
func debug(t *testing.T, c k) {
	c.do("debug", "tool", "--image="+harness.Busybox, "--target=web", "-c", "look", "--", "sh", "-c", "ps; "+harness.Forever)
	err := c.await(c.ctx, "the ephemeral container", func() bool {
		out, err := c.kubectl(c.ctx, "logs", "tool", "-c", "look")
		return err == nil && strings.Contains(out, "httpd -f -p 80")
	})
	if err != nil {
		t.Error(err)
	}
	if got := c.do("get", "pod", "tool", "-o", "jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}"); got == "" {
		t.Error("the ephemeral container does not run")
	}
	out := c.do("debug", "node/node-1", "--image="+harness.Busybox, "--profile=sysadmin", "--", "sh", "-c", "ls /host/usr/bin/env; "+harness.Forever)
	name := regexp.MustCompile(`node-debugger-[a-z0-9-]+`).FindString(out)
	if name == "" {
		t.Fatalf("kubectl debug says %q", out)
	}
	defer c.do("delete", "pod", name, "--grace-period=1")
	c.until("/host/usr/bin/env\n", "logs", name)
}

// TestDrain: a drained node has no pods but the DaemonSet's and gets no new
// ones; then they come back.
func TestDrain(t *testing.T) {
	c := up(t)
	c.apply(deployment)
	c.do("scale", "deployment/web", "--replicas=4")
	c.do("rollout", "status", "deployment/web", "--timeout=120s")
	c.do("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	got := c.do("get", "pods", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.spec.nodeName}{end}")
	if got != "" {
		t.Errorf("pods on the drained node: %s", got)
	}
	c.do("uncordon", "node-1")
	c.do("rollout", "status", "deployment/web", "--timeout=120s")
}

// TestTwoNodes: pods of two nodes reach each other by their addresses, and a
// drain moves them all to one.
func TestTwoNodes(t *testing.T) {
	c := up(t)
	if err := c.addNode(c.ctx, 2); err != nil {
		t.Fatal(err)
	}
	c.apply(strings.Replace(deployment, "    spec:\n", `    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
`, 1))
	c.do("scale", "deployment/web", "--replicas=4")
	c.do("rollout", "status", "deployment/web", "--timeout=120s")
	pods := strings.Fields(c.do("get", "pods", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.metadata.name}/{.spec.nodeName}/{.status.podIP} {end}"))
	nodes := map[string]int{}
	for _, from := range pods {
		f := strings.Split(from, "/")
		nodes[f[1]]++
		for _, to := range pods {
			ip := strings.Split(to, "/")[2]
			out, err := c.kubectl(c.ctx, "exec", f[0], "--", "wget", "-q", "-T", "5", "-O", "-", "http://"+ip+"/")
			if err != nil || !strings.Contains(out, "It works!") {
				t.Errorf("from %s to %s: %q, %v", from, to, out, err)
			}
		}
	}
	if nodes["node-1"] != 2 || nodes["node-2"] != 2 {
		t.Errorf("pods by node: %v", nodes)
	}
	c.do("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	c.do("rollout", "status", "deployment/web", "--timeout=120s")
	c.until("node-2node-2node-2node-2", "get", "pods", "-l", "app=web", "-o", "jsonpath={range .items[*]}{.spec.nodeName}{end}")
	c.do("uncordon", "node-1")
}
