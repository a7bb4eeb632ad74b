package spec

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

func stepResources(in *Input, s *specs.Spec) error {
	r, err := Resources(in.Container.Resources, in.CgroupV2)
	if err != nil {
		return err
	}
	r.Devices = s.Linux.Resources.Devices
	s.Linux.Resources = r
	return nil
}

var (
	hugepageSize = regexp.MustCompile(`^[1-9][0-9]{0,6}[KMG]B$`)
	cpuList      = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
)

// Resources converts limits, for a new container and for the update of a
// running one. nil means no limits.
func Resources(r *runtime.Resources, cgroupV2 bool) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	for _, l := range []string{r.CPUSetCPUs, r.CPUSetMems} {
		if l != "" && !cpuList.MatchString(l) {
			return nil, invalid("cpuset %q is not a list of ranges", l)
		}
	}
	if r.CPUPeriod != nil || r.CPUQuota != nil || r.CPUShares != nil || r.CPUSetCPUs != "" || r.CPUSetMems != "" {
		out.CPU = &specs.LinuxCPU{
			Period: r.CPUPeriod, Quota: r.CPUQuota, Shares: r.CPUShares,
			Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems,
		}
	}
	if m, err := memory(r); err != nil {
		return nil, err
	} else if m != nil {
		out.Memory = m
	}
	if r.Pids != nil {
		out.Pids = &specs.LinuxPids{Limit: new(*r.Pids)}
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimit)) {
		if !hugepageSize.MatchString(size) {
			return nil, invalid("hugepage size %q, want a form like 2MB", size)
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: r.HugepageLimit[size]})
	}
	if len(r.Unified) > 0 && !cgroupV2 {
		return nil, invalid("unified resources need cgroup v2, which this machine does not use")
	}
	for k := range r.Unified {
		if !runtime.UnifiedKey(k) {
			return nil, invalid("unified resource %q is not a controller's file that a container may have set", k)
		}
	}
	out.Unified = maps.Clone(r.Unified)
	return out, nil
}

func memory(r *runtime.Resources) (*specs.LinuxMemory, error) {
	if r.Memory == nil && r.MemorySwap == nil {
		return nil, nil
	}
	if r.MemorySwap != nil && *r.MemorySwap > 0 {
		if r.Memory == nil || *r.Memory <= 0 {
			return nil, invalid("a limit on memory and swap needs a memory limit")
		}
		if *r.MemorySwap < *r.Memory {
			return nil, invalid("the limit on memory and swap, %d, is below the memory limit, %d", *r.MemorySwap, *r.Memory)
		}
	}
	return &specs.LinuxMemory{Limit: r.Memory, Swap: r.MemorySwap}, nil
}

// stepOOMScore always writes a value, as the container would inherit the
// daemon's otherwise, which is meant to be the last one killed.
func stepOOMScore(in *Input, s *specs.Spec) error {
	adj := 0
	if r := in.Container.Resources; r != nil && r.OOMScoreAdj != nil {
		adj = *r.OOMScoreAdj
	}
	if adj < -1000 || adj > 1000 {
		return invalid("oom_score_adj %d is not in -1000..1000", adj)
	}
	s.Process.OOMScoreAdj = new(max(adj, in.MinOOMScore))
	return nil
}

// maxSysctlValue is the most that one write to /proc/sys takes.
const maxSysctlValue = 4095

var (
	sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+([./][a-zA-Z0-9_*:@-]+)+$`)
	ipcSysctls = []string{"kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."}
)

// stepSysctls writes the pod's sysctls whose namespace is the container's own.
// In a namespace that the pod shares they were set when it was pinned; the
// host's are out of reach.
func stepSysctls(in *Input, s *specs.Spec) error {
	m := in.modes()
	for name, value := range in.Pod.Config.Sysctls {
		if !sysctlName.MatchString(name) || len(name) > 255 {
			return invalid("sysctl name %q", name)
		}
		if text("value", value) != nil || strings.Contains(value, "\n") || len(value) > maxSysctlValue {
			return invalid("sysctl %s: value %.64q", name, value)
		}
		mode, err := sysctlMode(name, m)
		if err != nil {
			return err
		}
		switch mode {
		case runtime.NamespaceNode:
			return invalid("sysctl %s belongs to a namespace that the pod shares with the host", name)
		case runtime.NamespaceContainer:
			if s.Linux.Sysctl == nil {
				s.Linux.Sysctl = map[string]string{}
			}
			s.Linux.Sysctl[name] = value
		case runtime.NamespacePod, runtime.NamespaceTarget: // set when the pod's namespace was pinned
		}
	}
	return nil
}

func sysctlMode(name string, m runtime.Namespaces) (runtime.NamespaceMode, error) {
	dotted := strings.ReplaceAll(name, "/", ".")
	if strings.HasPrefix(dotted, "net.") {
		return m.Network, nil
	}
	for _, p := range ipcSysctls {
		if strings.HasPrefix(dotted, p) {
			return m.IPC, nil
		}
	}
	return "", invalid("sysctl %s is not confined to a namespace and would change the host", name)
}
