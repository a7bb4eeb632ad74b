// Package kubelet proves ocid with the program it is made for: a real kubelet,
// alone with static pods, over a private daemon. It needs bin/ (make build) and
// the kubelet (hack/tools kubelet).
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/kubelet/node"
)

const nodeIP = "192.168.66.1"

var shared struct {
	once sync.Once
	node *node.Node
	err  error

	before harness.Snapshot
}

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if err := harness.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if n := shared.node; n != nil {
		if err := leaks(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		if code != 0 {
			keep(n)
		}
		if err := errors.Join(n.Close(), n.Env.Close()); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			return 1
		}
	}
	return code
}

// once is what is made once and stays: the kubelet's own cgroups, the images,
// and directories and caches that all pods share.
var once = regexp.MustCompile(`^(cgroup: |file in root: |file in cni: results$|file in run-root: (storage/|pods$|runtime(/ocid(\.seccomp(/[0-9a-f]+)?)?)?$))`)

// leaks ends the kubelet, removes all pods, and compares with what was there
// before the first.
func leaks(n *node.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Signal(unix.SIGTERM); err != nil {
		return err
	}
	l, err := n.Env.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range l.Items {
		if err := n.Env.Down(ctx, p.Id); err != nil {
			return err
		}
	}
	left, err := n.Env.Leaks(shared.before)
	for _, x := range left {
		if !once.MatchString(x) {
			err = errors.Join(err, fmt.Errorf("left behind: %s", x))
		}
	}
	return err
}

// keep saves both logs of a failed run.
func keep(n *node.Node) {
	dir := os.Getenv("RESULTS")
	if dir == "" {
		fmt.Fprintf(os.Stderr, "the end of the daemon's log:\n%s\nthe end of the kubelet's log:\n%s\n", n.Env.LogTail(40), node.Tail(n.LogFile(), 40))
		return
	}
	for _, f := range []string{n.Env.LogFile(), n.LogFile()} {
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "test-kubelet-"+filepath.Base(f)), b, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// start makes an environment with a daemon and, when it is healthy, a kubelet.
func start(ctx context.Context, o node.Options) (n *node.Node, err error) {
	e, err := harness.New(ctx, harness.Options{Progress: os.Stderr, LoopRoot: 4 << 30})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if n != nil {
				keep(n)
			}
			err = errors.Join(err, e.Close())
		}
	}()
	if err := node.Confine(e.Dir); err != nil {
		return nil, err
	}
	if err := node.Address(net.ParseIP(nodeIP)); err != nil {
		return nil, err
	}
	if err := e.Start(ctx); err != nil {
		return nil, err
	}
	o.Env, o.IP = e, nodeIP
	if n, err = node.New(o); err != nil {
		return nil, err
	}
	if shared.before, err = e.Snapshot(); err != nil {
		return nil, err
	}
	return n, n.Start(ctx, nil)
}

// beside returns the shared node to a test that runs beside others.
func beside(t *testing.T) (*node.Node, context.Context) {
	t.Helper()
	t.Parallel()
	return kubelet(t)
}

// kubelet returns the node that the tests share to a test that runs alone.
func kubelet(t *testing.T) (*node.Node, context.Context) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs the CNI plugins of Debian's containernetworking-plugins")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	shared.once.Do(func() {
		shared.node, shared.err = start(ctx, node.Options{Config: map[string]any{
			"podPidsLimit":                100,
			"containerLogMaxSize":         "64Ki",
			"containerLogMaxFiles":        3,
			"containerLogMonitorInterval": "3s",
			"shutdownGracePeriod":         "20s", "shutdownGracePeriodCriticalPods": "10s",
		}, Vars: []string{"DBUS_SYSTEM_BUS_ADDRESS=" + busAddress}})
	})
	if shared.err != nil {
		t.Fatalf("start the kubelet: %v", shared.err)
	}
	return shared.node, ctx
}

var words = strings.NewReplacer("BUSYBOX", harness.Busybox, "NGINX", harness.Nginx,
	"HTTPD", "registry.k8s.io/e2e-test-images/httpd:2.4.39-4", "FOREVER", harness.Forever)

// apply runs a static pod until the test's end. The spec is the YAML below
// spec:, indented by two.
func apply(ctx context.Context, t *testing.T, n *node.Node, name, spec string) {
	t.Helper()
	manifest := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n  namespace: default\nspec:\n" + words.Replace(spec)
	check(t, n.Apply(name, manifest))
	t.Cleanup(func() {
		if t.Failed() {
			if p, err := n.Pod(context.WithoutCancel(ctx), name); err == nil {
				t.Logf("pod %s: %v", name, p)
			}
		}
		if err := withdraw(ctx, n, name); err != nil {
			t.Error(err)
		}
	})
}

// withdraw takes a static pod away, if it is still there, and waits for its end.
func withdraw(ctx context.Context, n *node.Node, name string) error {
	if err := n.Withdraw(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 90*time.Second)
	defer cancel()
	return n.AwaitGone(ctx, name)
}

// up runs a static pod and waits until it is ready.
func up(ctx context.Context, t *testing.T, n *node.Node, name, spec string) *node.Pod {
	t.Helper()
	apply(ctx, t, n, name, spec)
	return must[*node.Pod](t)(n.AwaitPod(ctx, name, "readiness", (*node.Pod).Ready))
}

// cri is a container's status, from ocid itself, by the id that the kubelet has.
func cri(ctx context.Context, t *testing.T, n *node.Node, c *node.Container) *runtimeapi.ContainerStatus {
	t.Helper()
	if c == nil {
		t.Fatal("the kubelet does not know the container")
	}
	return must[*runtimeapi.ContainerStatus](t)(n.Env.Status(ctx, strings.TrimPrefix(c.ContainerID, "ocid://")))
}

// shell runs a script in a container of a pod, over the CRI.
func shell(ctx context.Context, t *testing.T, n *node.Node, p *node.Pod, container, script string) string {
	t.Helper()
	c := p.Container(container)
	if c == nil {
		t.Fatalf("no container %s in %v", container, p)
	}
	r := must[*runtimeapi.ExecSyncResponse](t)(n.Env.Exec(ctx, strings.TrimPrefix(c.ContainerID, "ocid://"), "sh", "-c", script))
	return string(r.Stdout) + string(r.Stderr)
}

// hostDir is a directory of the machine that pods of the test may mount.
func hostDir(t *testing.T, n *node.Node) string {
	t.Helper()
	d := filepath.Join(n.Dir(), "host", t.Name())
	check(t, os.MkdirAll(d, 0o755))
	// World-writable, past the umask: some containers are not root.
	check(t, unix.Chmod(d, 0o777))
	return d
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
