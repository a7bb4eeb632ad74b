package doctor

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/cgroup"
)

// kernel probes what the kernel has rather than what its version promises.
func (e *exam) kernel(context.Context) {
	if v, err := e.read("/proc/sys/kernel/osrelease"); err == nil {
		e.ok("version", "%s", v)
	}
	for _, s := range []struct {
		name   string
		status Status
		probe  func() error
		cost   string
	}{
		{"openat2", Fail, func() error {
			_, err := unix.Openat2(-1, "x", &unix.OpenHow{})
			return err
		}, "paths in images cannot be opened safely, and containers are refused"},
		{"pidfd_open", Warn, func() error {
			_, err := unix.PidfdOpen(-1, 0)
			return err
		}, "the ends of processes are noticed late"},
		{"mount_setattr", Warn, func() error {
			return unix.MountSetattr(-1, "x", 0, &unix.MountAttr{})
		}, "no recursive read-only mounts, no id-mapped mounts and so no user namespaces"},
		{"fsopen", Warn, func() error {
			_, err := unix.Fsopen("\x00", 0)
			return err
		}, "mounts with very many layers do not fit into one call"},
	} {
		err := s.probe()
		e.expect(!errors.Is(err, unix.ENOSYS), s.status, s.name, present(!errors.Is(err, unix.ENOSYS)), s.cost, "run a newer kernel (5.12 or later)")
	}
	fs, err := e.read("/proc/filesystems")
	has := slices.Contains(strings.Fields(fs), "overlay")
	_, loadable := os.Stat(e.path("/sys/module/overlay"))
	e.expect(err == nil && (has || loadable == nil), Fail, "overlay", present(has || loadable == nil),
		"images cannot be mounted", "modprobe overlay, and name it in /etc/modules-load.d")
	actions, err := e.read("/proc/sys/kernel/seccomp/actions_avail")
	e.expect(err == nil && strings.Contains(actions, "errno"), Fail, "seccomp", present(err == nil),
		"containers with the default seccomp profile cannot start", "run a kernel with CONFIG_SECCOMP_FILTER")
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup", "user"} {
		if _, err := os.Lstat(e.path("/proc/self/ns/" + ns)); err == nil {
			continue
		}
		status := Fail
		if ns == "user" || ns == "cgroup" {
			status = Warn
		}
		e.bad(status, ns+" namespace", "missing", "pods that need one cannot run", "run a kernel with namespaces of that kind")
	}
}

func present(ok bool) string {
	if ok {
		return "present"
	}
	return "missing"
}

// cgroups checks the hierarchies and what they control.
func (e *exam) cgroups(context.Context) {
	const costs = "limits of that kind cannot be held"
	info, err := os.ReadFile(e.path("/proc/self/mountinfo"))
	if err != nil {
		e.bad(Fail, "mounted", err.Error(), "no container can run", "mount /proc")
		return
	}
	fs, err := cgroup.Parse(info)
	if err != nil {
		e.bad(Fail, "mounted", err.Error(), "no container can run", "mount cgroup2 on /sys/fs/cgroup")
		return
	}
	switch fs.Mode() {
	case cgroup.Unified:
		e.ok("version", "2")
	case cgroup.Legacy:
		e.bad(Warn, "version", "1", "no memory QoS, no pressure figures; the kubelet refuses it unless failCgroupV1 is false",
			"boot with systemd.unified_cgroup_hierarchy=1")
	case cgroup.Hybrid:
		e.bad(Warn, "version", "1, with a version 2 hierarchy beside it",
			"no memory QoS, no pressure figures; the kubelet refuses it unless failCgroupV1 is false; some runtimes (crun) refuse the mixture",
			"boot with systemd.unified_cgroup_hierarchy=1")
	}
	have := fs.Controllers(e.Dir)
	for _, c := range []struct {
		name   string
		status Status
	}{{"cpu", Fail}, {"memory", Fail}, {"pids", Fail}, {"cpuset", Warn}, {"hugetlb", Warn}} {
		e.expect(slices.Contains(have, c.name), c.status, c.name+" controller", present(slices.Contains(have, c.name)), costs,
			"boot a kernel with it and without cgroup_disable="+c.name)
	}
}

// permissions checks what this process, and so the daemon started like it, may do.
func (e *exam) permissions(context.Context) {
	uid := os.Geteuid()
	e.expect(uid == 0, Fail, "root", map[bool]string{true: "yes", false: "no"}[uid == 0],
		"the daemon does not start, and some checks here cannot be made", "run as root")
	set, err := capability.NewPid2(0)
	if err == nil {
		err = set.Load()
	}
	if err != nil {
		e.bad(Warn, "capabilities", err.Error(), "not known", "mount /proc")
		return
	}
	for _, c := range []struct {
		cap    capability.Cap
		status Status
		cost   string
	}{
		{capability.CAP_SYS_ADMIN, Fail, "nothing can be mounted, no namespace made"},
		{capability.CAP_NET_ADMIN, Fail, "no pod can be attached to a network"},
		{capability.CAP_MKNOD, Fail, "containers have no devices"},
		{capability.CAP_SETUID, Fail, "containers cannot run as their user"},
		{capability.CAP_SETPCAP, Fail, "containers cannot be given their capabilities"},
		{capability.CAP_SYS_CHROOT, Fail, "containers cannot be given their root"},
		{capability.CAP_DAC_OVERRIDE, Fail, "files of images cannot be read"},
		{capability.CAP_CHOWN, Fail, "images cannot be unpacked"},
		{capability.CAP_SYS_RESOURCE, Warn, "oom_score_adj cannot be lowered nor hard limits raised: containers get the daemon's own"},
		{capability.CAP_SYS_PTRACE, Warn, "processes of user namespaces cannot be looked into"},
		{capability.CAP_CHECKPOINT_RESTORE, Warn, "no checkpoints"},
	} {
		name := "CAP_" + strings.ToUpper(c.cap.String())
		if !set.Get(capability.EFFECTIVE, c.cap) || !set.Get(capability.BOUNDING, c.cap) {
			e.bad(c.status, name, "missing", c.cost, "do not drop it from the unit or container that starts ocid")
		} else if c.status == Warn {
			e.ok(name, "present")
		}
	}
}
