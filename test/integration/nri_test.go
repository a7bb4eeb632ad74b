package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// nriPlugin records what it is told and does what a test wants.
type nriPlugin struct {
	mu     sync.Mutex
	seen   []string // guarded by mu
	synced chan []*api.Container
	create func(p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
}

func (n *nriPlugin) note(what, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, what+" "+name)
}

func (n *nriPlugin) events() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.seen)
}

func (n *nriPlugin) Synchronize(_ context.Context, _ []*api.PodSandbox, cs []*api.Container) ([]*api.ContainerUpdate, error) {
	n.synced <- cs
	return nil, nil
}

func (n *nriPlugin) RunPodSandbox(_ context.Context, p *api.PodSandbox) error {
	n.note("run-pod", p.GetName())
	if p.GetAnnotations()["nri"] == "refuse" {
		return errors.New("this pod is not wanted")
	}
	return nil
}

func (n *nriPlugin) UpdatePodSandbox(_ context.Context, p *api.PodSandbox, _, r *api.LinuxResources) error {
	n.note("update-pod", fmt.Sprint(p.GetName(), " ", r.GetCpu().GetShares().GetValue()))
	return nil
}

func (n *nriPlugin) StopPodSandbox(_ context.Context, p *api.PodSandbox) error {
	n.note("stop-pod", p.GetName())
	return nil
}

func (n *nriPlugin) RemovePodSandbox(_ context.Context, p *api.PodSandbox) error {
	n.note("remove-pod", p.GetName())
	return nil
}

func (n *nriPlugin) CreateContainer(_ context.Context, p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	n.note("create", c.GetName())
	if n.create == nil {
		return nil, nil, nil
	}
	return n.create(p, c)
}

func (n *nriPlugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	n.note("created", c.GetName())
	return nil
}

func (n *nriPlugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	n.note("start", c.GetName())
	return nil
}

func (n *nriPlugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	n.note("started", c.GetName())
	return nil
}

func (n *nriPlugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	n.note("update", c.GetName())
	u := &api.ContainerUpdate{}
	u.SetContainerId(c.GetId())
	u.SetLinuxCPUShares(r.GetCpu().GetShares().GetValue() * 2)
	return []*api.ContainerUpdate{u}, nil
}

func (n *nriPlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	n.note("stop", c.GetName())
	return nil, nil
}

func (n *nriPlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	n.note("remove", c.GetName())
	return nil
}

// join connects a plugin to the daemon and waits until it is up to date.
func (n *nriPlugin) join(t *testing.T, ctx context.Context, socket string) (stub.Stub, []*api.Container) {
	t.Helper()
	n.synced = make(chan []*api.Container, 1)
	s, err := stub.New(n, stub.WithPluginName("test"), stub.WithPluginIdx("50"), stub.WithSocketPath(socket), stub.WithOnClose(func() {}))
	check(t, err)
	check(t, s.Start(ctx))
	t.Cleanup(s.Stop)
	select {
	case cs := <-n.synced:
		return s, cs
	case <-ctx.Done():
		t.Fatal("the plugin was not brought up to date")
	}
	return nil, nil
}

const nriTOML = "[nri]\nenable = true\nsocket = \"DIR/nri.sock\"\nplugin_dir = \"DIR/plugins\"\nplugin_config_dir = \"DIR/conf\"\n"

