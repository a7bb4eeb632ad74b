package runtimesvc

import (
	"regexp"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

var (
	cpusetPattern   = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	hugepagePattern = regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`)
)

// resources translates limits. In CRI a zero is "not specified".
func (c *check) resources(field string, in *cri.LinuxContainerResources, host Host) *runtime.Resources {
	out := &runtime.Resources{
		CPUSetCPUs: c.cpuset(field+".cpuset_cpus", in.GetCpusetCpus()),
		CPUSetMems: c.cpuset(field+".cpuset_mems", in.GetCpusetMems()),
	}
	if v := in.GetCpuPeriod(); v != 0 {
		c.between(field+".cpu_period", v, 1000, 1000000)
		out.CPUPeriod = ptr(uint64(max(v, 0))) //nolint:gosec // not negative
	}
	if v := in.GetCpuQuota(); v != 0 {
		if v < -1 {
			c.fail(field+".cpu_quota", "%d is less than -1, which is no limit", v)
		}
		out.CPUQuota = ptr(v)
	}
	if v := in.GetCpuShares(); v != 0 {
		c.between(field+".cpu_shares", v, 0, 1<<31)
		out.CPUShares = ptr(uint64(max(v, 0))) //nolint:gosec // not negative
	}
	if v := in.GetMemoryLimitInBytes(); v != 0 {
		if v < 0 {
			c.fail(field+".memory_limit_in_bytes", "%d is negative", v)
		}
		out.Memory = ptr(v)
	}
	if v := in.GetMemorySwapLimitInBytes(); v != 0 {
		switch limit := in.GetMemoryLimitInBytes(); {
		case v < -1:
			c.fail(field+".memory_swap_limit_in_bytes", "%d is less than -1, which is no limit", v)
		case v > 0 && limit > v:
			c.fail(field+".memory_swap_limit_in_bytes", "%d is for memory and swap together, and less than memory's %d", v, limit)
		}
		out.MemorySwap = ptr(v)
	}
	if v := in.GetOomScoreAdj(); v != 0 {
		c.between(field+".oom_score_adj", v, -1000, 1000)
		out.OOMScoreAdj = ptr(int(v))
	}
	out.HugepageLimit = c.hugepages(field+".hugepage_limits", in.GetHugepageLimits(), host)
	out.Unified = c.unified(field+".unified", in.GetUnified(), host)
	return out
}

func (c *check) cpuset(field, s string) string {
	if s != "" && (len(s) > maxPath || !cpusetPattern.MatchString(s)) {
		c.fail(field, "%q is no list of numbers and ranges", s)
	}
	return s
}

// hugepages leaves out limits of zero where nothing can uphold them: the kubelet
// sends one for each page size with every container.
func (c *check) hugepages(field string, in []*cri.HugepageLimit, host Host) map[string]uint64 {
	if len(in) == 0 || !c.count(field, len(in), 64) {
		return nil
	}
	out := map[string]uint64{}
	for i, h := range in {
		size := h.GetPageSize()
		if len(size) > 16 || !hugepagePattern.MatchString(size) {
			c.fail(index(field, i)+".page_size", "%q does not look like 2MB", size)
		}
		if _, ok := out[size]; ok {
			c.fail(index(field, i)+".page_size", "%s is there twice", size)
		}
		if !host.Hugetlb && h.GetLimit() > 0 {
			c.fail(index(field, i)+".limit", "this machine has no hugetlb cgroup controller to uphold it")
		}
		if host.Hugetlb {
			out[size] = h.GetLimit()
		}
	}
	return out
}

func (c *check) unified(field string, in map[string]string, host Host) map[string]string {
	if len(in) == 0 {
		return nil
	}
	if !host.CgroupV2 {
		c.fail(field, "this machine has no unified cgroup hierarchy")
		return nil
	}
	for k, v := range c.stringMap(field, in) {
		// The key becomes a file name in the container's cgroup.
		if !runtime.UnifiedKey(k) {
			c.fail(field, "%.80q is none of the files of a cgroup that can be set for a container", k)
		}
		if hasControl(strings.ReplaceAll(v, "\n", " ")) {
			c.fail(field, "%s: the value holds control characters", k)
		}
	}
	return in
}

// criResources is the way back, for statuses.
func criResources(in *runtime.Resources) *cri.LinuxContainerResources {
	if in == nil {
		return nil
	}
	out := &cri.LinuxContainerResources{
		CpuPeriod:              int64(deref(in.CPUPeriod)), //nolint:gosec // bounded on the way in
		CpuQuota:               deref(in.CPUQuota),
		CpuShares:              int64(deref(in.CPUShares)), //nolint:gosec // bounded on the way in
		MemoryLimitInBytes:     deref(in.Memory),
		MemorySwapLimitInBytes: deref(in.MemorySwap),
		OomScoreAdj:            int64(deref(in.OOMScoreAdj)),
		CpusetCpus:             in.CPUSetCPUs,
		CpusetMems:             in.CPUSetMems,
		Unified:                in.Unified,
	}
	for _, size := range sortedKeys(in.HugepageLimit) {
		out.HugepageLimits = append(out.HugepageLimits, &cri.HugepageLimit{PageSize: size, Limit: in.HugepageLimit[size]})
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
