package runtimesvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
)

// fuzzed stands behind the service while it is fuzzed: what gets through the
// translation is held against what no client may reach.
type fuzzed struct {
	*fake
	t *testing.T
}

func (f fuzzed) RunPod(_ context.Context, cfg runtime.PodConfig) (runtime.PodID, error) {
	f.roundTrip(cfg)
	if l := cfg.LogDirectory; l != "" && (!filepath.IsAbs(l) || filepath.Clean(l) != l) {
		f.t.Errorf("log directory %q", l)
	}
	for part := range strings.SplitSeq(cfg.CgroupParent, "/") {
		if part == ".." || strings.ContainsAny(part, "\x00\n") {
			f.t.Errorf("cgroup parent %q", cfg.CgroupParent)
		}
	}
	if strings.ContainsAny(cfg.Hostname, "/\n\x00 ") || strings.Contains(cfg.Name.UID, "/") {
		f.t.Errorf("host name %q, uid %q", cfg.Hostname, cfg.Name.UID)
	}
	// A container of this pod, with nothing asked for, must come out right too.
	f.build(runtime.Pod{ID: podID, State: runtime.PodReady, Config: cfg}, runtime.ContainerConfig{
		Name: runtime.ContainerName{Name: "c"}, Command: []string{"/c"}, Resources: &runtime.Resources{},
		Security: runtime.Security{Namespaces: cfg.Namespaces},
	})
	return podID, nil
}

func (f fuzzed) CreateContainer(_ context.Context, id runtime.PodID, cfg runtime.ContainerConfig) (runtime.ContainerID, error) {
	f.roundTrip(cfg)
	p, err := f.Pod(string(id))
	if err != nil {
		return "", err
	}
	if dir := p.Config.LogDirectory; cfg.LogPath != "" && (!strings.HasPrefix(cfg.LogPath, dir+"/") || filepath.Clean(cfg.LogPath) != cfg.LogPath) {
		f.t.Errorf("log path %q is not in %q", cfg.LogPath, dir)
	}
	f.build(p, cfg)
	return targetID, nil
}

// roundTrip: a record must read as it was written.
func (f fuzzed) roundTrip(cfg any) {
	first, err := json.Marshal(cfg)
	if err != nil {
		f.t.Fatalf("cannot be recorded: %v", err)
	}
	var again map[string]any
	if err := json.Unmarshal(first, &again); err != nil {
		f.t.Fatalf("a record that cannot be read: %v", err)
	}
	if strings.Contains(string(first), `\ufffd`) {
		f.t.Errorf("text was changed by its record: %s", first)
	}
}

const fuzzRoot, fuzzPod, fuzzCgroup = "/roots/c", "/run/pod", "/parent/c"

