package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/kubelet/node"
)

const steady = `
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "touch /live; FOREVER"]
    livenessProbe: {exec: {command: [cat, /live]}, periodSeconds: 1}
    readinessProbe: {exec: {command: [cat, /live]}, periodSeconds: 1}
  - name: web
    image: HTTPD
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
`

// TestRestarts: the daemon is killed under the kubelet, the kubelet over the
// daemon, and both at once. No container is restarted by that, all are known
// and work, and new pods run.
func TestRestarts(t *testing.T) {
	n, ctx := kubelet(t)
	up(ctx, t, n, "steady-1", steady)
	up(ctx, t, n, "steady-2", steady)
	before := containers(ctx, t, n)
	for i, x := range []struct {
		what    string
		restart func() error
	}{
		{"the daemon killed", func() error { return killDaemon(ctx, n) }},
		{"the kubelet killed", func() error { return restartKubelet(ctx, n, unix.SIGKILL, nil) }},
		{"the kubelet ended", func() error { return restartKubelet(ctx, n, unix.SIGTERM, nil) }},
		{"both killed", func() error {
			if err := n.Signal(unix.SIGKILL); err != nil {
				return err
			}
			if err := killDaemon(ctx, n); err != nil {
				return err
			}
			return n.Start(ctx, nil)
		}},
	} {
		check(t, x.restart())
		// When a new pod is ready the kubelet has long looked at the old ones.
		name := fmt.Sprintf("after-%d", i)
		up(ctx, t, n, name, steady)
		for _, s := range []string{"steady-1", "steady-2"} {
			p := must[*node.Pod](t)(n.AwaitPod(ctx, s, "readiness after "+x.what, (*node.Pod).Ready))
			for _, c := range p.Status.ContainerStatuses {
				if c.RestartCount != 0 {
					t.Errorf("%s: %s of %s was restarted", x.what, c.Name, s)
				}
			}
			if got := shell(ctx, t, n, p, "main", "cat /etc/hostname"); got != n.Static(s)+"\n" {
				t.Errorf("%s: exec in %s: %q", x.what, s, got)
			}
		}
		check(t, withdraw(ctx, n, name))
		now := containers(ctx, t, n)
		for _, c := range before {
			if !slices.Contains(now, c) {
				t.Errorf("%s: container %s no longer runs; running: %v", x.what, c, now)
			}
		}
		if len(now) != len(before) {
			t.Errorf("%s: running before: %v; now: %v", x.what, before, now)
		}
	}
}

// TestDaemonKilledInStart: pods that are being made when the daemon is killed
// get there, each with one sandbox and nothing started twice.
func TestDaemonKilledInStart(t *testing.T) {
	n, ctx := kubelet(t)
	const pods = 6
	for i := range pods {
		apply(ctx, t, n, fmt.Sprintf("born-%d", i), steady)
	}
	for range 3 {
		check(t, n.Await(ctx, "another container", changes(ctx, t, n)))
		check(t, killDaemon(ctx, n))
	}
	for i := range pods {
		name := fmt.Sprintf("born-%d", i)
		must[*node.Pod](t)(n.AwaitPod(ctx, name, "readiness", (*node.Pod).Ready))
		ranOnce(ctx, t, n, name)
		l := must[*runtimeapi.ListPodSandboxResponse](t)(n.Env.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
			Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": n.Static(name)}},
		}))
		if len(l.Items) != 1 {
			t.Errorf("%s has %d sandboxes: %v", name, len(l.Items), l.Items)
		}
	}
}

// ranOnce checks that each container of a pod was started once. (A creation
// whose answer got lost is no start: the kubelet then makes the next attempt.)
func ranOnce(ctx context.Context, t *testing.T, n *node.Node, pod string) {
	t.Helper()
	l := must[*runtimeapi.ListContainersResponse](t)(n.Env.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": n.Static(pod)}},
	}))
	started := map[string]int{}
	for _, c := range l.Containers {
		if must[*runtimeapi.ContainerStatus](t)(n.Env.Status(ctx, c.Id)).StartedAt > 0 {
			started[c.Metadata.Name]++
		}
	}
	if len(started) != 2 || started["main"] != 1 || started["web"] != 1 {
		t.Errorf("%s: containers started: %v, want each once", pod, started)
	}
}

// changes tells when there is a container or a sandbox more than at first.
func changes(ctx context.Context, t *testing.T, n *node.Node) func() (bool, error) {
	count := func() (int, error) {
		c, err := n.Env.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return 0, err
		}
		p, err := n.Env.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return len(c.GetContainers()) + len(p.GetItems()), err
	}
	first := must[int](t)(count())
	return func() (bool, error) {
		now, err := count()
		return now > first || now >= 18, err
	}
}

func killDaemon(ctx context.Context, n *node.Node) error {
	if err := n.Env.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return n.Env.Start(ctx)
}

func restartKubelet(ctx context.Context, n *node.Node, sig unix.Signal, over map[string]any) error {
	if err := n.Signal(sig); err != nil {
		return err
	}
	return n.Start(ctx, over)
}

// containers lists the running containers as name, attempt and id.
func containers(ctx context.Context, t *testing.T, n *node.Node) []string {
	t.Helper()
	l := must[*runtimeapi.ListContainersResponse](t)(n.Env.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{
		Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
	}))
	var out []string
	for _, c := range l.Containers {
		out = append(out, fmt.Sprintf("%s %s/%d %s", c.Labels["io.kubernetes.pod.name"], c.Metadata.Name, c.Metadata.Attempt, c.Id))
	}
	return out
}

// TestImageCollection: a kubelet that finds its disk too full removes the images
// that nobody uses, and no other.
func TestImageCollection(t *testing.T) {
	n, ctx := kubelet(t)
	up(ctx, t, n, "user", steady)
	must[string](t)(n.Env.Pull(ctx, harness.Nginx))
	must[string](t)(n.Env.Pull(ctx, "registry.k8s.io/e2e-test-images/nonewprivs:1.3"))
	has := func(name string) bool {
		l := must[*runtimeapi.ListImagesResponse](t)(n.Env.Image.ListImages(ctx, &runtimeapi.ListImagesRequest{}))
		return slices.ContainsFunc(l.Images, func(i *runtimeapi.Image) bool { return slices.Contains(i.RepoTags, name) })
	}
	if !has(harness.Nginx) {
		t.Fatal("the pulled image is not listed")
	}
	check(t, restartKubelet(ctx, n, unix.SIGTERM, map[string]any{
		"evictionHard": map[string]any{"imagefs.available": "99%"}, "imageMinimumGCAge": "1ms",
	}))
	check(t, n.Await(ctx, "the removal of unused images", func() (bool, error) {
		return !has(harness.Nginx) && !has("registry.k8s.io/e2e-test-images/nonewprivs:1.3"), nil
	}))
	if !has(harness.Busybox) {
		t.Error("an image in use was removed")
	}
	p := must[*node.Pod](t)(n.AwaitPod(ctx, "user", "readiness", (*node.Pod).Ready))
	for _, c := range p.Status.ContainerStatuses {
		if c.RestartCount != 0 || !strings.HasPrefix(c.ContainerID, "ocid://") {
			t.Errorf("%+v", c)
		}
	}
	check(t, restartKubelet(ctx, n, unix.SIGTERM, nil))
}
