package runtimesvc

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// What ocid does with a field.
const (
	honoured    = "honoured"    // it changes what is run; the row's mutation proves it
	checked     = "checked"     // it must agree with the rest; the row's mutation does not, and is refused
	refused     = "refused"     // any value but the default is InvalidArgument; so is all below it
	informative = "informative" // accepted, and has nothing to change, for the reason given
	nested      = "nested"      // a message whose fields have rows of their own
)

// field is one row: what is done, why, and a mutation of a configuration that
// sets the field. Exactly one of pod and ctr is set where there is a mutation.
type field struct {
	does string
	why  string
	pod  func(*cri.PodSandboxConfig)
	ctr  func(*cri.ContainerConfig)
}

func podSC(f func(*cri.LinuxSandboxSecurityContext)) func(*cri.PodSandboxConfig) {
	return func(p *cri.PodSandboxConfig) { f(p.Linux.SecurityContext) }
}

func ctrSC(f func(*cri.LinuxContainerSecurityContext)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { f(c.Linux.SecurityContext) }
}

func ctrRes(f func(*cri.LinuxContainerResources)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { f(c.Linux.Resources) }
}

func ctrMount(f func(*cri.Mount)) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) { f(c.Mounts[0]) }
}

// fields lists every field that a pod's or a container's configuration can
// have, by message. A message used in several places has one set of rows.
var fields = map[string]field{
	"PodSandboxConfig.metadata":       {does: nested},
	"PodSandboxConfig.hostname":       {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Hostname = "web-0" }},
	"PodSandboxConfig.log_directory":  {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.LogDirectory = "/var/log/x" }},
	"PodSandboxConfig.dns_config":     {does: nested},
	"PodSandboxConfig.port_mappings":  {does: nested},
	"PodSandboxConfig.labels":         {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Labels = map[string]string{"a": "b"} }},
	"PodSandboxConfig.annotations":    {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Annotations = map[string]string{"a": "b"} }},
	"PodSandboxConfig.linux":          {does: nested},
	"PodSandboxConfig.windows":        {does: refused, pod: func(p *cri.PodSandboxConfig) { p.Windows = &cri.WindowsPodSandboxConfig{} }},
	"PodSandboxMetadata.name":         {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Metadata.Name = "other" }},
	"PodSandboxMetadata.uid":          {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Metadata.Uid = "other" }},
	"PodSandboxMetadata.namespace":    {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Metadata.Namespace = "other" }},
	"PodSandboxMetadata.attempt":      {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.Metadata.Attempt = 7 }},
	"DNSConfig.servers":               {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Servers = []string{"10.0.0.1", "fd00::1"} }},
	"DNSConfig.searches":              {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Searches = []string{"a.b"} }},
	"DNSConfig.options":               {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.DnsConfig.Options = []string{"ndots:5"} }},
	"PortMapping.protocol":            {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].Protocol = cri.Protocol_SCTP }},
	"PortMapping.container_port":      {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].ContainerPort = 8080 }},
	"PortMapping.host_port":           {does: honoured, why: "0 forwards nothing; on the host's network the port is the host's already", pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].HostPort = 65535 }},
	"PortMapping.host_ip":             {does: honoured, pod: func(p *cri.PodSandboxConfig) { p.PortMappings[0].HostIp = "127.0.0.1" }},
	"LinuxPodSandboxConfig.resources": {does: nested, why: "kept as the sum that it is; limits are the containers' and the parent cgroup's"},
	"LinuxPodSandboxConfig.overhead":  {does: nested, why: "kept; the kubelet has it in the parent cgroup's limits"},
	"LinuxPodSandboxConfig.cgroup_parent": {does: honoured, pod: func(p *cri.PodSandboxConfig) {
		p.Linux.CgroupParent = "/kubepods/burstable/pod1"
	}},
	"LinuxPodSandboxConfig.security_context": {does: nested},
	"LinuxPodSandboxConfig.sysctls": {does: honoured, why: "those of the pod's own namespaces; any other is refused", pod: func(p *cri.PodSandboxConfig) {
		p.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	}},

	"LinuxSandboxSecurityContext.namespace_options": {does: nested},
	"LinuxSandboxSecurityContext.selinux_options":   {does: nested, why: "has no effect where SELinux is not active"},
	"LinuxSandboxSecurityContext.run_as_user":       {does: nested},
	"LinuxSandboxSecurityContext.run_as_group": {does: honoured, why: "needs run_as_user", pod: podSC(func(s *cri.LinuxSandboxSecurityContext) {
		s.RunAsUser, s.RunAsGroup = &cri.Int64Value{}, &cri.Int64Value{Value: 5}
	})},
	"LinuxSandboxSecurityContext.readonly_rootfs":            {does: honoured, why: "kept; a pod has no root file system of its own", pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.ReadonlyRootfs = true })},
	"LinuxSandboxSecurityContext.supplemental_groups":        {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{7} })},
	"LinuxSandboxSecurityContext.supplemental_groups_policy": {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.SupplementalGroupsPolicy = 1 })},
	"LinuxSandboxSecurityContext.privileged":                 {does: honoured, why: "without it a privileged container is refused", pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true })},
	"LinuxSandboxSecurityContext.seccomp":                    {does: nested},
	"LinuxSandboxSecurityContext.apparmor":                   {does: nested},
	"LinuxSandboxSecurityContext.seccomp_profile_path":       {does: honoured, why: "deprecated; must not contradict seccomp", pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.SeccompProfilePath = "localhost//p.json" })},

	"SecurityProfile.profile_type": {does: honoured, why: "AppArmor without kernel support: RuntimeDefault is passed over as other runtimes do, Localhost refused", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) {
		s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	})},
	"SecurityProfile.localhost_ref": {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) {
		s.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "web"}
	})},
	"SELinuxOption.user":  {does: honoured, why: "has no effect where SELinux is not active", pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.SelinuxOptions.User = "u" })},
	"SELinuxOption.role":  {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.SelinuxOptions.Role = "r" })},
	"SELinuxOption.type":  {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions.Type = "t" })},
	"SELinuxOption.level": {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SelinuxOptions.Level = "s0:c1,c2" })},
	"Int64Value.value":    {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUser = &cri.Int64Value{Value: 1000} })},

	"NamespaceOption.network": {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Network = cri.NamespaceMode_NODE })},
	"NamespaceOption.pid":     {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Pid = cri.NamespaceMode_CONTAINER })},
	"NamespaceOption.ipc":     {does: honoured, pod: podSC(func(s *cri.LinuxSandboxSecurityContext) { s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE })},
	"NamespaceOption.target_id": {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, targetID
	})},
	"NamespaceOption.userns_options": {does: nested},
	"UserNamespace.mode":             {does: honoured, why: "POD or NODE; POD with a handler that has user namespaces", pod: podUser(1000)},
	"UserNamespace.uids":             {does: honoured, why: "one mapping, with root in it", pod: podUser(1000)},
	"UserNamespace.gids":             {does: honoured, why: "one mapping, with root in it", pod: podUser(1000)},
	"IDMapping.host_id":              {does: honoured, ctr: ctrMount(mapped)},
	"IDMapping.container_id":         {does: honoured, why: "0 for a pod", ctr: ctrMount(mapped)},
	"IDMapping.length":               {does: honoured, why: "above 0", ctr: ctrMount(mapped)},

	"LinuxContainerResources.cpu_period":                 {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuPeriod = 100000 })},
	"LinuxContainerResources.cpu_quota":                  {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuQuota = -1 })},
	"LinuxContainerResources.cpu_shares":                 {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpuShares = 2 })},
	"LinuxContainerResources.memory_limit_in_bytes":      {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.MemoryLimitInBytes = 1 << 20 })},
	"LinuxContainerResources.oom_score_adj":              {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.OomScoreAdj = -997 })},
	"LinuxContainerResources.cpuset_cpus":                {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpusetCpus = "0-1,3" })},
	"LinuxContainerResources.cpuset_mems":                {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.CpusetMems = "0" })},
	"LinuxContainerResources.hugepage_limits":            {does: nested},
	"LinuxContainerResources.unified":                    {does: honoured, why: "refused without a unified hierarchy", ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.Unified = map[string]string{"memory.min": "1"} })},
	"LinuxContainerResources.memory_swap_limit_in_bytes": {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.MemorySwapLimitInBytes = 1 << 20 })},
	"HugepageLimit.page_size":                            {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.HugepageLimits[0].PageSize = "1GB" })},
	"HugepageLimit.limit":                                {does: honoured, ctr: ctrRes(func(r *cri.LinuxContainerResources) { r.HugepageLimits[0].Limit = 4 << 20 })},

	"ContainerConfig.metadata":    {does: nested},
	"ContainerConfig.image":       {does: nested},
	"ContainerConfig.command":     {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Command = []string{"/bin/x"} }},
	"ContainerConfig.args":        {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Args = []string{"-x"} }},
	"ContainerConfig.working_dir": {does: honoured, ctr: func(c *cri.ContainerConfig) { c.WorkingDir = "/srv" }},
	"ContainerConfig.envs":        {does: nested},
	"ContainerConfig.mounts":      {does: nested},
	"ContainerConfig.devices":     {does: nested},
	"ContainerConfig.labels":      {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Labels = map[string]string{"a": "b"} }},
	"ContainerConfig.annotations": {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Annotations = map[string]string{"a": "b"} }},
	"ContainerConfig.log_path":    {does: honoured, ctr: func(c *cri.ContainerConfig) { c.LogPath = "c/0.log" }},
	"ContainerConfig.stdin":       {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Stdin = true }},
	"ContainerConfig.stdin_once":  {does: honoured, ctr: func(c *cri.ContainerConfig) { c.StdinOnce = true }},
	"ContainerConfig.tty":         {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Tty = true }},
	"ContainerConfig.linux":       {does: nested},
	"ContainerConfig.windows":     {does: refused, ctr: func(c *cri.ContainerConfig) { c.Windows = &cri.WindowsContainerConfig{} }},
	"ContainerConfig.CDI_devices": {does: nested},
	"CDIDevice.name":              {does: honoured, why: "a device that no CDI file knows is refused", ctr: func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "v/c=d"}} }},
	"ContainerConfig.stop_signal": {does: honoured, ctr: func(c *cri.ContainerConfig) { c.StopSignal = cri.Signal_SIGNAL_SIGRTMINPLUS3 }},
	"ContainerMetadata.name":      {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Metadata.Name = "other" }},
	"ContainerMetadata.attempt":   {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Metadata.Attempt = 7 }},

	"ImageSpec.image":                {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Image.Image = "other" }},
	"ImageSpec.annotations":          {does: informative, why: "they choose among the images of a pull; the image is here already", ctr: func(c *cri.ContainerConfig) { c.Image.Annotations = map[string]string{"a": "b"} }},
	"ImageSpec.user_specified_image": {does: honoured, why: "shown in lists and statuses", ctr: func(c *cri.ContainerConfig) { c.Image.UserSpecifiedImage = "web:1" }},
	"ImageSpec.runtime_handler":      {does: checked, why: "must be the pod's", ctr: func(c *cri.ContainerConfig) { c.Image.RuntimeHandler = "other" }},
	"ImageSpec.image_ref":            {does: checked, why: "must name the same image; TestCreateAndImageRef proves it"},
	"KeyValue.key":                   {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Envs[0].Key = "B" }},
	"KeyValue.value":                 {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Envs[0].Value = []byte{0xff} }},

	"Mount.container_path":      {does: honoured, ctr: ctrMount(func(m *cri.Mount) { m.ContainerPath = "/other" })},
	"Mount.host_path":           {does: honoured, ctr: ctrMount(func(m *cri.Mount) { m.HostPath = "/other" })},
	"Mount.readonly":            {does: honoured, ctr: ctrMount(func(m *cri.Mount) { m.Readonly = true })},
	"Mount.selinux_relabel":     {does: honoured, why: "has no effect where SELinux is not active", ctr: ctrMount(func(m *cri.Mount) { m.SelinuxRelabel = true })},
	"Mount.propagation":         {does: honoured, ctr: ctrMount(func(m *cri.Mount) { m.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL })},
	"Mount.uidMappings":         {does: honoured, why: "with gidMappings, by a handler that has id-mapped mounts", ctr: ctrMount(mapped)},
	"Mount.gidMappings":         {does: honoured, why: "with uidMappings, by a handler that has id-mapped mounts", ctr: ctrMount(mapped)},
	"Mount.recursive_read_only": {does: honoured, why: "refused without readonly, with propagation, or by a handler that cannot", ctr: ctrMount(func(m *cri.Mount) { m.Readonly, m.RecursiveReadOnly = true, true })},
	"Mount.image":               {does: honoured, why: "in place of host_path, read-only and private", ctr: ctrMount(func(m *cri.Mount) { m.HostPath, m.Image = "", &cri.ImageSpec{Image: "i"} })},
	"Mount.image_sub_path": {does: honoured, why: "with image, inside it", ctr: ctrMount(func(m *cri.Mount) {
		m.HostPath, m.Image, m.ImageSubPath = "", &cri.ImageSpec{Image: "i"}, "a"
	})},
	"Mount.mount_options": {does: honoured, why: "those that take rights away", ctr: ctrMount(func(m *cri.Mount) { m.MountOptions = []string{"noexec"} })},

	"Device.container_path": {does: honoured, why: "empty is the host's path", ctr: func(c *cri.ContainerConfig) { c.Devices[0].ContainerPath = "/dev/x" }},
	"Device.host_path":      {does: honoured, ctr: func(c *cri.ContainerConfig) { c.Devices[0].HostPath = "/dev/zero" }},
	"Device.permissions":    {does: honoured, why: "empty is rwm", ctr: func(c *cri.ContainerConfig) { c.Devices[0].Permissions = "r" }},

	"LinuxContainerConfig.resources":             {does: nested},
	"LinuxContainerConfig.security_context":      {does: nested},
	"LinuxContainerSecurityContext.capabilities": {does: nested},
	"LinuxContainerSecurityContext.privileged": {does: checked, why: "honoured in a privileged pod, see TestPrivileged; refused in any other", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) {
		s.Privileged = true
	})},
	"LinuxContainerSecurityContext.namespace_options": {does: nested},
	"LinuxContainerSecurityContext.selinux_options":   {does: nested},
	"LinuxContainerSecurityContext.run_as_user":       {does: nested},
	"LinuxContainerSecurityContext.run_as_group": {does: honoured, why: "needs run_as_user or run_as_username", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) {
		s.RunAsUsername, s.RunAsGroup = "u", &cri.Int64Value{Value: 5}
	})},
	"LinuxContainerSecurityContext.run_as_username":            {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.RunAsUsername = "www-data" })},
	"LinuxContainerSecurityContext.readonly_rootfs":            {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })},
	"LinuxContainerSecurityContext.supplemental_groups":        {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{7} })},
	"LinuxContainerSecurityContext.supplemental_groups_policy": {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 1 })},
	"LinuxContainerSecurityContext.no_new_privs":               {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
	"LinuxContainerSecurityContext.masked_paths":               {does: honoured, why: "not in a privileged container", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/proc/kcore"} })},
	"LinuxContainerSecurityContext.readonly_paths":             {does: honoured, why: "not in a privileged container", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/proc/sys"} })},
	"LinuxContainerSecurityContext.seccomp":                    {does: nested, why: "not in a privileged container"},
	"LinuxContainerSecurityContext.apparmor":                   {does: nested, why: "not in a privileged container"},
	"LinuxContainerSecurityContext.apparmor_profile":           {does: honoured, why: "deprecated; apparmor wins", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/web" })},
	"LinuxContainerSecurityContext.seccomp_profile_path":       {does: honoured, why: "deprecated; must not contradict seccomp", ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.SeccompProfilePath = "runtime/default" })},
	"Capability.add_capabilities":                              {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities.AddCapabilities = []string{"NET_ADMIN"} })},
	"Capability.drop_capabilities":                             {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities.DropCapabilities = []string{"ALL"} })},
	"Capability.add_ambient_capabilities":                      {does: honoured, ctr: ctrSC(func(s *cri.LinuxContainerSecurityContext) { s.Capabilities.AddAmbientCapabilities = []string{"chown"} })},
}

