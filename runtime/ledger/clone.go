package ledger

import (
	"bytes"
	"maps"
	"slices"

	"github.com/ocid-io/ocid/runtime"
)

// The functions here copy what a record points to. A test fills every field
// by reflection and fails when a copy shares memory with its source, so that a
// new field cannot be forgotten.

func clonePod(p *runtime.Pod) runtime.Pod {
	c := *p
	c.Config = clonePodConfig(&p.Config)
	c.Intents = slices.Clone(p.Intents)
	c.IPs = slices.Clone(p.IPs)
	c.Resources = cloneResources(p.Resources)
	c.Overhead = cloneResources(p.Overhead)
	c.CgroupsMade = slices.Clone(p.CgroupsMade)
	return c
}

func clonePodConfig(p *runtime.PodConfig) runtime.PodConfig {
	c := *p
	if p.DNS != nil {
		c.DNS = &runtime.DNS{
			Servers:  slices.Clone(p.DNS.Servers),
			Searches: slices.Clone(p.DNS.Searches),
			Options:  slices.Clone(p.DNS.Options),
		}
	}
	c.PortMappings = slices.Clone(p.PortMappings)
	c.Labels = maps.Clone(p.Labels)
	c.Annotations = maps.Clone(p.Annotations)
	c.Sysctls = maps.Clone(p.Sysctls)
	c.Namespaces = cloneNamespaces(p.Namespaces)
	c.Resources = cloneResources(p.Resources)
	c.Overhead = cloneResources(p.Overhead)
	c.Security = cloneSecurity(p.Security)
	return c
}

func cloneContainer(p *runtime.Container) runtime.Container {
	c := *p
	c.Config = cloneContainerConfig(&p.Config)
	c.Intents = slices.Clone(p.Intents)
	if p.User != nil {
		u := *p.User
		u.Groups = slices.Clone(u.Groups)
		c.User = &u
	}
	return c
}

func cloneContainerConfig(p *runtime.ContainerConfig) runtime.ContainerConfig {
	c := *p
	c.Command = slices.Clone(p.Command)
	c.Args = slices.Clone(p.Args)
	c.Env = slices.Clone(p.Env)
	for i := range c.Env {
		c.Env[i].Value = bytes.Clone(c.Env[i].Value)
	}
	c.Mounts = slices.Clone(p.Mounts)
	for i := range c.Mounts {
		c.Mounts[i].UIDMappings = slices.Clone(c.Mounts[i].UIDMappings)
		c.Mounts[i].GIDMappings = slices.Clone(c.Mounts[i].GIDMappings)
		c.Mounts[i].Options = slices.Clone(c.Mounts[i].Options)
	}
	c.Devices = slices.Clone(p.Devices)
	c.CDIDevices = slices.Clone(p.CDIDevices)
	c.Labels = maps.Clone(p.Labels)
	c.Annotations = maps.Clone(p.Annotations)
	c.Resources = cloneResources(p.Resources)
	c.Security = cloneSecurity(p.Security)
	return c
}

func cloneNamespaces(n runtime.Namespaces) runtime.Namespaces {
	if n.User != nil {
		n.User = &runtime.UserNamespace{UIDs: slices.Clone(n.User.UIDs), GIDs: slices.Clone(n.User.GIDs)}
	}
	return n
}

func cloneResources(p *runtime.Resources) *runtime.Resources {
	if p == nil {
		return nil
	}
	c := *p
	c.CPUPeriod = clonePtr(p.CPUPeriod)
	c.CPUQuota = clonePtr(p.CPUQuota)
	c.CPUShares = clonePtr(p.CPUShares)
	c.Memory = clonePtr(p.Memory)
	c.MemorySwap = clonePtr(p.MemorySwap)
	c.Pids = clonePtr(p.Pids)
	c.OOMScoreAdj = clonePtr(p.OOMScoreAdj)
	c.HugepageLimit = maps.Clone(p.HugepageLimit)
	c.Unified = maps.Clone(p.Unified)
	return &c
}

func cloneSecurity(s runtime.Security) runtime.Security {
	s.AddCapabilities = slices.Clone(s.AddCapabilities)
	s.DropCapabilities = slices.Clone(s.DropCapabilities)
	s.AmbientCaps = slices.Clone(s.AmbientCaps)
	s.RunAsUser = clonePtr(s.RunAsUser)
	s.RunAsGroup = clonePtr(s.RunAsGroup)
	s.SupplementalGroups = slices.Clone(s.SupplementalGroups)
	s.MaskedPaths = slices.Clone(s.MaskedPaths)
	s.ReadOnlyPaths = slices.Clone(s.ReadOnlyPaths)
	s.SELinux = clonePtr(s.SELinux)
	s.Namespaces = cloneNamespaces(s.Namespaces)
	return s
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
