package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sysctls checks kernel settings that a node with many pods runs into.
func (e *exam) sysctls(context.Context) {
	for _, s := range []struct {
		key    string
		least  int64
		status Status
		cost   string
	}{
		{"net.ipv4.ip_forward", 1, Warn, "pods reach nothing outside the node (a CNI plugin may set it)"},
		{"fs.inotify.max_user_instances", 512, Warn, "with many pods, programs that watch files fail with too many open files"},
		{"fs.inotify.max_user_watches", 8192, Warn, "programs that watch many files fail with no space left on device"},
		{"user.max_user_namespaces", 1, Warn, "no pods with user namespaces"},
		{"kernel.pid_max", 32768, Warn, "with many pods, no more processes can be made"},
		{"kernel.keys.root_maxkeys", 10000, Warn, "with many containers, session keyrings run out and containers do not start"},
		{"vm.max_map_count", 65530, Warn, "programs that map many files fail"},
	} {
		text, err := e.read("/proc/sys/" + strings.ReplaceAll(s.key, ".", "/"))
		if err != nil {
			e.bad(s.status, s.key, "missing", s.cost, "run a kernel with it")
			continue
		}
		v, err := strconv.ParseInt(text, 10, 64)
		e.expect(err == nil && v >= s.least, s.status, s.key, text, s.cost, fmt.Sprintf("sysctl -w %s=%d, and name it in /etc/sysctl.d", s.key, s.least))
	}
	// Absent while the module is not loaded.
	if text, err := e.read("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		e.bad(Warn, "net.bridge.bridge-nf-call-iptables", "missing",
			"services and network policies do not see traffic between pods of one bridge", "modprobe br_netfilter, and name it in /etc/modules-load.d")
	} else {
		e.expect(text == "1", Warn, "net.bridge.bridge-nf-call-iptables", text,
			"services and network policies do not see traffic between pods of one bridge", "sysctl -w net.bridge.bridge-nf-call-iptables=1")
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		e.expect(lim.Max >= 65536, Warn, "open files", fmt.Sprintf("%d", lim.Max),
			"with many pods the daemon and containers run out of file descriptors", "LimitNOFILE=1048576 in the unit")
	}
}

// security checks the modules that confine containers, and what they need.
func (e *exam) security(context.Context) {
	on, err := e.read("/sys/module/apparmor/parameters/enabled")
	switch {
	case err != nil || !strings.HasPrefix(on, "Y"):
		e.ok("AppArmor", "off: profiles that pods name are refused")
	default:
		e.apparmor()
	}
	mode, err := e.read("/sys/fs/selinux/enforce")
	switch {
	case err != nil:
		e.ok("SELinux", "off: labels that pods name are ignored")
	case !e.Config.Runtime.SELinux:
		e.bad(Warn, "SELinux", "on, and runtime.selinux is false", "containers are not kept apart by labels", "set runtime.selinux to true")
	default:
		e.ok("SELinux", "on, %s", map[bool]string{true: "enforcing", false: "permissive"}[mode == "1"])
	}
}

func (e *exam) apparmor() {
	const cost = "the default profile cannot be loaded: containers run without it or do not start"
	if _, err := os.Stat(e.path("/sys/kernel/security/apparmor/profiles")); err != nil {
		e.bad(Warn, "AppArmor", "on, and its list of profiles is out of reach", cost, "mount -t securityfs securityfs /sys/kernel/security")
		return
	}
	for _, p := range []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if _, err := os.Stat(e.path(p)); err == nil {
			e.ok("AppArmor", "on, with %s", p)
			return
		}
	}
	e.bad(Warn, "AppArmor", "on, without apparmor_parser", cost, "install apparmor (Debian: apparmor)")
}

// users checks the ids that pods with user namespaces are given.
func (e *exam) users(context.Context) {
	const pods, perPod = 110, 65536
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		text, err := e.read(file)
		if errors.Is(err, fs.ErrNotExist) {
			text, err = "", nil
		}
		if err != nil {
			e.bad(Warn, file, err.Error(), "not known", "make it readable")
			continue
		}
		var ids int64
		for line := range strings.Lines(text) {
			f := strings.Split(strings.TrimSpace(line), ":")
			if len(f) != 3 || f[0] != "kubelet" {
				continue
			}
			n, err := strconv.ParseInt(f[2], 10, 64)
			if err != nil || n < 0 {
				e.bad(Warn, file, fmt.Sprintf("the line %q is damaged", strings.TrimSpace(line)), "the kubelet refuses it", "write kubelet:START:COUNT")
				continue
			}
			ids += n
		}
		switch {
		case ids == 0:
			e.ok(file, "none for kubelet: it uses its default range")
		default:
			e.expect(ids >= pods*perPod, Warn, file, fmt.Sprintf("%d ids for kubelet", ids),
				fmt.Sprintf("only %d pods with user namespaces", ids/perPod), fmt.Sprintf("kubelet:65536:%d", pods*perPod))
		}
	}
}

// time checks that certificates and signatures can be judged.
func (e *exam) time(context.Context) {
	now := time.Now()
	self, err := os.Executable()
	if err == nil {
		if st, err := os.Stat(self); err == nil {
			e.expect(now.After(st.ModTime().Add(-24*time.Hour)), Fail, "clock", now.UTC().Format(time.RFC3339),
				"certificates of registries are taken for invalid", "set the clock, and run a time service")
		}
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		e.bad(Warn, "synchronised", err.Error(), "not known", "allow adjtimex")
		return
	}
	e.expect(state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0, Warn, "synchronised",
		map[bool]string{true: "yes", false: "no"}[state != unix.TIME_ERROR], "the clock drifts: certificates, log times and leases go wrong",
		"run chrony or systemd-timesyncd")
}