const (
	podID    = "aa11111111111111111111111111111111111111111111111111111111111111"
	targetID = "cc11111111111111111111111111111111111111111111111111111111111111"
)

func podUser(host uint32) func(*cri.PodSandboxConfig) {
	return podSC(func(s *cri.LinuxSandboxSecurityContext) {
		m := []*cri.IDMapping{{HostId: host, Length: 65536}}
		s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: m, Gids: m}
	})
}

func mapped(m *cri.Mount) {
	m.UidMappings = []*cri.IDMapping{{ContainerId: 0, HostId: 1000, Length: 10}}
	m.GidMappings = m.UidMappings
}

func basePod() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"},
		DnsConfig:    &cri.DNSConfig{},
		PortMappings: []*cri.PortMapping{{ContainerPort: 80}},
		Linux: &cri.LinuxPodSandboxConfig{
			Resources: &cri.LinuxContainerResources{}, Overhead: &cri.LinuxContainerResources{},
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{}, SelinuxOptions: &cri.SELinuxOption{},
			},
		},
	}
}

func baseContainer() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"},
		Image:    &cri.ImageSpec{Image: "busybox"},
		Envs:     []*cri.KeyValue{{Key: "A", Value: []byte("1")}},
		Mounts:   []*cri.Mount{{ContainerPath: "/data", HostPath: "/srv"}},
		Devices:  []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/n", Permissions: "rw"}},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}}},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{}, SelinuxOptions: &cri.SELinuxOption{},
				Capabilities: &cri.Capability{},
			},
		},
	}
}

