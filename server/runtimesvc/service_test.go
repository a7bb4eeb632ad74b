package runtimesvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// fake is a runtime in memory; it records what it was asked.
type fake struct {
	pods       []runtime.Pod
	containers []runtime.Container
	calls      []string
	created    runtime.ContainerConfig
	network    error
	runtime    error
	exec       func(stdout, stderr io.Writer) (int32, error)
	events     []*runtime.Event
	eventsEnd  error
	cpu        uint64
	at         int64
}

func (f *fake) call(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) RunPod(_ context.Context, cfg runtime.PodConfig) (runtime.PodID, error) {
	f.call("run %s", cfg.Name.Name)
	return podID, nil
}

func (f *fake) StopPod(_ context.Context, id runtime.PodID) error {
	f.call("stop %.2s", id)
	return nil
}

func (f *fake) RemovePod(_ context.Context, id runtime.PodID) error {
	f.call("remove %.2s", id)
	return nil
}

func (f *fake) PodViews() (out []*runtime.Pod) {
	for i := range f.pods {
		out = append(out, &f.pods[i])
	}
	return out
}

func (f *fake) ContainerViews() (out []*runtime.Container) {
	for i := range f.containers {
		out = append(out, &f.containers[i])
	}
	return out
}

func (f *fake) ContainerViewsOf(pod runtime.PodID) (out []*runtime.Container) {
	for _, c := range f.ContainerViews() {
		if c.PodID == pod {
			out = append(out, c)
		}
	}
	return out
}

func (f *fake) Pod(id string) (runtime.Pod, error) {
	for _, p := range f.pods {
		if strings.HasPrefix(string(p.ID), id) {
			return p, nil
		}
	}
	return runtime.Pod{}, runtime.ErrNotFound
}

func (f *fake) Container(id string) (runtime.Container, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(string(c.ID), id) {
			return c, nil
		}
	}
	return runtime.Container{}, runtime.ErrNotFound
}

func (f *fake) CreateContainer(_ context.Context, _ runtime.PodID, cfg runtime.ContainerConfig) (runtime.ContainerID, error) {
	f.created = cfg
	return targetID, nil
}
func (f *fake) StartContainer(context.Context, runtime.ContainerID) error { return nil }
func (f *fake) StopContainer(_ context.Context, id runtime.ContainerID, d time.Duration) error {
	f.call("stop %.2s %s", id, d)
	return nil
}

func (f *fake) RemoveContainer(_ context.Context, id runtime.ContainerID) error {
	f.call("remove %.2s", id)
	return nil
}
func (f *fake) ReopenLog(context.Context, runtime.ContainerID) error { return nil }
func (f *fake) UpdateResources(_ context.Context, _ runtime.ContainerID, r runtime.Resources) error {
	f.call("update %d", deref(r.Memory))
	return nil
}

func (f *fake) ExecSync(_ context.Context, _ runtime.ContainerID, _ []string, _ time.Duration, o, e io.Writer) (int32, error) {
	return f.exec(o, e)
}

func (f *fake) ContainerUsage(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	if id == "cc4" {
		return runtime.Usage{}, runtime.ErrNotFound
	}
	return runtime.Usage{Timestamp: f.at, CPUNanos: f.cpu, MemoryWorkingSet: 3, UpperMount: "/m", UpperBytes: 9, UpperAt: f.at, ReadAt: f.at}, nil
}

func (f *fake) PodUsage(context.Context, runtime.PodID) (runtime.PodUsage, error) {
	return runtime.PodUsage{
		Usage:   runtime.Usage{Timestamp: f.at, ReadAt: f.at, Processes: 4},
		Network: []runtime.InterfaceUsage{{Name: "lo"}, {Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 5}},
	}, nil
}

func (f *fake) ContainerDetail(ctx context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	u, err := f.ContainerUsage(ctx, id)
	u.Detail = &runtime.UsageDetail{FSDevice: "/dev/sda1", IO: []runtime.DeviceUsage{{Device: "/dev/sda", Major: 8, Reads: 3}}}
	return u, err
}

