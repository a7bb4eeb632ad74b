package nri

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// ownAnnotations are what ocid itself says of a container.
const ownAnnotations = "io.ocid."

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: a plugin wants "+format, append([]any{runtime.ErrInvalid}, args...)...)
}

// adjust makes the changes that the plugins agreed on. On an error s is half
// changed and must not be used.
func (a *Adapter) adjust(s *specs.Spec, c *runtime.Container, want *api.ContainerAdjustment) error {
	if want == nil {
		return nil
	}
	l := want.GetLinux()
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{} // a hook can have taken it away
	}
	if args := want.GetArgs(); len(args) > 0 {
		s.Process.Args = args
	}
	for _, do := range []func() error{
		func() error { return adjustAnnotations(s, want.GetAnnotations()) },
		func() error { return adjustEnv(s.Process, want.GetEnv()) },
		func() error { return adjustHooks(s, want.GetHooks()) },
		func() error { return a.adjustCDI(s, want.GetCDIDevices()) },
		func() error { return adjustDevices(s, l.GetDevices()) },
		func() error { return adjustCgroup(s, c, l.GetCgroupsPath()) },
		func() error { return a.adjustProcess(s.Process, l, want.GetRlimits()) },
		func() error { return adjustNamespaces(s, l.GetNamespaces()) },
		func() error { return adjustResources(s, l.GetResources()) },
		func() error { return adjustLinux(s.Linux, l) },
		func() error { return adjustMounts(s, want.GetMounts()) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func adjustAnnotations(s *specs.Spec, want map[string]string) error {
	for k, v := range want {
		key, remove := api.IsMarkedForRemoval(k)
		switch {
		case strings.HasPrefix(key, ownAnnotations):
			return invalid("to change annotation %q, which is ocid's own", key)
		case remove:
			delete(s.Annotations, key)
		default:
			if s.Annotations == nil {
				s.Annotations = map[string]string{}
			}
			s.Annotations[k] = v
		}
	}
	return nil
}

func adjustEnv(p *specs.Process, want []*api.KeyValue) error {
	for _, kv := range want {
		key, remove := api.IsMarkedForRemoval(kv.GetKey())
		if key == "" || strings.ContainsAny(key, "=\x00") {
			return invalid("environment variable %q", key)
		}
		at := slices.IndexFunc(p.Env, func(have string) bool { return strings.HasPrefix(have, key+"=") })
		switch line := key + "=" + kv.GetValue(); {
		case remove && at >= 0:
			p.Env = slices.Delete(p.Env, at, at+1)
		case remove:
		case at >= 0:
			p.Env[at] = line
		default:
			p.Env = append(p.Env, line)
		}
	}
	return nil
}

func adjustHooks(s *specs.Spec, want *api.Hooks) error {
	if want == nil {
		return nil
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, k := range []struct {
		to   *[]specs.Hook
		from []*api.Hook
	}{
		{&s.Hooks.CreateRuntime, want.GetPrestart()}, // an older name of the same moment
		{&s.Hooks.CreateRuntime, want.GetCreateRuntime()},
		{&s.Hooks.CreateContainer, want.GetCreateContainer()},
		{&s.Hooks.StartContainer, want.GetStartContainer()},
		{&s.Hooks.Poststart, want.GetPoststart()},
		{&s.Hooks.Poststop, want.GetPoststop()},
	} {
		for _, h := range k.from {
			if !path.IsAbs(h.GetPath()) {
				return invalid("a hook %q, which is not an absolute path", h.GetPath())
			}
			*k.to = append(*k.to, h.ToOCI())
		}
	}
	return nil
}

func (a *Adapter) adjustCDI(s *specs.Spec, want []*api.CDIDevice) error {
	if len(want) == 0 {
		return nil
	}
	if a.o.InjectCDI == nil {
		return invalid("CDI devices, which are not configured")
	}
	var names []string
	for _, d := range want {
		names = append(names, d.GetName())
	}
	return a.o.InjectCDI(s, names)
}

func clean(p string) bool { return path.IsAbs(p) && path.Clean(p) == p && p != "/" }

func adjustDevices(s *specs.Spec, want []*api.LinuxDevice) error {
	for _, d := range want {
		at, remove := d.IsMarkedForRemoval()
		if !clean(at) {
			return invalid("a device at %q", at)
		}
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(h specs.LinuxDevice) bool { return h.Path == at })
		if remove {
			continue
		}
		if !slices.Contains([]string{"c", "b", "u", "p"}, d.GetType()) {
			return invalid("device %q of type %q", at, d.GetType())
		}
		s.Linux.Devices = append(s.Linux.Devices, d.ToOCI())
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.GetType(), Major: new(d.GetMajor()), Minor: new(d.GetMinor()), Access: d.AccessString(),
		})
	}
	return nil
}

