package spec

import (
	"cmp"
	"path"
	"regexp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// DefaultMaskedPaths are the paths that Kubernetes hides with ProcMount
// "Default", for callers that have no client to name them.
func DefaultMaskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
		"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

// DefaultReadOnlyPaths are those that it makes read-only.
func DefaultReadOnlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func stepMaskedPaths(in *Input, s *specs.Spec) error {
	sec := &in.Container.Security
	if sec.Privileged {
		return nil
	}
	for _, p := range slices.Concat(sec.MaskedPaths, sec.ReadOnlyPaths) {
		if !path.IsAbs(p) {
			return invalid("path %q is not absolute", p)
		}
		if err := text("path", p); err != nil {
			return err
		}
	}
	s.Linux.MaskedPaths = slices.Clone(sec.MaskedPaths)
	s.Linux.ReadonlyPaths = slices.Clone(sec.ReadOnlyPaths)
	return nil
}

func stepNoNewPrivileges(in *Input, s *specs.Spec) error {
	s.Process.NoNewPrivileges = in.Container.Security.NoNewPrivileges
	return nil
}

var appArmorName = regexp.MustCompile(`^[^\s"\x00-\x1f]{1,255}$`)

// stepAppArmor leaves privileged containers unconfined, as Kubernetes documents.
func stepAppArmor(in *Input, s *specs.Spec) error {
	sec := &in.Container.Security
	switch sec.AppArmor {
	case runtime.SeccompUnconfined:
		return nil
	case "", runtime.SeccompDefault: // Kubernetes runs under the default profile what names none
		if !sec.Privileged {
			s.Process.ApparmorProfile = in.AppArmorDefault
		}
		return nil
	case runtime.SeccompLocalhost:
		if !appArmorName.MatchString(sec.AppArmorProfile) {
			return invalid("AppArmor profile name %q", sec.AppArmorProfile)
		}
		if !sec.Privileged {
			s.Process.ApparmorProfile = sec.AppArmorProfile
		}
		return nil
	}
	return invalid("unknown AppArmor profile kind %q", sec.AppArmor)
}

var (
	seLinuxPart  = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,127}$`)
	seLinuxLevel = regexp.MustCompile(`^[A-Za-z0-9_.,:-]{0,255}$`)
)

// stepSELinux labels the process and its mounts. Parts that were not asked for
// come from the pod, then from the container policy's well-known names.
func stepSELinux(in *Input, s *specs.Spec) error {
	ask, pod, level, err := seLinuxAsked(&in.Pod, &in.Container)
	if err != nil || !in.SELinux {
		return err
	}
	domain := "container_t"
	if in.Container.Security.Privileged {
		domain = "spc_t"
	}
	s.Process.SelinuxLabel = cmp.Or(ask.User, pod.User, "system_u") + ":" +
		cmp.Or(ask.Role, pod.Role, "system_r") + ":" + cmp.Or(ask.Type, pod.Type, domain) + ":" + level
	s.Linux.MountLabel = fileLabel + level
	return nil
}

// fileLabel and a level are the label of what containers may read and write.
const fileLabel = "system_u:object_r:container_file_t:"

// MountLabel is the SELinux label of a container's files, as Build has it.
func MountLabel(p *runtime.Pod, c *runtime.ContainerConfig) (string, error) {
	_, _, level, err := seLinuxAsked(p, c)
	return fileLabel + level, err
}

// seLinuxAsked checks what container and pod ask for. What is not asked for is "".
func seLinuxAsked(p *runtime.Pod, c *runtime.ContainerConfig) (ask, pod runtime.SELinux, level string, err error) {
	for _, l := range []struct {
		from *runtime.SELinux
		to   *runtime.SELinux
	}{{c.Security.SELinux, &ask}, {p.Config.Security.SELinux, &pod}} {
		if l.from == nil {
			continue
		}
		for _, part := range []string{l.from.User, l.from.Role, l.from.Type} {
			if !seLinuxPart.MatchString(part) {
				return ask, pod, "", invalid("SELinux label part %q", part)
			}
		}
		if !seLinuxLevel.MatchString(l.from.Level) {
			return ask, pod, "", invalid("SELinux level %q", l.from.Level)
		}
		*l.to = *l.from
	}
	return ask, pod, cmp.Or(ask.Level, pod.Level, p.SELinuxLevel, "s0"), nil
}