func (f *fake) PodDetail(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error) {
	u, err := f.PodUsage(ctx, id)
	u.Detail, u.Cgroup = &runtime.UsageDetail{}, "/pods/x"
	return u, err
}

func (f *fake) UpdatePodResources(_ context.Context, id runtime.PodID, r, o *runtime.Resources) error {
	f.call("update pod %.2s %v %v", id, r != nil, o != nil)
	return nil
}

func (f *fake) NetworkReady() error { return f.network }
func (f *fake) RuntimeReady() error { return f.runtime }
func (f *fake) Handlers() []runtime.HandlerInfo {
	return []runtime.HandlerInfo{{Name: "", RecursiveReadOnly: true, UserNamespaces: true}, {Name: "runc"}}
}
func (f *fake) UpdateRuntimeConfig(cidr string) error { f.call("cidr %s", cidr); return nil }
func (f *fake) CgroupDriver() string                  { return "cgroupfs" }

// Resolve knows "busybox" by name, id and digest, and "other".
func (f *fake) Resolve(_ context.Context, ref string) (string, error) {
	switch ref {
	case "busybox", "sha256:1", "busybox@sha256:d":
		return "sha256:1", nil
	case "other":
		return "sha256:2", nil
	}
	return "", runtime.ErrNotFound
}
func (f *fake) Reference(_ context.Context, id string) string { return "busybox@" + id }

func newFake() *fake {
	ns := runtime.Namespaces{Network: runtime.NamespacePod, PID: runtime.NamespaceContainer, IPC: runtime.NamespacePod}
	pod := func(id string, st runtime.PodState, labels map[string]string) runtime.Pod {
		return runtime.Pod{
			ID: runtime.PodID(id), State: st, IPs: []string{"10.0.0.2", "fd00::2"}, CreatedAt: 1,
			Config: runtime.PodConfig{Name: runtime.PodName{Name: id}, Labels: labels, Namespaces: ns, LogDirectory: "/l"},
		}
	}
	ctr := func(id, pod string, st runtime.ContainerState, labels map[string]string) runtime.Container {
		return runtime.Container{
			ID: runtime.ContainerID(id), PodID: runtime.PodID(pod), State: st,
			Config: runtime.ContainerConfig{Image: "busybox", ImageID: "sha256:1", Labels: labels},
		}
	}
	web := map[string]string{"app": "web", "tier": "1"}
	return &fake{
		pods: []runtime.Pod{
			pod("aa1", runtime.PodReady, web), pod("aa2", runtime.PodNotReady, nil),
			pod("bb3", runtime.PodCreating, nil), pod("bb4", runtime.PodRemoving, nil),
		},
		containers: []runtime.Container{
			ctr("cc1", "aa1", runtime.ContainerRunning, web), ctr("cc2", "aa1", runtime.ContainerCreated, nil),
			ctr("cc3", "aa2", runtime.ContainerExited, web), ctr("cc4", "aa1", runtime.ContainerRunning, nil),
			ctr("dd5", "aa1", runtime.ContainerCreating, nil), ctr("dd6", "aa1", runtime.ContainerRemoving, nil),
		},
		at: 1e9,
	}
}

func newService(f *fake) *Service {
	return New(Options{
		Pods: f, Containers: f, Records: f, Events: f, Tuning: f, Execs: f, Usages: f, Snapshots: f, Node: f, Images: f, Version: "1.2.3",
		Streamable: streamFake{}, StreamURLs: streamFake{},
		Info: func() map[string]any { return map[string]any{"stages": map[string]int{"x": 1}} },
	})
}

func TestListPods(t *testing.T) {
	s := newService(newFake())
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for _, tc := range []struct {
		f    *cri.PodSandboxFilter
		want string
	}{
		{nil, "aa1 aa2"},
		{&cri.PodSandboxFilter{Id: "aa2"}, "aa2"},
		{&cri.PodSandboxFilter{Id: "zz"}, ""},
		{&cri.PodSandboxFilter{State: ready}, "aa1"},
		{&cri.PodSandboxFilter{State: ready, Id: "aa2"}, ""},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, "aa1"},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web", "tier": "2"}}, ""},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, ""},
	} {
		resp, err := s.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range resp.Items {
			got = append(got, p.Id)
		}
		if g := strings.Join(got, " "); g != tc.want {
			t.Errorf("%v: got %q, want %q", tc.f, g, tc.want)
		}
	}
}

