package nri

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

func base() (*specs.Spec, *runtime.Container) {
	return &specs.Spec{
		Process:     &specs.Process{Args: []string{"a"}, Env: []string{"A=1", "B=2"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}},
		Annotations: map[string]string{"io.ocid.pod-id": "p", "old": "1"},
		Mounts:      []specs.Mount{{Destination: "/proc"}, {Destination: "/data/x"}, {Destination: "/gone"}},
		Linux: &specs.Linux{
			CgroupsPath: "/ocid/c", Namespaces: []specs.LinuxNamespace{{Type: "ipc", Path: "/x"}, {Type: "uts"}},
			Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: new(int64(5)), Swap: new(int64(5))}},
		},
	}, &runtime.Container{CgroupPath: "/ocid/c"}
}

func TestAdjust(t *testing.T) {
	a := &Adapter{o: Options{MinOOMScore: -5, InjectCDI: func(s *specs.Spec, names []string) error {
		s.Process.Env = append(s.Process.Env, "CDI="+names[0])
		return nil
	}}}
	s, c := base()
	err := a.adjust(s, c, &api.ContainerAdjustment{
		Annotations: map[string]string{"-old": "", "new": "1"},
		Args:        []string{"b", "c"},
		Env:         []*api.KeyValue{{Key: "-A"}, {Key: "B", Value: "3"}, {Key: "C", Value: "4"}},
		Mounts: []*api.Mount{
			{Destination: "-/gone"},
			{Destination: "/data", Type: "bind", Source: "/d", Options: []string{"rbind", "rslave"}},
		},
		Hooks:      &api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}, Prestart: []*api.Hook{{Path: "/bin/false"}}},
		CDIDevices: []*api.CDIDevice{{Name: "v/c=d"}},
		Rlimits:    []*api.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}},
		Linux: &api.LinuxContainerAdjustment{
			Devices:     []*api.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}},
			CgroupsPath: "/elsewhere/c", OomScoreAdj: api.Int(-900),
			Namespaces: []*api.LinuxNamespace{{Type: "-uts"}},
			Sysctl:     map[string]string{"net.ipv4.ip_forward": "1"},
			Resources: &api.LinuxResources{
				Memory: &api.LinuxMemory{Limit: api.Int64(int64(9))}, Cpu: &api.LinuxCPU{Shares: api.UInt64(uint64(7)), Cpus: "0"},
				Pids: &api.LinuxPids{Limit: 3}, Unified: map[string]string{"memory.high": "1"},
			},
			SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38))},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"B=3", "C=4", "CDI=v/c=d"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %v, want %v", s.Process.Env, want)
	}
	var at []string
	for _, m := range s.Mounts {
		at = append(at, m.Destination)
	}
	if want := []string{"/proc", "/data", "/data/x"}; !slices.Equal(at, want) || s.Linux.RootfsPropagation != "rslave" {
		t.Errorf("mounts %v, propagation %q", at, s.Linux.RootfsPropagation)
	}
	r := s.Linux.Resources
	for what, ok := range map[string]bool{
		"annotations": len(s.Annotations) == 2 && s.Annotations["new"] == "1",
		"args":        slices.Equal(s.Process.Args, []string{"b", "c"}),
		"hooks":       len(s.Hooks.Poststop) == 1 && len(s.Hooks.CreateRuntime) == 1,
		"rlimits":     len(s.Process.Rlimits) == 1 && s.Process.Rlimits[0].Hard == 2,
		"oom score":   *s.Process.OOMScoreAdj == -5,
		"cgroup":      s.Linux.CgroupsPath == "/elsewhere/c" && c.CgroupPath == "/elsewhere/c",
		"devices":     len(s.Linux.Devices) == 1 && len(r.Devices) == 1 && *r.Devices[0].Minor == 3,
		"namespaces":  len(s.Linux.Namespaces) == 1,
		"memory":      *r.Memory.Limit == 9 && *r.Memory.Swap == 9,
		"cpu":         *r.CPU.Shares == 7 && r.CPU.Cpus == "0",
		"pids":        *r.Pids.Limit == 3,
		"unified":     r.Unified["memory.high"] == "1",
		"seccomp":     s.Linux.Seccomp.DefaultAction == specs.ActErrno && *s.Linux.Seccomp.DefaultErrnoRet == 38,
		"sysctl":      s.Linux.Sysctl["net.ipv4.ip_forward"] == "1",
	} {
		if !ok {
			t.Errorf("%s: process %+v linux %+v", what, s.Process, s.Linux)
		}
	}
}

