package nri

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// pod is a pod as plugins see it.
func (a *Adapter) pod(p runtime.Pod) *api.PodSandbox {
	c := p.Config
	out := &api.PodSandbox{
		Id: string(p.ID), Name: c.Name.Name, Uid: c.Name.UID, Namespace: c.Name.Namespace,
		Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: c.Handler, Ips: p.IPs,
		Linux: &api.LinuxPodSandbox{CgroupParent: c.CgroupParent},
	}
	if r := cmp.Or(p.Resources, c.Resources); r != nil { // as it was changed last
		out.Linux.PodResources = fromResources(*r)
	}
	if r := cmp.Or(p.Overhead, c.Overhead); r != nil {
		out.Linux.PodOverhead = fromResources(*r)
	}
	paths := a.runtime().NamespacePaths(p)
	for _, kind := range slices.Sorted(maps.Keys(paths)) {
		out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: kind, Path: paths[kind]})
	}
	return out
}

// container is a container as plugins see it, read from its bundle. One whose
// bundle is not there, as after a failed creation, is described by its record.
func (a *Adapter) container(c runtime.Container) *api.Container {
	s, err := a.runtime().Spec(&c)
	if err != nil {
		s = &specs.Spec{}
	}
	return container(c, s)
}

func container(c runtime.Container, s *specs.Spec) *api.Container {
	out := &api.Container{
		Id: string(c.ID), PodSandboxId: string(c.PodID), Name: c.Config.Name.Name, State: state(c.State),
		Labels: c.Config.Labels, Annotations: annotations(c, s), Mounts: api.FromOCIMounts(s.Mounts),
		Hooks: api.FromOCIHooks(s.Hooks), Pid: uint32(c.PID),
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &api.Image{Name: c.Config.Image, ConfigDigest: c.Config.ImageID},
		Linux: &api.LinuxContainer{CgroupsPath: c.CgroupPath},
	}
	for _, d := range c.Config.CDIDevices {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d})
	}
	if p := s.Process; p != nil {
		out.Args, out.Env = p.Args, p.Env
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		out.Linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		if p.OOMScoreAdj != nil {
			out.Linux.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
	}
	if l := s.Linux; l != nil {
		out.Linux.Namespaces = api.FromOCILinuxNamespaces(l.Namespaces)
		out.Linux.Devices = api.FromOCILinuxDevices(l.Devices)
		out.Linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
		out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		out.Linux.Sysctl = l.Sysctl
		out.Linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	}
	out.Linux.SeccompProfile = seccompProfile(c.Config.Security)
	return out
}

// annotations are the client's and those of the spec, which win.
func annotations(c runtime.Container, s *specs.Spec) map[string]string {
	out := maps.Clone(c.Config.Annotations)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, s.Annotations)
	return out
}

func seccompProfile(s runtime.Security) *api.SecurityProfile {
	switch s.Seccomp {
	case runtime.SeccompDefault:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
	case runtime.SeccompLocalhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: s.SeccompPath}
	default:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	}
}

func state(s runtime.ContainerState) api.ContainerState {
	switch s {
	case runtime.ContainerCreated:
		return api.ContainerState_CONTAINER_CREATED
	case runtime.ContainerRunning:
		return api.ContainerState_CONTAINER_RUNNING
	case runtime.ContainerExited, runtime.ContainerRemoving:
		return api.ContainerState_CONTAINER_STOPPED
	case runtime.ContainerCreating:
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func fromResources(r runtime.Resources) *api.LinuxResources {
	out := &api.LinuxResources{
		Memory:  &api.LinuxMemory{Limit: api.Int64(r.Memory), Swap: api.Int64(r.MemorySwap)},
		Cpu:     &api.LinuxCPU{Shares: api.UInt64(r.CPUShares), Quota: api.Int64(r.CPUQuota), Period: api.UInt64(r.CPUPeriod), Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems},
		Unified: r.Unified,
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimit)) {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: size, Limit: r.HugepageLimit[size]})
	}
	if r.Pids != nil {
		out.Pids = &api.LinuxPids{Limit: *r.Pids}
	}
	return out
}

// toResources takes what a plugin wants of a running container, and refuses
// what an update cannot carry.
func toResources(r *api.LinuxResources) (runtime.Resources, error) {
	var out runtime.Resources
	m, cpu := r.GetMemory(), r.GetCpu()
	for name, set := range map[string]bool{
		"memory reservation": m.GetReservation() != nil, "kernel memory": m.GetKernel() != nil,
		"kernel TCP memory": m.GetKernelTcp() != nil, "swappiness": m.GetSwappiness() != nil,
		"disabling the OOM killer": m.GetDisableOomKiller().GetValue(),
		"realtime CPU":             cpu.GetRealtimeRuntime() != nil || cpu.GetRealtimePeriod() != nil,
		"device rules":             len(r.GetDevices()) > 0,
		"a block I/O class":        r.GetBlockioClass().GetValue() != "", "an RDT class": r.GetRdtClass().GetValue() != "",
	} {
		if set {
			return out, fmt.Errorf("%w: a plugin wants an update of %s, which ocid does not do", runtime.ErrInvalid, name)
		}
	}
	out.Memory, out.MemorySwap = m.GetLimit().Get(), m.GetSwap().Get()
	out.CPUShares, out.CPUQuota, out.CPUPeriod = cpu.GetShares().Get(), cpu.GetQuota().Get(), cpu.GetPeriod().Get()
	out.CPUSetCPUs, out.CPUSetMems = cpu.GetCpus(), cpu.GetMems()
	out.Unified = r.GetUnified()
	for _, h := range r.GetHugepageLimits() {
		if out.HugepageLimit == nil {
			out.HugepageLimit = map[string]uint64{}
		}
		out.HugepageLimit[h.GetPageSize()] = h.GetLimit()
	}
	if p := r.GetPids(); p != nil {
		out.Pids = new(p.GetLimit())
	}
	return out, nil
}

// overlay lays what is set in b over a.
func overlay(a, b runtime.Resources) runtime.Resources {
	over(&a.Memory, b.Memory)
	over(&a.MemorySwap, b.MemorySwap)
	over(&a.CPUShares, b.CPUShares)
	over(&a.CPUQuota, b.CPUQuota)
	over(&a.CPUPeriod, b.CPUPeriod)
	over(&a.Pids, b.Pids)
	if b.CPUSetCPUs != "" {
		a.CPUSetCPUs = b.CPUSetCPUs
	}
	if b.CPUSetMems != "" {
		a.CPUSetMems = b.CPUSetMems
	}
	a.HugepageLimit = join(a.HugepageLimit, b.HugepageLimit)
	a.Unified = join(a.Unified, b.Unified)
	return a
}

func over[T any](dst **T, src *T) {
	if src != nil {
		*dst = src
	}
}

func join[V any](a, b map[string]V) map[string]V {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(a)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, b)
	return out
}
