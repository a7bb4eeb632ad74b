package spec

import (
	"cmp"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// modes returns the container's namespace modes. A container inherits the
// pod's network and IPC modes, which it cannot change, and has its own for PID.
func (in *Input) modes() runtime.Namespaces {
	pod, ctr := in.Pod.Config.Namespaces, in.Container.Security.Namespaces
	m := runtime.Namespaces{
		Network: cmp.Or(ctr.Network, pod.Network, runtime.NamespacePod),
		IPC:     cmp.Or(ctr.IPC, pod.IPC, runtime.NamespacePod),
		PID:     cmp.Or(ctr.PID, pod.PID, runtime.NamespaceContainer),
		Target:  ctr.Target,
		User:    ctr.User,
	}
	if m.User == nil {
		m.User = pod.User
	}
	return m
}

func stepNamespaces(in *Input, s *specs.Spec) error {
	m := in.modes()
	if m.Network == runtime.NamespaceTarget || m.IPC == runtime.NamespaceTarget {
		return invalid("mode %q exists for the PID namespace only", runtime.NamespaceTarget)
	}
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		key  string
		mode runtime.NamespaceMode
	}{
		{specs.NetworkNamespace, "net", m.Network},
		{specs.UTSNamespace, "uts", m.Network},
		{specs.IPCNamespace, "ipc", m.IPC},
		{specs.PIDNamespace, "pid", m.PID},
	} {
		switch ns.mode {
		case runtime.NamespaceNode:
		case runtime.NamespaceContainer:
			list = append(list, specs.LinuxNamespace{Type: ns.kind})
		case runtime.NamespacePod, runtime.NamespaceTarget:
			p := in.Namespaces[ns.key]
			if p == "" {
				return invalid("mode %q needs a %s namespace to join, and the pod has none", ns.mode, ns.key)
			}
			list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: p})
		default:
			return invalid("unknown %s namespace mode %q", ns.key, ns.mode)
		}
	}
	if in.CgroupV2 && !in.Container.Security.Privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if m.User != nil {
		if len(m.User.UIDs) == 0 || len(m.User.GIDs) == 0 {
			return invalid("a user namespace needs uid and gid mappings")
		}
		// The mappings stand beside the path: some runtimes read them from the
		// namespace, others from here.
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.Namespaces["user"]})
		var err error
		if s.Linux.UIDMappings, err = idMappings(m.User.UIDs); err != nil {
			return err
		}
		if s.Linux.GIDMappings, err = idMappings(m.User.GIDs); err != nil {
			return err
		}
	}
	s.Linux.Namespaces = list
	return nil
}

func idMappings(in []runtime.IDMapping) ([]specs.LinuxIDMapping, error) {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		// 2^32-1 is "no id" to the kernel and may not be mapped.
		if m.Length == 0 || uint64(m.ContainerID)+uint64(m.Length) > 1<<32-1 || uint64(m.HostID)+uint64(m.Length) > 1<<32-1 {
			return nil, invalid("id mapping %d:%d:%d is empty or leaves the range of ids", m.ContainerID, m.HostID, m.Length)
		}
		out = append(out, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length})
	}
	return out, nil
}

// stepHostname names a new UTS namespace. A joined one has been named when it
// was pinned, and the host's is not ours to name.
func stepHostname(in *Input, s *specs.Spec) error {
	if in.modes().Network == runtime.NamespaceContainer {
		s.Hostname = in.Hostname
	}
	return nil
}
