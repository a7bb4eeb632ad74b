package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCaps are what a container gets when nothing is asked: the set that
// Kubernetes users rely on with every CRI runtime.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// knownCaps are the capabilities of capabilities(7), in the kernel's order.
var knownCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE",
	"CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// KnownCapabilities returns the names of all capabilities, "CAP_X" form, in
// the kernel's order: bit n of a capability mask is element n.
func KnownCapabilities() []string { return slices.Clone(knownCaps) }

// BoundingCapabilities returns the capabilities that this process may pass on,
// for Input.DaemonCaps. Root may lack some, as in a container or a slim VM.
func BoundingCapabilities() []string {
	var out []string
	for i, n := range knownCaps {
		// A kernel that does not know the capability answers with an error.
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && has == 1 {
			out = append(out, n)
		}
	}
	return out
}

// capBits is a capability set, one bit for each element of knownCaps.
type capBits uint64

const allCaps = capBits(1)<<41 - 1

func capBit(name string) (capBits, error) {
	n := strings.ToUpper(name)
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	i := slices.Index(knownCaps, n)
	if i < 0 {
		return 0, invalid("unknown capability %q", name)
	}
	return 1 << i, nil
}

// capSet returns the named capabilities; "ALL" is reported apart.
func capSet(names []string) (set capBits, all bool, err error) {
	for _, n := range names {
		if strings.EqualFold(n, "ALL") {
			all = true
			continue
		}
		b, err := capBit(n)
		if err != nil {
			return 0, false, err
		}
		set |= b
	}
	return set, all, nil
}

func (c capBits) names() []string {
	var out []string
	for i, n := range knownCaps {
		if c&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}

// stepCapabilities computes the sets. "ALL" is applied before single names, so
// that "drop ALL, add X" gives X and "add ALL, drop X" all but X. Whatever was
// asked is cut to what the daemon may give. The inheritable set holds ambient
// capabilities only: more would let a non-root user regain file capabilities.
func stepCapabilities(in *Input, s *specs.Spec) error {
	sec := &in.Container.Security
	add, addAll, err := capSet(sec.AddCapabilities)
	if err != nil {
		return err
	}
	drop, dropAll, err := capSet(sec.DropCapabilities)
	if err != nil {
		return err
	}
	ambient, ambientAll, err := capSet(sec.AmbientCaps)
	if err != nil {
		return err
	}
	may := capBits(0)
	for _, n := range in.DaemonCaps {
		// A newer kernel's capability that has no name here cannot be given.
		if b, err := capBit(n); err == nil {
			may |= b
		}
	}

	set, _, _ := capSet(defaultCaps)
	if sec.Privileged {
		set, ambient = allCaps, 0
	} else {
		if addAll {
			set = allCaps
		}
		if dropAll {
			set = 0
		}
		if ambientAll {
			ambient = allCaps
		}
		ambient &^= drop
		set = (set|add)&^drop | ambient
	}
	set, ambient = set&may, ambient&may
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding:    set.names(),
		Effective:   set.names(),
		Permitted:   set.names(),
		Inheritable: ambient.names(),
		Ambient:     ambient.names(),
	}
	return nil
}