func TestNRI(t *testing.T) {
	e, ctx := ownConfigured(t, nriTOML)
	noLeaks(t, e)
	pod := e.Pod("nri", false)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	before := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("before", harness.Forever)))
	n := &nriPlugin{}
	s, known := n.join(t, ctx, filepath.Join(e.Dir, "nri.sock"))
	if len(known) != 1 || known[0].GetId() != before || known[0].GetState() != api.ContainerState_CONTAINER_RUNNING || len(known[0].GetMounts()) == 0 {
		t.Errorf("the plugin was told of %v", known)
	}
	put(t, e, "data/file", "from the plugin")
	n.create = func(p *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if c.GetName() != "main" {
			return nil, nil, nil
		}
		if !slices.ContainsFunc(p.GetLinux().GetNamespaces(), func(ns *api.LinuxNamespace) bool { return ns.GetType() == "network" && ns.GetPath() != "" }) {
			t.Errorf("the plugin sees no network namespace: %v", p)
		}
		a := &api.ContainerAdjustment{}
		a.AddEnv("FROM_NRI", "yes")
		a.AddMount(&api.Mount{Destination: "/nri", Type: "bind", Source: filepath.Join(e.Dir, "data"), Options: []string{"rbind", "ro", "rprivate"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/nri", Type: "c", Major: 1, Minor: 5})
		a.AddRlimit("RLIMIT_NOFILE", 321, 321)
		a.SetLinuxMemoryLimit(48 << 20)
		if !e.Systemd { // a scope's name is systemd's driver's own
			a.SetLinuxCgroupsPath(e.CgroupParent + "/by-nri-" + c.GetId()[:12])
		}
		u := &api.ContainerUpdate{}
		u.SetContainerId(before)
		u.SetLinuxCPUShares(77)
		return a, []*api.ContainerUpdate{u}, nil
	}
	id := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("main", harness.Forever)))
	if got := says(t, ctx, e, id, "echo $FROM_NRI; cat /nri/file; echo; head -c 2 /dev/nri | wc -c; ulimit -n"); got != "yes\nfrom the plugin\n2\n321" {
		t.Errorf("the container sees %q", got)
	}
	cg := e.CgroupDir + "/by-nri-" + id[:12]
	if e.Systemd {
		cg = e.CgroupDir + "/ocid-" + id + ".scope"
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory" + cg + "/memory.limit_in_bytes"); err == nil && strings.TrimSpace(string(b)) != fmt.Sprint(48<<20) {
		t.Errorf("the memory limit is %s", b)
	} else if err != nil {
		if _, verr := os.Stat("/sys/fs/cgroup" + cg); verr != nil {
			t.Errorf("the container is not in the plugin's cgroup: %v, %v", err, verr)
		}
	}
	shares := func(id string, want uint64) {
		t.Helper()
		st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
		if got := st.GetResources().GetLinux().GetCpuShares(); uint64(got) != want {
			t.Errorf("container %s has %d CPU shares, want %d", st.GetMetadata().GetName(), got, want)
		}
	}
	shares(before, 77)
	_, err := e.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
	check(t, err)
	shares(id, 200)
	u := &api.ContainerUpdate{}
	u.SetContainerId(before)
	u.SetLinuxCPUShares(55)
	if failed, err := s.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) > 0 {
		t.Errorf("an unsolicited update: %v %v", failed, err)
	}
	shares(before, 55)
	n.create = nil
	_, err = e.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: podID, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 300}})
	check(t, err)
	check(t, e.Down(ctx, podID))
	want := []string{"create main", "created main", "start main", "started main", "update main", "update-pod nri 300", "stop main", "stop-pod nri", "remove main", "remove-pod nri"}
	got := n.events()
	at := 0
	for _, ev := range got {
		if at < len(want) && ev == want[at] {
			at++
		}
	}
	if at != len(want) {
		t.Errorf("events %v, want in order %v", got, want)
	}
}

func TestNRIRefusals(t *testing.T) {
	e, ctx := ownConfigured(t, nriTOML)
	noLeaks(t, e)
	n := &nriPlugin{}
	n.join(t, ctx, filepath.Join(e.Dir, "nri.sock"))
	refused := e.Pod("refused", false)
	refused.Annotations = map[string]string{"nri": "refuse"}
	if _, err := e.RunPod(ctx, refused, ""); err == nil || !strings.Contains(err.Error(), "not wanted") {
		t.Errorf("a pod that a plugin refuses: %v", err)
	}
	pod := e.Pod("pod", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	for want, adjust := range map[string]func(*api.ContainerAdjustment){
		"io.ocid.": func(a *api.ContainerAdjustment) { a.AddAnnotation("io.ocid.pod-id", "forged") },
		"cgroup":   func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/../x") },
		"mount at": func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/../etc", Source: "/etc"}) },
		"CDI":      func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "none.example/x=y"}) },
	} {
		n.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			adjust(a)
			return a, nil, nil
		}
		if _, err := e.CreateContainer(ctx, podID, pod, harness.Shell("bad", "true")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// A plugin that hangs is disconnected, and the container is made without it.
	release := make(chan struct{})
	n.create = func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-release
		return nil, nil, nil
	}
	begin := time.Now()
	must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("patient", "true")))
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("a plugin that hangs held the container up for %s", d)
	}
	close(release)
	check(t, e.Down(ctx, podID))
}

// TestNRILaunchedPlugin: plugins in the directory are started, and outlive neither stop nor kill of the daemon.
func TestNRILaunchedPlugin(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command, to build a plugin")
	}
	root := must[string](t)(harness.RepoRoot())
	var plugin string
	e, ctx := ownConfigured(t, nriTOML, func(e *harness.Env) {
		plugin = filepath.Join(e.Dir, "plugins", "10-inject")
		build := exec.Command("go", "build", "-o", plugin, "./test/cmd/nriplugin")
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the plugin: %v\n%s", err, out)
		}
	})
	for _, again := range []bool{false, true} {
		if again {
			check(t, e.Signal(unix.SIGTERM))
			check(t, e.Start(ctx))
		}
		pod := e.Pod("launched", true)
		podID := must[string](t)(e.RunPod(ctx, pod, ""))
		c := harness.Shell("main", harness.Forever)
		c.Annotations = map[string]string{"nri-test": "injected"}
		id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
		if got := says(t, ctx, e, id, "echo $NRI_PLUGIN"); got != "injected" {
			t.Errorf("again %v: the container sees %q", again, got)
		}
		check(t, e.Down(ctx, podID))
	}
}
