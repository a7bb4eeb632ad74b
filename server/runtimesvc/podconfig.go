package runtimesvc

import (
	"net/netip"
	"regexp"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// maxHostname is the kernel's __NEW_UTS_LEN.
const maxHostname = 64

var (
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	sysctlPattern   = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+$`)
)

// podConfig translates the configuration of a pod, or says all that is wrong with it.
func podConfig(in *cri.PodSandboxConfig, handler runtime.HandlerInfo, host Host) (runtime.PodConfig, error) {
	c := &check{}
	md := in.GetMetadata()
	out := runtime.PodConfig{
		Name: runtime.PodName{
			Name:      c.name("metadata.name", md.GetName(), true),
			Namespace: c.name("metadata.namespace", md.GetNamespace(), false),
			UID:       c.name("metadata.uid", md.GetUid(), false),
			Attempt:   md.GetAttempt(),
		},
		Handler:     handler.Name,
		Hostname:    in.GetHostname(),
		DNS:         c.dns(in.GetDnsConfig()),
		Labels:      c.stringMap("labels", in.GetLabels()),
		Annotations: c.stringMap("annotations", in.GetAnnotations()),
	}
	if out.Hostname != "" && (len(out.Hostname) > maxHostname || !hostnamePattern.MatchString(out.Hostname)) {
		c.fail("hostname", "%q is no host name of at most %d bytes", out.Hostname, maxHostname)
	}
	if in.GetLogDirectory() != "" {
		out.LogDirectory = c.abs("log_directory", in.GetLogDirectory())
	}
	if c.count("port_mappings", len(in.GetPortMappings()), maxEntries) {
		for i, p := range in.GetPortMappings() {
			out.PortMappings = append(out.PortMappings, c.port(index("port_mappings", i), p))
		}
	}
	if in.GetWindows() != nil {
		c.fail("windows", "Windows containers are not supported")
	}
	c.linuxPod(in.GetLinux(), handler, host, &out)
	return out, c.err()
}

func (c *check) linuxPod(in *cri.LinuxPodSandboxConfig, handler runtime.HandlerInfo, host Host, out *runtime.PodConfig) {
	out.CgroupParent = c.cgroupParent(in.GetCgroupParent())
	if in.GetResources() != nil {
		out.Resources = c.resources("linux.resources", in.GetResources(), host)
	}
	if in.GetOverhead() != nil {
		out.Overhead = c.resources("linux.overhead", in.GetOverhead(), host)
	}
	sc := in.GetSecurityContext()
	out.Privileged = sc.GetPrivileged()
	out.Namespaces = c.podNamespaces(sc.GetNamespaceOptions(), handler)
	out.Security = c.podSecurity(sc, host)
	out.Security.Namespaces = out.Namespaces
	out.Sysctls = c.sysctls(in.GetSysctls(), out.Namespaces)
}

func (c *check) cgroupParent(s string) string {
	if s == "" {
		return ""
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			c.fail("linux.cgroup_parent", "%q must not climb", s)
			return s
		}
	}
	if hasControl(s) || len(s) > maxPath {
		c.fail("linux.cgroup_parent", "must be a cgroup path of at most %d bytes without control characters", maxPath)
	}
	return s
}

func (c *check) dns(in *cri.DNSConfig) *runtime.DNS {
	const limit = 64
	if len(in.GetServers())+len(in.GetSearches())+len(in.GetOptions()) == 0 {
		return nil
	}
	if !c.count("dns_config.servers", len(in.GetServers()), limit) ||
		!c.count("dns_config.searches", len(in.GetSearches()), limit) ||
		!c.count("dns_config.options", len(in.GetOptions()), limit) {
		return nil
	}
	for i, s := range in.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil || hasControl(s) || strings.Contains(s, " ") {
			c.fail(index("dns_config.servers", i), "%q is no IP address", s)
		}
	}
	for i, s := range in.GetSearches() {
		c.word(index("dns_config.searches", i), s)
	}
	for i, s := range in.GetOptions() {
		c.word(index("dns_config.options", i), s)
	}
	return &runtime.DNS{Servers: in.GetServers(), Searches: in.GetSearches(), Options: in.GetOptions()}
}

func (c *check) port(field string, in *cri.PortMapping) runtime.PortMapping {
	const maxPort = 65535
	out := runtime.PortMapping{
		ContainerPort: in.GetContainerPort(), HostPort: in.GetHostPort(), HostIP: in.GetHostIp(),
	}
	switch in.GetProtocol() {
	case cri.Protocol_TCP:
		out.Protocol = "tcp"
	case cri.Protocol_UDP:
		out.Protocol = "udp"
	case cri.Protocol_SCTP:
		out.Protocol = "sctp"
	default:
		c.fail(field+".protocol", "unknown protocol %d", in.GetProtocol())
	}
	c.between(field+".container_port", int64(out.ContainerPort), 0, maxPort)
	c.between(field+".host_port", int64(out.HostPort), 0, maxPort)
	if out.HostPort != 0 && out.ContainerPort == 0 {
		c.fail(field+".container_port", "host port %d needs a container port", out.HostPort)
	}
	if out.HostIP != "" {
		if a, err := netip.ParseAddr(out.HostIP); err != nil || a.Zone() != "" {
			c.fail(field+".host_ip", "%q is no IP address", out.HostIP)
		}
	}
	return out
}

// sysctls lets through what belongs to a namespace of the pod; anything else
// would change the node.
func (c *check) sysctls(in map[string]string, ns runtime.Namespaces) map[string]string {
	in = c.stringMap("linux.sysctls", in)
	for name, value := range in {
		field := "linux.sysctls"
		if len(name) > maxName || !sysctlPattern.MatchString(name) {
			c.fail(field, "%q is no sysctl name", name)
			continue
		}
		if hasControl(strings.ReplaceAll(value, "\t", " ")) {
			c.fail(field, "%s: the value holds control characters", name)
		}
		dotted := strings.ReplaceAll(name, "/", ".")
		switch {
		case strings.HasPrefix(dotted, "net."):
			if ns.Network == runtime.NamespaceNode {
				c.fail(field, "%s cannot be set for a pod on the host's network", name)
			}
		case isIPCSysctl(dotted):
			if ns.IPC == runtime.NamespaceNode {
				c.fail(field, "%s cannot be set for a pod in the host's IPC namespace", name)
			}
		default:
			c.fail(field, "%s belongs to no namespace: it would change the node", name)
		}
	}
	return in
}

func isIPCSysctl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || strings.HasPrefix(name, "kernel.shm") ||
		strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem"
}

func (c *check) podNamespaces(in *cri.NamespaceOption, handler runtime.HandlerInfo) runtime.Namespaces {
	const at = "linux.security_context.namespace_options."
	out := runtime.Namespaces{
		Network: c.podMode(at+"network", in.GetNetwork()),
		PID:     runtime.NamespaceContainer,
		IPC:     c.podMode(at+"ipc", in.GetIpc()),
	}
	if in.GetPid() != cri.NamespaceMode_CONTAINER {
		out.PID = c.podMode(at+"pid", in.GetPid())
	}
	if in.GetTargetId() != "" {
		c.fail(at+"target_id", "a pod cannot have a target container")
	}
	out.User = c.userNamespace(at+"userns_options", in.GetUsernsOptions())
	if out.User == nil {
		return out
	}
	if !handler.UserNamespaces {
		c.fail(at+"userns_options", "runtime handler %q has no user namespaces on this machine", handler.Name)
	}
	for name, mode := range map[string]runtime.NamespaceMode{"network": out.Network, "pid": out.PID, "ipc": out.IPC} {
		if mode == runtime.NamespaceNode {
			c.fail(at+name, "a pod with a user namespace cannot have the host's")
		}
	}
	return out
}

// podMode translates a namespace that a pod has itself or shares with the host.
func (c *check) podMode(field string, m cri.NamespaceMode) runtime.NamespaceMode {
	switch m {
	case cri.NamespaceMode_POD:
		return runtime.NamespacePod
	case cri.NamespaceMode_NODE:
		return runtime.NamespaceNode
	default:
		c.fail(field, "mode %s is not possible here, only POD and NODE", m)
		return ""
	}
}

// userNamespace returns the pod's own user namespace, nil for the host's. CRI
// has one mapping of each kind, which must hold root.
func (c *check) userNamespace(field string, in *cri.UserNamespace) *runtime.UserNamespace {
	switch in.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(in.GetUids())+len(in.GetGids()) > 0 {
			c.fail(field, "id mappings cannot go with mode NODE")
		}
		return nil
	case cri.NamespaceMode_POD:
		if in == nil {
			return nil
		}
	default:
		c.fail(field+".mode", "mode %s is not possible here, only POD and NODE", in.GetMode())
		return nil
	}
	return &runtime.UserNamespace{
		UIDs: c.podMapping(field+".uids", in.GetUids()),
		GIDs: c.podMapping(field+".gids", in.GetGids()),
	}
}

func (c *check) podMapping(field string, in []*cri.IDMapping) []runtime.IDMapping {
	if len(in) != 1 {
		c.fail(field, "%d mappings given, there must be one", len(in))
		return nil
	}
	if in[0].GetContainerId() != 0 {
		c.fail(field, "the mapping begins at %d and does not hold root", in[0].GetContainerId())
	}
	return c.mappings(field, in)
}

// maxMappings is the kernel's limit for a user namespace.
const maxMappings = 340

func (c *check) mappings(field string, in []*cri.IDMapping) []runtime.IDMapping {
	if len(in) == 0 || !c.count(field, len(in), maxMappings) {
		return nil
	}
	out := make([]runtime.IDMapping, len(in))
	for i, m := range in {
		out[i] = runtime.IDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Length: m.GetLength()}
		// 2^32-1 is "no id" to the kernel.
		const limit = 1<<32 - 1
		if n := uint64(m.GetLength()); n == 0 || uint64(m.GetContainerId())+n > limit || uint64(m.GetHostId())+n > limit {
			c.fail(index(field, i), "%d:%d:%d is empty or leaves the range of ids", m.GetContainerId(), m.GetHostId(), m.GetLength())
		}
	}
	return out
}