// build makes the OCI spec and looks for paths that are nobody's.
func (f fuzzed) build(p runtime.Pod, cfg runtime.ContainerConfig) {
	s, err := spec.Build(spec.Input{
		Pod: p, Container: cfg, ContainerID: targetID, Image: runtime.ImageConfig{Cmd: []string{"/image"}},
		RootPath: fuzzRoot, CgroupPath: fuzzCgroup, Hostname: p.Config.Hostname,
		HostsPath: fuzzPod + "/hosts", HostnamePath: fuzzPod + "/hostname", ResolvPath: fuzzPod + "/resolv", ShmPath: fuzzPod + "/shm",
		Namespaces: map[string]string{
			"net": fuzzPod + "/ns/net", "ipc": fuzzPod + "/ns/ipc", "uts": fuzzPod + "/ns/uts",
			"pid": fuzzPod + "/ns/pid", "user": fuzzPod + "/ns/user",
		},
		DaemonCaps: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}, CgroupV2: true, SeccompFile: []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`),
	})
	if err != nil {
		if !errors.Is(err, runtime.ErrInvalid) {
			f.t.Errorf("refused without the client's fault: %v", err)
		}
		return
	}
	if _, err := spec.Marshal(s); err != nil {
		f.t.Errorf("a spec that cannot be written: %v", err)
	}
	f.judge(p, cfg, s)
}

func (f fuzzed) judge(p runtime.Pod, cfg runtime.ContainerConfig, s *specs.Spec) {
	if s.Root.Path != fuzzRoot || s.Linux.CgroupsPath != fuzzCgroup || s.Hooks != nil {
		f.t.Errorf("root %q, cgroup %q, hooks %v", s.Root.Path, s.Linux.CgroupsPath, s.Hooks)
	}
	for _, n := range s.Linux.Namespaces {
		if n.Path != "" && !strings.HasPrefix(n.Path, fuzzPod+"/ns/") {
			f.t.Errorf("namespace %v", n)
		}
	}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			f.t.Errorf("mount target %q", m.Destination)
		}
		if m.Type != "bind" || strings.HasPrefix(m.Source, fuzzPod+"/") {
			continue
		}
		asked := func(a runtime.Mount) bool { return a.HostPath == m.Source && filepath.Clean(a.HostPath) == a.HostPath }
		if !slices.ContainsFunc(cfg.Mounts, asked) && !strings.HasPrefix(m.Source, "/dev/") && !strings.HasPrefix(m.Source, "/sys") {
			f.t.Errorf("mount source %q was not asked for", m.Source)
		}
	}
	for name := range s.Linux.Sysctl {
		dotted := strings.ReplaceAll(name, "/", ".")
		if strings.HasPrefix(dotted, "net.") && p.Config.Namespaces.Network == runtime.NamespaceNode ||
			strings.HasPrefix(dotted, "vm.") || strings.HasPrefix(dotted, "kernel.core") {
			f.t.Errorf("sysctl %q would change the node", name)
		}
	}
	for key := range s.Linux.Resources.Unified {
		if strings.ContainsAny(key, "/\x00") || strings.HasPrefix(key, "cgroup.") {
			f.t.Errorf("cgroup file %q", key)
		}
	}
}

// fuzzStream hands one request to a stream call and takes what is sent.
type fuzzStream struct {
	grpc.ServerStream
	ctx  context.Context
	data []byte
}

func (s *fuzzStream) Context() context.Context     { return s.ctx }
func (s *fuzzStream) SendHeader(metadata.MD) error { return nil }
func (s *fuzzStream) SendMsg(any) error            { return nil }
func (s *fuzzStream) RecvMsg(m any) error          { return proto.Unmarshal(s.data, m.(proto.Message)) }

// call calls the n-th call of the service with a request in wire form.
func call(ctx context.Context, s *Service, n int, data []byte) error {
	d := cri.RuntimeService_ServiceDesc
	if n < len(d.Methods) {
		_, err := d.Methods[n].Handler(s, ctx, func(in any) error { return proto.Unmarshal(data, in.(proto.Message)) }, nil)
		return err
	}
	return d.Streams[n-len(d.Methods)].Handler(s, &fuzzStream{ctx: ctx, data: data})
}

func calls() int {
	return len(cri.RuntimeService_ServiceDesc.Methods) + len(cri.RuntimeService_ServiceDesc.Streams)
}

func methodNumber(name string) int {
	for i, m := range cri.RuntimeService_ServiceDesc.Methods {
		if m.MethodName == name {
			return i
		}
	}
	panic(name)
}

func fuzzService(t *testing.T) *Service {
	f := newFake()
	for i := range f.pods { // ids in the form that requests must have
		f.pods[i].Config.Privileged = i == 0
	}
	f.exec = func(stdout, _ io.Writer) (int32, error) { _, err := stdout.Write([]byte("x")); return 0, err }
	f.eventsEnd = runtime.ErrLost
	s := newService(f)
	s.o.Pods, s.o.Containers = fuzzed{f, t}, fuzzed{f, t}
	s.o.Host = Host{AppArmor: true, CgroupV2: true}
	return s
}

func wire(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzRequests sends anything to every call. No call may panic, and no path,
// cgroup, namespace or sysctl may come out that the client has no right to.
func FuzzRequests(f *testing.F) {
	run, create := methodNumber("RunPodSandbox"), methodNumber("CreateContainer")
	for name, row := range fields {
		if row.pod != nil {
			p := basePod()
			row.pod(p)
			f.Add(uint8(run), wire(f, &cri.RunPodSandboxRequest{Config: p}))
		}
		if row.ctr != nil {
			c := baseContainer()
			row.ctr(c)
			f.Add(uint8(create), wire(f, &cri.CreateContainerRequest{PodSandboxId: "aa1", Config: c}))
		}
		_ = name
	}
	for n := range calls() {
		f.Add(uint8(n), []byte{})
		f.Add(uint8(n), protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "aa1"))
		f.Add(uint8(n), protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "cc1"))
	}
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_ = call(ctx, fuzzService(t), int(n)%calls(), data)
	})
}

// FuzzContainer looks deeper than bytes find: it sets one field of a container
// or of a pod at a time, whose other fields are in order, so that what is said
// of that field alone decides.
func FuzzContainer(f *testing.F) {
	f.Add("a/../../b", int64(-1), uint32(1))
	f.Add("../../etc/passwd", int64(1)<<62, uint32(9))
	f.Add("/proc/1/root/../..", int64(100000), uint32(2))
	f.Add("kernel/../vm.x", int64(0), uint32(1<<31))
	f.Add("memory.max", int64(1000), uint32(3))
	f.Add("\x00", int64(0), uint32(1<<31))
	f.Add("localhost/../../p", int64(5), uint32(70))
	f.Fuzz(func(t *testing.T, text string, n int64, enum uint32) {
		if !utf8.ValidString(text) {
			t.Skip("protobuf refuses it before anybody sees it")
		}
		s := fuzzService(t)
		for _, set := range podSetters {
			p := basePod()
			set(p, text, n, enum)
			_, _ = s.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: p})
		}
		for _, set := range containerSetters {
			c := baseContainer()
			set(c, text, n, enum)
			_, _ = s.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: "aa1", Config: c})
		}
	})
}

var podSetters = []func(p *cri.PodSandboxConfig, text string, n int64, enum uint32){
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.Metadata.Uid = text },
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.Metadata.Name = text },
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.Hostname = text },
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.LogDirectory = text },
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.LogDirectory = "/" + text },
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.Linux.CgroupParent = text },
	func(p *cri.PodSandboxConfig, text string, n int64, _ uint32) {
		p.Linux.Sysctls = map[string]string{text: fmt.Sprint(n)}
	},
	func(p *cri.PodSandboxConfig, text string, _ int64, enum uint32) {
		p.Linux.Sysctls = map[string]string{"net." + text: text}
		p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode(enum & 3)
	},
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) { p.DnsConfig.Searches = []string{text} },
	func(p *cri.PodSandboxConfig, _ string, n int64, enum uint32) {
		p.PortMappings[0].HostPort, p.PortMappings[0].Protocol = int32(n), cri.Protocol(enum)
	},
	func(p *cri.PodSandboxConfig, _ string, n int64, enum uint32) {
		o := p.Linux.SecurityContext.NamespaceOptions
		o.Network, o.Ipc, o.Pid = cri.NamespaceMode(enum&3), cri.NamespaceMode(enum>>2&3), cri.NamespaceMode(enum>>4&3)
		ids := []*cri.IDMapping{{HostId: enum, ContainerId: uint32(n), Length: uint32(n >> 8)}}
		o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode(enum >> 6 & 3), Uids: ids, Gids: ids}
	},
	func(p *cri.PodSandboxConfig, text string, _ int64, _ uint32) {
		p.Linux.SecurityContext.SelinuxOptions.Level = text
	},
}

var containerSetters = []func(c *cri.ContainerConfig, text string, n int64, enum uint32){
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.LogPath = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.WorkingDir = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Metadata.Name = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Command = []string{text} },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Mounts[0].HostPath = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Mounts[0].HostPath = "/" + text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Mounts[0].ContainerPath = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Mounts[0].ContainerPath = "/" + text },
	func(c *cri.ContainerConfig, text string, _ int64, enum uint32) {
		c.Mounts[0].MountOptions, c.Mounts[0].Propagation = []string{text}, cri.MountPropagation(enum)
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Mounts[0].HostPath, c.Mounts[0].Image, c.Mounts[0].ImageSubPath = "", &cri.ImageSpec{Image: "busybox"}, text
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Devices[0].ContainerPath = "/" + text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Devices[0].Permissions = text },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.CDIDevices = []*cri.CDIDevice{{Name: text}}
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Envs[0].Key, c.Envs[0].Value = text, []byte("\xff"+text)
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Annotations = map[string]string{text: text}
	},
	func(c *cri.ContainerConfig, _ string, _ int64, enum uint32) { c.StopSignal = cri.Signal(enum) },
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) { c.Linux.Resources.CpuPeriod = n },
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) { c.Linux.Resources.CpuQuota = n },
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) { c.Linux.Resources.CpuShares = n },
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) { c.Linux.Resources.MemoryLimitInBytes = n },
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) {
		c.Linux.Resources.MemorySwapLimitInBytes = n
	},
	func(c *cri.ContainerConfig, _ string, n int64, _ uint32) { c.Linux.Resources.OomScoreAdj = n },
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) { c.Linux.Resources.CpusetCpus = text },
	func(c *cri.ContainerConfig, text string, n int64, _ uint32) {
		c.Linux.Resources.Unified = map[string]string{text: fmt.Sprint(n)}
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Linux.Resources.Unified = map[string]string{"memory.min": text}
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Linux.Resources.HugepageLimits[0].PageSize = text
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Linux.SecurityContext.MaskedPaths, c.Linux.SecurityContext.ReadonlyPaths = []string{text}, []string{"/" + text}
	},
	func(c *cri.ContainerConfig, _ string, n int64, enum uint32) {
		c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.SupplementalGroups = &cri.Int64Value{Value: n}, []int64{int64(enum)}
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Linux.SecurityContext.RunAsUsername = text
	},
	func(c *cri.ContainerConfig, text string, _ int64, enum uint32) {
		c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_ProfileType(enum & 3), LocalhostRef: text}
	},
	func(c *cri.ContainerConfig, text string, _ int64, enum uint32) {
		c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_ProfileType(enum & 3), LocalhostRef: text}
	},
	func(c *cri.ContainerConfig, text string, _ int64, _ uint32) {
		c.Linux.SecurityContext.Capabilities.AddCapabilities = []string{text}
	},
	func(c *cri.ContainerConfig, text string, _ int64, enum uint32) {
		o := c.Linux.SecurityContext.NamespaceOptions
		o.Pid, o.TargetId = cri.NamespaceMode(enum&3), text
		o.Network, o.Ipc = cri.NamespaceMode(enum>>2&3), cri.NamespaceMode(enum>>4&3)
	},
}

// TestAbsurdRequests: what only a broken or hostile client sends is refused in
// words, or does no harm; it never gets far.
func TestAbsurdRequests(t *testing.T) {
	c, ctx := dial(t, fuzzService(t)), t.Context()
	labels := map[string]string{}
	for i := range 10_000 {
		labels[fmt.Sprint("label", i)] = "v"
	}
	p := basePod()
	p.Labels = labels
	if _, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p}); err != nil {
		t.Errorf("10,000 labels: %v", err)
	}
	for i := range 10_000 {
		labels[fmt.Sprint("more", i)] = "v"
	}
	for name, change := range map[string]func(*cri.PodSandboxConfig){
		"20,000 labels": func(*cri.PodSandboxConfig) {},
		"2 MB annotation": func(p *cri.PodSandboxConfig) {
			p.Labels, p.Annotations = nil, map[string]string{"a": strings.Repeat("x", 2<<20)}
		},
		"unknown mode": func(p *cri.PodSandboxConfig) {
			p.Labels, p.Linux.SecurityContext.NamespaceOptions.Pid = nil, 77
		},
		"unknown protocol": func(p *cri.PodSandboxConfig) {
			p.Labels, p.PortMappings = nil, []*cri.PortMapping{{Protocol: 99, ContainerPort: 1}}
		},
		"negative port":  func(p *cri.PodSandboxConfig) { p.Labels, p.PortMappings = nil, []*cri.PortMapping{{ContainerPort: -1}} },
		"negative limit": func(p *cri.PodSandboxConfig) { p.Labels, p.Linux.Resources.MemoryLimitInBytes = nil, -5 },
	} {
		p := basePod()
		p.Labels = labels
		change(p)
		if _, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p}); err == nil || !strings.Contains(err.Error(), runtime.ErrInvalid.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := call(ctx, fuzzService(t), methodNumber("StopPodSandbox"), []byte("\x0a\x02\xff\xfe")); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("invalid UTF-8: %v", err)
	}
}