func TestListContainers(t *testing.T) {
	s := newService(newFake())
	for _, tc := range []struct {
		f    *cri.ContainerFilter
		want string
	}{
		{nil, "cc1 cc2 cc3 cc4"},
		{&cri.ContainerFilter{Id: "cc2"}, "cc2"},
		{&cri.ContainerFilter{PodSandboxId: "aa2"}, "cc3"},
		{&cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}, "cc1 cc4"},
		{&cri.ContainerFilter{State: &cri.ContainerStateValue{}}, "cc2"}, // CREATED is the zero value
		{&cri.ContainerFilter{LabelSelector: map[string]string{"app": "web"}, PodSandboxId: "aa1"}, "cc1"},
	} {
		resp, err := s.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range resp.Containers {
			got = append(got, c.Id)
			if c.ImageId != "sha256:1" {
				t.Errorf("image id %q", c.ImageId)
			}
		}
		if g := strings.Join(got, " "); g != tc.want {
			t.Errorf("%v: got %q, want %q", tc.f, g, tc.want)
		}
	}
}

func TestUnknownIDs(t *testing.T) {
	f := newFake()
	s := newService(f)
	ctx := t.Context()
	for _, id := range []string{"ffff", "no-such-id", strings.Repeat("a", 65)} {
		_, e1 := s.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		_, e2 := s.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		_, e3 := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id})
		_, e4 := s.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id})
		if err := errors.Join(e1, e2, e3, e4); err != nil {
			t.Errorf("%q: %v", id, err)
		}
		_, e5 := s.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
		_, e6 := s.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		_, e7 := s.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
		for _, err := range []error{e5, e6, e7} {
			if !errors.Is(err, runtime.ErrNotFound) {
				t.Errorf("%q: %v", id, err)
			}
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("the runtime was asked: %v", f.calls)
	}
	if _, err := s.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("empty id: %v", err)
	}
	if _, err := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "cc1", Timeout: -1}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("negative timeout: %v", err)
	}
	if _, err := s.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "cc1", Timeout: 1 << 62}); err != nil {
		t.Error(err)
	}
	if len(f.calls) != 1 || strings.Contains(f.calls[0], "-") {
		t.Errorf("the timeout overflowed: %v", f.calls)
	}
}