// adjustCgroup moves the container; its record must say so before it is made.
func adjustCgroup(s *specs.Spec, c *runtime.Container, want string) error {
	if want == "" || want == s.Linux.CgroupsPath {
		return nil
	}
	if !strings.HasPrefix(s.Linux.CgroupsPath, "/") {
		return invalid("cgroup %q, and the systemd driver chooses cgroups itself", want)
	}
	if !clean(want) || strings.ContainsAny(want, ":\x00\n") {
		return invalid("cgroup %q, which is not an absolute path", want)
	}
	s.Linux.CgroupsPath, c.CgroupPath = want, want
	return nil
}

func (a *Adapter) adjustProcess(p *specs.Process, l *api.LinuxContainerAdjustment, rlimits []*api.POSIXRlimit) error {
	if adj := l.GetOomScoreAdj(); adj != nil {
		if adj.GetValue() < -1000 || adj.GetValue() > 1000 {
			return invalid("oom_score_adj %d", adj.GetValue())
		}
		p.OOMScoreAdj = new(max(int(adj.GetValue()), a.o.MinOOMScore))
	}
	if io := l.GetIoPriority(); io != nil {
		p.IOPriority = io.ToOCI()
	}
	if sch := l.GetScheduler(); sch != nil {
		p.Scheduler = sch.ToOCI()
	}
	for _, r := range rlimits {
		if !strings.HasPrefix(r.GetType(), "RLIMIT_") || r.GetSoft() > r.GetHard() {
			return invalid("rlimit %q with soft %d and hard %d", r.GetType(), r.GetSoft(), r.GetHard())
		}
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(h specs.POSIXRlimit) bool { return h.Type == r.GetType() })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: r.GetType(), Soft: r.GetSoft(), Hard: r.GetHard()})
	}
	return nil
}

func adjustNamespaces(s *specs.Spec, want []*api.LinuxNamespace) error {
	for _, n := range want {
		kind, remove := n.IsMarkedForRemoval()
		if n.GetPath() != "" && !path.IsAbs(n.GetPath()) {
			return invalid("namespace %s of path %q", kind, n.GetPath())
		}
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(h specs.LinuxNamespace) bool { return string(h.Type) == kind })
		if !remove {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: n.GetPath()})
		}
	}
	return nil
}

