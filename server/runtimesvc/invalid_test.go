package runtimesvc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// TestInvalid: each mutation is refused, with the field's name in the error.
func TestInvalid(t *testing.T) {
	many := map[string]string{}
	for i := range maxEntries + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for name, f := range map[string]field{
		"metadata.name":      {pod: func(p *cri.PodSandboxConfig) { p.Metadata.Name = "" }},
		"metadata.namespace": {pod: func(p *cri.PodSandboxConfig) { p.Metadata.Namespace = "a/b" }},
		"metadata.uid":       {pod: func(p *cri.PodSandboxConfig) { p.Metadata.Uid = ".." }},
		"hostname":           {pod: func(p *cri.PodSandboxConfig) { p.Hostname = strings.Repeat("a", 65) }},
		"hostname ":          {pod: func(p *cri.PodSandboxConfig) { p.Hostname = "a\nb" }},
		"log_directory":      {pod: func(p *cri.PodSandboxConfig) { p.LogDirectory = "logs" }},
		"labels":             {pod: func(p *cri.PodSandboxConfig) { p.Labels = many }},
		"annotations": {pod: func(p *cri.PodSandboxConfig) {
			p.Annotations = map[string]string{"a": strings.Repeat("x", maxMapBytes)}
		}},
		"dns_config.servers[0]":  {pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Servers = []string{"1.1.1.1\nsearch evil"} }},
		"dns_config.searches[0]": {pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Searches = []string{"a\nnameserver 6.6.6.6"} }},
		"dns_config.options[0]":  {pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Options = []string{""} }},
		"container_port":         {pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].ContainerPort = 65536 }},
		"host_port":              {pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].HostPort = -1 }},
		"host_ip":                {pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].HostIp = "host" }},
		"protocol":               {pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].Protocol = 9 }},
		"linux.cgroup_parent":    {pod: func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/a/../../b" }},
		"linux.sysctls":          {pod: func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"kernel.panic": "1"} }},
		"linux.sysctls ":         {pod: func(p *cri.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{"net/../kernel/panic": "1"} }},
		"sysctls on host network": {pod: func(p *cri.PodSandboxConfig) {
			p.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1"}
			p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		}},
		"namespace_options.network": {pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_CONTAINER })},
		"namespace_options.pid":     {pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_TARGET })},
		"userns_options.mode": {pod: podSC(func(s *cri.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_TARGET}
		})},
		"run_as_group": {pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.RunAsGroup = &cri.Int64Value{} })},
		"seccomp contradicts": {pod: podSC(func(s *cri.LinuxSandboxSecurityContext) {
			s.Seccomp, s.SeccompProfilePath = &cri.SecurityProfile{}, "unconfined"
		})},
		"image.image":           {ctr: func(c *cri.ContainerConfig) { c.Image = nil }},
		"command[0]":            {ctr: func(c *cri.ContainerConfig) { c.Command = []string{"a\x00"} }},
		"working_dir":           {ctr: func(c *cri.ContainerConfig) { c.WorkingDir = "srv" }},
		"envs[0].key":           {ctr: func(c *cri.ContainerConfig) { c.Envs[0].Key = "A=B" }},
		"envs[0].value":         {ctr: func(c *cri.ContainerConfig) { c.Envs[0].Value = []byte{0} }},
		"log_path":              {ctr: func(c *cri.ContainerConfig) { c.LogPath = "a/../../x" }},
		"log_path ":             {ctr: func(c *cri.ContainerConfig) { c.LogPath = "/etc/passwd" }},
		"log_path  ":            {ctr: func(c *cri.ContainerConfig) { c.LogPath = "." }},
		"stop_signal":           {ctr: func(c *cri.ContainerConfig) { c.StopSignal = 999 }},
		"container_path":        {ctr: ctrMount(func(m *cri.Mount) { m.ContainerPath = "/a/.." })},
		"host_path":             {ctr: ctrMount(func(m *cri.Mount) { m.HostPath = "" })},
		"propagation":           {ctr: ctrMount(func(m *cri.Mount) { m.Propagation = 9 })},
		"host_path cannot":      {ctr: ctrMount(func(m *cri.Mount) { m.Image = &cri.ImageSpec{Image: "i"} })},
		"image.image ":          {ctr: ctrMount(func(m *cri.Mount) { m.HostPath, m.Image = "", &cri.ImageSpec{} })},
		"image_sub_path":        {ctr: ctrMount(func(m *cri.Mount) { m.ImageSubPath = "a" })},
		"image_sub_path ":       {ctr: ctrMount(func(m *cri.Mount) { m.HostPath, m.Image, m.ImageSubPath = "", &cri.ImageSpec{Image: "i"}, "../a" })},
		"image_sub_path  ":      {ctr: ctrMount(func(m *cri.Mount) { m.HostPath, m.Image, m.ImageSubPath = "", &cri.ImageSpec{Image: "i"}, "/a" })},
		"propagation ":          {ctr: ctrMount(func(m *cri.Mount) { m.HostPath, m.Image, m.Propagation = "", &cri.ImageSpec{Image: "i"}, 2 })},
		"uidMappings":           {ctr: ctrMount(func(m *cri.Mount) { mapped(m); m.HostPath, m.Image = "", &cri.ImageSpec{Image: "i"} })},
		"gidMappings":           {ctr: ctrMount(func(m *cri.Mount) { mapped(m); m.GidMappings = nil })},
		"uidMappings[0]":        {ctr: ctrMount(func(m *cri.Mount) { mapped(m); m.UidMappings[0].Length = 0 })},
		"mount_options[0]":      {ctr: ctrMount(func(m *cri.Mount) { m.MountOptions = []string{"exec"} })},
		"mount_options[1]":      {ctr: ctrMount(func(m *cri.Mount) { m.MountOptions = []string{"noexec", "noexec"} })},
		"mount_options[0] ":     {ctr: ctrMount(func(m *cri.Mount) { m.MountOptions = []string{"noexec,suid"} })},
		"recursive_read_only":   {ctr: ctrMount(func(m *cri.Mount) { m.RecursiveReadOnly = true })},
		"permissions":           {ctr: func(c *cri.ContainerConfig) { c.Devices[0].Permissions = "rr" }},
		"devices[0].host_path":  {ctr: func(c *cri.ContainerConfig) { c.Devices[0].HostPath = "null" }},
		"cpu_period":            {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuPeriod = -1 })},
		"cpu_quota":             {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuQuota = -2 })},
		"cpu_shares":            {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuShares = -2 })},
		"memory_limit":          {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = -1 })},
		"memory_swap_limit":     {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 9, 8 })},
		"oom_score_adj":         {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.OomScoreAdj = -1001 })},
		"cpuset_cpus":           {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpusetCpus = "all" })},
		"page_size":             {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.HugepageLimits[0].PageSize = "../x" })},
		"unified":               {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"../memory.max": "1"} })},
		"unified  ":             {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"memory.reclaim": "1G"} })},
		"unified   ":            {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"hugetlb.x/y.max": "1"} })},
		"unified ":              {ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"cgroup.procs": "1"} })},
		"add_capabilities":      {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities.AddCapabilities = []string{"NET_ADMINN"} })},
		"run_as_user":           {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1<<32 - 1} })},
		"run_as_username":       {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsUsername = &cri.Int64Value{}, "u" })},
		"run_as_group ":         {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.RunAsGroup = &cri.Int64Value{} })},
		"supplemental_groups":   {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{-1} })},
		"masked_paths[0]":       {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc"} })},
		"seccomp.localhost_ref": {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/rel.json" })},
		"seccomp":               {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SeccompProfilePath = "docker" })},
		"selinux_options.type":  {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions.Type = "a:b" })},
		"target_id":             {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_TARGET })},
		"namespace_options.ipc": {ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE })},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := translate(f, true)
			if !errors.Is(err, runtime.ErrInvalid) {
				t.Fatalf("accepted: %v", err)
			}
			if want, _, _ := strings.Cut(name, " "); !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not say %q: %v", want, err)
			}
		})
	}
}