func TestStatusAndConfig(t *testing.T) {
	f := newFake()
	f.network = errors.New("no network in /etc/cni/net.d")
	s := newService(f)
	resp, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	c := resp.Status.Conditions
	if !c[0].Status || c[1].Status || c[1].Type != cri.NetworkReady || c[1].Reason == "" || !strings.Contains(c[1].Message, "cni") {
		t.Errorf("conditions: %v", c)
	}
	h := resp.RuntimeHandlers
	if len(h) != 2 || !h[0].Features.RecursiveReadOnlyMounts || !h[0].Features.UserNamespaces || h[1].Features.UserNamespaces {
		t.Errorf("handlers: %v", resp.RuntimeHandlers)
	}
	if resp.Info["stages"] != `{"x":1}` {
		t.Errorf("info: %v", resp.Info)
	}
	f.runtime = errors.New("no monitor")
	if resp, err = s.Status(t.Context(), &cri.StatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if c := resp.Status.Conditions[0]; c.Status || c.Type != cri.RuntimeReady || c.Reason == "" || c.Message != "no monitor" {
		t.Errorf("a runtime that cannot run is reported as %v", c)
	}
	rc, err := s.RuntimeConfig(t.Context(), nil)
	if err != nil || rc.Linux.CgroupDriver != cri.CgroupDriver_CGROUPFS {
		t.Errorf("%v, %v", rc, err)
	}
	set := func(cidr string) error {
		_, err := s.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	if err := errors.Join(set(""), set("10.0.0.0/24,fd00::/64")); err != nil || len(f.calls) != 1 {
		t.Errorf("%v, calls %v", err, f.calls)
	}
	if err := set("10.0.0.0"); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("bad range: %v", err)
	}
}

func TestStatuses(t *testing.T) {
	f := newFake()
	f.containers[2].StopSignal = "RTMIN+3"
	f.containers[2].User = &runtime.ResolvedUser{UID: 1, GID: 2, Groups: []uint32{3}}
	f.containers[2].Config.Resources = &runtime.Resources{Memory: ptr(int64(5)), HugepageLimit: map[string]uint64{"2MB": 1}}
	f.containers[2].Config.Mounts = []runtime.Mount{{ContainerPath: "/a", HostPath: "/b", Propagation: runtime.PropagationBidirectional}}
	s := newService(f)
	p, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "aa1", Verbose: true})
	if err != nil || p.Status.Network.Ip != "10.0.0.2" || p.Status.Network.AdditionalIps[0].Ip != "fd00::2" ||
		p.Status.Linux.Namespaces.Options.Pid != cri.NamespaceMode_CONTAINER || p.Info["info"] == "" {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "bb3"}); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("a pod in creation: %v", err)
	}
	c, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "cc3", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	st := c.Status
	if st.StopSignal != cri.Signal_SIGNAL_SIGRTMINPLUS3 || st.User.Linux.SupplementalGroups[0] != 3 ||
		st.Resources.Linux.MemoryLimitInBytes != 5 || st.Resources.Linux.HugepageLimits[0].PageSize != "2MB" ||
		st.Mounts[0].Propagation != cri.MountPropagation_PROPAGATION_BIDIRECTIONAL ||
		st.State != cri.ContainerState_CONTAINER_EXITED || st.ImageRef != "sha256:1" || c.Info["info"] == "" {
		t.Errorf("%v", st)
	}
}

func TestCreateAndImageRef(t *testing.T) {
	f := newFake()
	s := newService(f)
	create := func(change func(*cri.ContainerConfig)) error {
		cfg := baseContainer()
		cfg.LogPath = "c/0.log"
		change(cfg)
		_, err := s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: "aa1", Config: cfg})
		return err
	}
	if err := create(func(c *cri.ContainerConfig) { c.Image.ImageRef = "busybox@sha256:d" }); err != nil {
		t.Fatal(err)
	}
	if g := f.created; g.ImageID != "sha256:1" || g.ImageRef != "busybox@sha256:1" || g.LogPath != "/l/c/0.log" ||
		g.Resources.OOMScoreAdj == nil || g.Security.Namespaces.PID != runtime.NamespaceContainer {
		t.Errorf("%+v", g)
	}
	if err := create(func(c *cri.ContainerConfig) { c.Image.ImageRef = "other" }); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("another image's ref: %v", err)
	}
	if err := create(func(c *cri.ContainerConfig) { c.Image.Image = "missing" }); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("missing image: %v", err)
	}
	_, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: basePod(), RuntimeHandler: "kata"})
	if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), "runc") {
		t.Errorf("unknown handler: %v", err)
	}
	if r, err := s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: basePod(), RuntimeHandler: "runc"}); err != nil || r.PodSandboxId != podID {
		t.Errorf("%v, %v", r, err)
	}
}