// adjustLinux sets what has no checks but the runtime's own.
func adjustLinux(s *specs.Linux, l *api.LinuxContainerAdjustment) error {
	if p := l.GetSeccompPolicy(); p != nil {
		s.Seccomp = seccomp(p)
	}
	for k, v := range l.GetSysctl() {
		if key, remove := api.IsMarkedForRemoval(k); remove {
			delete(s.Sysctl, key)
			continue
		}
		if s.Sysctl == nil {
			s.Sysctl = map[string]string{}
		}
		s.Sysctl[k] = v
	}
	for k, v := range l.GetNetDevices() {
		if key, remove := api.IsMarkedForRemoval(k); remove {
			delete(s.NetDevices, key)
			continue
		}
		if s.NetDevices == nil {
			s.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		s.NetDevices[k] = v.ToOCI()
	}
	if m := l.GetMemoryPolicy(); m != nil {
		s.MemoryPolicy = m.ToOCI()
	}
	if r := l.GetRdt(); r != nil {
		adjustRdt(s, r)
	}
	return nil
}

func adjustRdt(s *specs.Linux, r *api.LinuxRdt) {
	if r.GetRemove() || s.IntelRdt == nil {
		s.IntelRdt = nil
		if r.GetClosId() == nil && r.GetSchemata() == nil && r.GetEnableMonitoring() == nil {
			return
		}
		s.IntelRdt = &specs.LinuxIntelRdt{}
	}
	if v := r.GetClosId(); v != nil {
		s.IntelRdt.ClosID = v.GetValue()
	}
	if v := r.GetSchemata(); v != nil {
		s.IntelRdt.Schemata = v.GetValue()
	}
	if v := r.GetEnableMonitoring(); v != nil {
		s.IntelRdt.EnableMonitoring = v.GetValue()
	}
}

// seccomp makes a profile of its own: the one that is replaced may be shared.
func seccomp(p *api.LinuxSeccomp) *specs.LinuxSeccomp {
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(),
		ListenerMetadata: p.GetListenerMetadata(), Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		out.DefaultErrnoRet = new(uint(e.GetValue()))
	}
	for _, arch := range p.GetArchitectures() {
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, f := range p.GetFlags() {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	return out
}

func adjustMounts(s *specs.Spec, want []*api.Mount) error {
	if len(want) == 0 {
		return nil
	}
	for _, m := range want {
		at, remove := m.IsMarkedForRemoval()
		if !clean(at) {
			return invalid("a mount at %q", at)
		}
		s.Mounts = slices.DeleteFunc(s.Mounts, func(h specs.Mount) bool { return h.Destination == at })
		if remove {
			continue
		}
		propagation := ""
		s.Mounts = append(s.Mounts, m.ToOCI(&propagation))
		// A slave mount works under a slave or shared root only, a shared one
		// under a shared root only.
		if propagation == "rshared" || propagation == "rslave" && s.Linux.RootfsPropagation == "" {
			s.Linux.RootfsPropagation = propagation
		}
	}
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return nil
}

func adjustResources(s *specs.Spec, want *api.LinuxResources) error {
	if want == nil {
		return nil
	}
	if want.GetBlockioClass().GetValue() != "" || want.GetRdtClass().GetValue() != "" {
		return invalid("a block I/O or RDT class, and none is configured")
	}
	r, w := s.Linux.Resources, want.ToOCI()
	if c := want.GetCpu(); c != nil {
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		over(&r.CPU.Shares, w.CPU.Shares)
		over(&r.CPU.Quota, w.CPU.Quota)
		over(&r.CPU.Period, w.CPU.Period)
		over(&r.CPU.RealtimeRuntime, w.CPU.RealtimeRuntime)
		over(&r.CPU.RealtimePeriod, w.CPU.RealtimePeriod)
		if w.CPU.Cpus != "" {
			r.CPU.Cpus = w.CPU.Cpus
		}
		if w.CPU.Mems != "" {
			r.CPU.Mems = w.CPU.Mems
		}
	}
	if m := want.GetMemory(); m != nil {
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		over(&r.Memory.Limit, w.Memory.Limit)
		over(&r.Memory.Reservation, w.Memory.Reservation)
		if w.Memory.Limit != nil && w.Memory.Swap == nil && r.Memory.Swap != nil {
			// What was said of memory and swap together was said of the other limit.
			r.Memory.Swap = w.Memory.Limit
		}
		over(&r.Memory.Swap, w.Memory.Swap)
		over(&r.Memory.Swappiness, w.Memory.Swappiness)
		over(&r.Memory.DisableOOMKiller, w.Memory.DisableOOMKiller)
	}
	for _, h := range w.HugepageLimits {
		r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(x specs.LinuxHugepageLimit) bool { return x.Pagesize == h.Pagesize })
		r.HugepageLimits = append(r.HugepageLimits, h)
	}
	for k := range w.Unified {
		if strings.Contains(k, "/") || strings.HasPrefix(k, "cgroup.") {
			return invalid("unified resource %q", k)
		}
	}
	r.Unified = maps.Clone(join(r.Unified, w.Unified))
	r.Devices = append(r.Devices, w.Devices...)
	over(&r.Pids, w.Pids)
	return nil
}