// TestPlainHost: without AppArmor and the unified hierarchy.
func TestPlainHost(t *testing.T) {
	f := facts()
	f.host = Host{}
	f.handler.RecursiveReadOnly = false
	c := baseContainer()
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{}
	got, err := containerConfig(c, f)
	if err != nil || got.Security.AppArmor != "" {
		t.Errorf("runtime default: %q, %v", got.Security.AppArmor, err)
	}
	for name, change := range map[string]func(*cri.ContainerConfig){
		"AppArmor":            func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ApparmorProfile = "localhost/web" },
		"unified":             func(c *cri.ContainerConfig) { c.Linux.Resources.Unified = map[string]string{"memory.min": "1"} },
		"recursive_read_only": func(c *cri.ContainerConfig) { c.Mounts[0].Readonly, c.Mounts[0].RecursiveReadOnly = true, true },
	} {
		c := baseContainer()
		change(c)
		if _, err := containerConfig(c, f); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSignals(t *testing.T) {
	c := &check{}
	for n := range cri.Signal_name {
		if s := c.signal("f", cri.Signal(n)); s != "" && criSignal(s) != cri.Signal(n) {
			t.Errorf("%s came back as %s", s, criSignal(s))
		}
	}
	for s, want := range map[string]cri.Signal{
		"15": cri.Signal_SIGNAL_SIGTERM, "term": cri.Signal_SIGNAL_SIGTERM, "": 0, "nonsense": 0, "9999": 0,
		"RTMIN+3": cri.Signal_SIGNAL_SIGRTMINPLUS3,
	} {
		if got := criSignal(s); got != want {
			t.Errorf("%q: %s", s, got)
		}
	}
	if err := c.err(); err != nil {
		t.Error(err)
	}
}

// TestAppArmorNames: the message wins over the deprecated string, and its name
// may have the string's prefix.
func TestAppArmorNames(t *testing.T) {
	local := func(name string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: name}
	}
	for name, tc := range map[string]struct {
		in  *cri.SecurityProfile
		old string
	}{
		"message":                 {local("web"), ""},
		"message with prefix":     {local("localhost/web"), ""},
		"string":                  {nil, "localhost/web"},
		"message over the string": {local("localhost/web"), "localhost/other"},
	} {
		c := &check{}
		kind, profile := c.appArmor("apparmor", tc.in, tc.old, Host{AppArmor: true})
		if kind != runtime.SeccompLocalhost || profile != "web" || c.err() != nil {
			t.Errorf("%s: %q %q, %v", name, kind, profile, c.err())
		}
	}
}