func facts() containerFacts {
	return containerFacts{
		pod: runtime.Pod{ID: podID, State: runtime.PodReady, Config: runtime.PodConfig{
			LogDirectory: "/var/log/pods/x",
			Namespaces: runtime.Namespaces{
				Network: runtime.NamespacePod, PID: runtime.NamespacePod, IPC: runtime.NamespacePod,
			},
		}},
		handler: runtime.HandlerInfo{RecursiveReadOnly: true, UserNamespaces: true},
		host:    Host{AppArmor: true, CgroupV2: true, Hugetlb: true},
		target: func(id string) (runtime.Container, error) {
			if id != targetID {
				return runtime.Container{}, runtime.ErrNotFound
			}
			return runtime.Container{ID: targetID, PodID: podID}, nil
		},
	}
}

func translate(f field, mutate bool) (any, error) {
	if f.pod != nil {
		p := basePod()
		if mutate {
			f.pod(p)
		}
		return podConfig(p, facts().handler, facts().host)
	}
	c := baseContainer()
	if mutate {
		f.ctr(c)
	}
	return containerConfig(c, facts())
}

// TestFieldsComplete fails when cri-api grows a field that has no row, or a
// row's field is gone.
func TestFieldsComplete(t *testing.T) {
	seen := map[string]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			fd := m.Fields().Get(i)
			name := string(m.Name()) + "." + string(fd.Name())
			if seen[name] {
				continue
			}
			seen[name] = true
			row, ok := fields[name]
			if !ok {
				t.Errorf("%s has no row: honour it or refuse it", name)
				continue
			}
			isMessage := fd.Message() != nil && !fd.IsMap()
			if row.does == nested && !isMessage {
				t.Errorf("%s: %q does not fit its kind", name, row.does)
			}
			if isMessage && row.does != refused {
				walk(fd.Message())
			}
		}
	}
	walk((&cri.PodSandboxConfig{}).ProtoReflect().Descriptor())
	walk((&cri.ContainerConfig{}).ProtoReflect().Descriptor())
	for name := range fields {
		if !seen[name] {
			t.Errorf("%s is no field of cri-api", name)
		}
	}
}

// TestFieldsDo proves each row.
func TestFieldsDo(t *testing.T) {
	for name, f := range fields {
		t.Run(name, func(t *testing.T) {
			if f.pod == nil && f.ctr == nil {
				if f.does != nested && name != "ImageSpec.image_ref" {
					t.Fatal("no proof")
				}
				return
			}
			before, err := translate(f, false)
			if err != nil {
				t.Fatalf("the base is refused: %v", err)
			}
			after, err := translate(f, true)
			switch f.does {
			case refused, checked:
				if !errors.Is(err, runtime.ErrInvalid) {
					t.Fatalf("not refused: %v", err)
				}
				fieldName := name[strings.IndexByte(name, '.')+1:]
				if f.does == refused && !strings.Contains(err.Error(), fieldName) && !strings.Contains(err.Error(), "userns_options") {
					t.Errorf("the error does not name the field: %v", err)
				}
			case honoured, informative:
				if err != nil {
					t.Fatal(err)
				}
				if same := reflect.DeepEqual(before, after); same != (f.does == informative) {
					t.Errorf("%s, but same result: %v", f.does, same)
				}
				if f.does == informative && f.why == "" {
					t.Error("no reason given")
				}
			}
		})
	}
}