func TestExecSync(t *testing.T) {
	f := newFake()
	s := newService(f)
	run := func(cmd ...string) (*cri.ExecSyncResponse, error) {
		return s.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "cc1", Cmd: cmd})
	}
	f.exec = func(o, e io.Writer) (int32, error) {
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 20 {
			if n, err := o.Write(chunk); n != len(chunk) || err != nil {
				t.Errorf("the command was disturbed: %d, %v", n, err)
			}
		}
		_, _ = io.WriteString(e, "late")
		return 3, nil
	}
	resp, err := run("yes")
	note := cutNote(20<<20 + int64(len("late")) - maxResponse)
	if err != nil || resp.ExitCode != 3 || len(resp.Stdout) != maxResponse || string(resp.Stderr) != note {
		t.Fatalf("%d bytes, %q, %v", len(resp.GetStdout()), resp.GetStderr(), err)
	}
	if size := proto.Size(resp); size > maxStream {
		t.Errorf("the answer has %d bytes", size)
	}
	f.exec = func(io.Writer, io.Writer) (int32, error) { return 0, runtime.ErrTimeout }
	if _, err := run("sleep"); !errors.Is(err, runtime.ErrTimeout) {
		t.Errorf("timeout: %v", err)
	}
	if _, err := run(); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("no command: %v", err)
	}
}

func TestStats(t *testing.T) {
	f := newFake()
	s := newService(f)
	list := func() []*cri.ContainerStats {
		resp, err := s.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Stats
	}
	// cc4 is gone by the time it is read, and must not spoil the rest.
	if got := list(); len(got) != 1 || got[0].Attributes.Id != "cc1" || got[0].WritableLayer.UsedBytes.Value != 9 ||
		got[0].Cpu.UsageNanoCores != nil {
		t.Fatalf("%v", got)
	}
	f.at, f.cpu = 3e9, 1e9
	if got := list(); got[0].Cpu.UsageNanoCores.GetValue() != 5e8 {
		t.Errorf("rate %v", got[0].Cpu)
	}
	f.at, f.cpu = 3.1e9, 2e9
	if got := list(); got[0].Cpu.UsageNanoCores.GetValue() != 5e8 {
		t.Errorf("rate after a moment %v", got[0].Cpu)
	}
	if _, err := s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: "cc3"}); !errors.Is(err, runtime.ErrState) {
		t.Errorf("stats of an exited one: %v", err)
	}
	p, err := s.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: "aa1"})
	if err != nil || p.Stats.Linux.Network.DefaultInterface.Name != "eth0" || len(p.Stats.Linux.Network.Interfaces) != 2 ||
		p.Stats.Linux.Process.ProcessCount.Value != 4 || len(p.Stats.Linux.Containers) != 1 {
		t.Errorf("%v, %v", p, err)
	}
	all, err := s.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{})
	if err != nil || len(all.Stats) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestUpdateAndReopen(t *testing.T) {
	f := newFake()
	s := newService(f)
	up := func(r *cri.UpdateContainerResourcesRequest) error {
		r.ContainerId = "cc1"
		_, err := s.UpdateContainerResources(t.Context(), r)
		return err
	}
	if err := up(&cri.UpdateContainerResourcesRequest{Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 7}}); err != nil || f.calls[0] != "update 7" {
		t.Errorf("%v %v", err, f.calls)
	}
	for _, bad := range []*cri.UpdateContainerResourcesRequest{
		{}, {Windows: &cri.WindowsContainerResources{}}, {Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: -1}},
	} {
		if err := up(bad); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := s.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: "cc3"}); !errors.Is(err, runtime.ErrState) {
		t.Errorf("reopen of an exited one: %v", err)
	}
}

func TestPrivileged(t *testing.T) {
	f := facts()
	f.pod.Config.Privileged = true
	c := baseContainer()
	c.Linux.SecurityContext.Privileged = true
	c.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
	c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{}
	got, err := containerConfig(c, f)
	if err != nil || !got.Security.Privileged || got.Security.MaskedPaths != nil || got.Security.Seccomp != runtime.SeccompUnconfined {
		t.Errorf("%+v, %v", got.Security, err)
	}
}

func TestUnknownFields(t *testing.T) {
	c := baseContainer()
	c.Mounts[0].ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
	var got []string
	unknownFields(c.ProtoReflect(), func(m protoreflect.FullName, n protowire.Number) { got = append(got, fmt.Sprint(m, n)) })
	if len(got) != 1 || got[0] != "runtime.v1.Mount999" && !strings.Contains(got[0], "Mount") {
		t.Errorf("%v", got)
	}
}
