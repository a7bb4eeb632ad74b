package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

func update(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	in := os.Stdin
	if f := a.get("resources", "r"); f == "" {
		return fmt.Errorf("update needs --resources FILE")
	} else if f != "-" {
		if in, err = os.Open(f); err != nil {
			return err
		}
		defer in.Close()
	}
	var r specs.LinuxResources
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return fmt.Errorf("resources: %w", err)
	}
	cfg := c.Config()
	// Device rules are not among what update changes.
	cfg.Cgroups.SkipDevices = true
	apply(cfg.Cgroups.Resources, &r)
	return c.Set(cfg)
}

// apply lays the limits that r names over those in force.
func apply(to *cgroups.Resources, r *specs.LinuxResources) {
	if m := r.Memory; m != nil {
		set(&to.Memory, m.Limit)
		set(&to.MemoryReservation, m.Reservation)
		set(&to.MemorySwap, m.Swap)
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			to.MemorySwap = 0 // a swap limit cannot be kept without a memory limit
		}
		if m.CheckBeforeUpdate != nil {
			to.MemoryCheckBeforeUpdate = *m.CheckBeforeUpdate
		}
	}
	if p := r.CPU; p != nil {
		set(&to.CpuQuota, p.Quota)
		set(&to.CpuPeriod, p.Period)
		set(&to.CpuRtPeriod, p.RealtimePeriod)
		set(&to.CpuRtRuntime, p.RealtimeRuntime)
		if p.Burst != nil {
			to.CpuBurst = p.Burst
		}
		if p.Idle != nil {
			to.CPUIdle = p.Idle
		}
		if p.Shares != nil {
			to.CpuShares = *p.Shares
			to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*p.Shares)
		}
		if p.Cpus != "" {
			to.CpusetCpus = p.Cpus
		}
		if p.Mems != "" {
			to.CpusetMems = p.Mems
		}
	}
	if r.Pids != nil {
		to.PidsLimit = r.Pids.Limit
	}
	if r.BlockIO != nil && r.BlockIO.Weight != nil {
		to.BlkioWeight = *r.BlockIO.Weight
	}
	if len(r.HugepageLimits) > 0 {
		to.HugetlbLimit = nil
		for _, h := range r.HugepageLimits {
			to.HugetlbLimit = append(to.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
		}
	}
	if len(r.Unified) > 0 && to.Unified == nil {
		to.Unified = map[string]string{}
	}
	for k, v := range r.Unified {
		to.Unified[k] = v
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func printFeatures(_, _ *options) error {
	t := true
	f := features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Annotations:   map[string]string{"io.github.ocid-io.runtime.version": version},
		Hooks:         hookNames(),
		MountOptions:  specconv.KnownMountOptions(),
		Linux: &features.Linux{
			Namespaces:      specconv.KnownNamespaces(),
			Capabilities:    capabilities.KnownCapabilities(),
			Cgroup:          &features.Cgroup{V1: &t, V2: &t, Systemd: &t, Rdma: &t},
			Apparmor:        &features.Apparmor{Enabled: &t},
			Selinux:         &features.Selinux{Enabled: &t},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &t}},
		},
	}
	if seccomp.Enabled {
		f.Linux.Seccomp = &features.Seccomp{
			Enabled: &t, Actions: seccomp.KnownActions(), Operators: seccomp.KnownOperators(),
			Archs: seccomp.KnownArchs(), KnownFlags: seccomp.KnownFlags(), SupportedFlags: seccomp.SupportedFlags(),
		}
	}
	return printJSON(f)
}
