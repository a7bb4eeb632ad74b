package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// host is what the machine and this process's rights are.
type host struct {
	bootID      string
	cgroupV2    bool
	hugetlb     bool
	systemd     bool // systemd is PID 1
	appArmor    bool
	caps        []string // effective and bounding, "CAP_X"
	minOOMScore int
}

func readHost() (host, error) {
	var h host
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return h, fmt.Errorf("read the boot id: %w", err)
	}
	h.bootID = strings.TrimSpace(string(b))
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return h, fmt.Errorf("no cgroups at /sys/fs/cgroup: %w", err)
	}
	h.cgroupV2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	h.hugetlb = hasHugetlb("/sys/fs/cgroup")
	// What sd_booted(3) looks at.
	_, err = os.Lstat("/run/systemd/system")
	h.systemd = err == nil
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.appArmor = err == nil && strings.HasPrefix(string(on), "Y")
	set, err := capability.NewPid2(0)
	if err != nil {
		return h, err
	}
	if err := set.Load(); err != nil {
		return h, fmt.Errorf("read own capabilities: %w", err)
	}
	resource := false
	for _, c := range capability.ListKnown() {
		if set.Get(capability.EFFECTIVE, c) && set.Get(capability.BOUNDING, c) {
			h.caps = append(h.caps, "CAP_"+strings.ToUpper(c.String()))
			resource = resource || c == capability.CAP_SYS_RESOURCE
		}
	}
	h.minOOMScore = -1000
	if !resource {
		// oom_score_adj may only be lowered with CAP_SYS_RESOURCE (proc(5)).
		if h.minOOMScore, err = ownOOMScore(); err != nil {
			return h, err
		}
	}
	return h, nil
}

// hasHugetlb tells whether huge pages can be limited below a cgroup mount point,
// in a hierarchy of their own or in the unified one.
func hasHugetlb(root string) bool {
	if _, err := os.Stat(filepath.Join(root, "hugetlb", "cgroup.procs")); err == nil {
		return true
	}
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(b)), "hugetlb")
}

func ownOOMScore() (int, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// beside finds a binary next to this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	p := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("%s must be installed beside %s: %w", name, self, err)
	}
	return p, nil
}