func TestAdjustRefuses(t *testing.T) {
	linux := func(l *api.LinuxContainerAdjustment) *api.ContainerAdjustment {
		return &api.ContainerAdjustment{Linux: l}
	}
	for name, want := range map[string]*api.ContainerAdjustment{
		"own annotation":  {Annotations: map[string]string{"io.ocid.pod-id": "x"}},
		"its removal":     {Annotations: map[string]string{"-io.ocid.pod-id": ""}},
		"variable name":   {Env: []*api.KeyValue{{Key: "A=B"}}},
		"relative hook":   {Hooks: &api.Hooks{Poststop: []*api.Hook{{Path: "true"}}}},
		"relative mount":  {Mounts: []*api.Mount{{Destination: "a"}}},
		"climbing mount":  {Mounts: []*api.Mount{{Destination: "/a/../../b"}}},
		"root mount":      {Mounts: []*api.Mount{{Destination: "/"}}},
		"rlimit":          {Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}}},
		"no CDI":          {CDIDevices: []*api.CDIDevice{{Name: "v/c=d"}}},
		"relative device": linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "x", Type: "c"}}}),
		"device type":     linux(&api.LinuxContainerAdjustment{Devices: []*api.LinuxDevice{{Path: "/dev/x", Type: "z"}}}),
		"cgroup":          linux(&api.LinuxContainerAdjustment{CgroupsPath: "/a/../../b"}),
		"relative cgroup": linux(&api.LinuxContainerAdjustment{CgroupsPath: "a:b:c"}),
		"oom score":       linux(&api.LinuxContainerAdjustment{OomScoreAdj: api.Int(-2000)}),
		"namespace":       linux(&api.LinuxContainerAdjustment{Namespaces: []*api.LinuxNamespace{{Type: "ipc", Path: "x"}}}),
		"class":           linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{RdtClass: api.String("gold")}}),
		"cgroup file":     linux(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}}),
	} {
		t.Run(name, func(t *testing.T) {
			s, c := base()
			if err := (&Adapter{}).adjust(s, c, want); !errors.Is(err, runtime.ErrInvalid) {
				t.Errorf("not refused: %v", err)
			}
		})
	}
}

// TestNoResources: a precreate hook prints what spec it likes.
func TestNoResources(t *testing.T) {
	s, c := base()
	s.Linux.Resources = nil
	err := (&Adapter{}).adjust(s, c, &api.ContainerAdjustment{Linux: &api.LinuxContainerAdjustment{
		Devices:   []*api.LinuxDevice{{Path: "/dev/x", Type: "c"}},
		Resources: &api.LinuxResources{Pids: &api.LinuxPids{Limit: 3}},
	}})
	if err != nil || s.Linux.Resources == nil || len(s.Linux.Resources.Devices) != 1 {
		t.Errorf("%+v, %v", s.Linux.Resources, err)
	}
}

func TestResourcesRoundTrip(t *testing.T) {
	in := runtime.Resources{
		Memory: new(int64(1)), MemorySwap: new(int64(2)), CPUShares: new(uint64(3)), CPUQuota: new(int64(4)), CPUPeriod: new(uint64(5)),
		Pids: new(int64(6)), CPUSetCPUs: "0", CPUSetMems: "0", HugepageLimit: map[string]uint64{"2MB": 7}, Unified: map[string]string{"a.b": "c"},
	}
	out, err := toResources(fromResources(in))
	if err != nil {
		t.Fatal(err)
	}
	if *out.Memory != 1 || *out.MemorySwap != 2 || *out.CPUShares != 3 || *out.CPUQuota != 4 || *out.CPUPeriod != 5 || *out.Pids != 6 ||
		out.CPUSetCPUs != "0" || out.HugepageLimit["2MB"] != 7 || out.Unified["a.b"] != "c" {
		t.Errorf("%+v", out)
	}
	if empty, err := toResources(fromResources(runtime.Resources{})); err != nil || empty.Memory != nil || empty.Pids != nil {
		t.Errorf("what is not set became set: %+v %v", empty, err)
	}
	if _, err := toResources(&api.LinuxResources{Memory: &api.LinuxMemory{Swappiness: api.UInt64(uint64(1))}}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("swappiness: %v", err)
	}
}
