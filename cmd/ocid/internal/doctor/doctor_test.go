package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
)

// healthy lays out a machine that lacks nothing that a tree of files can show.
func healthy(t *testing.T) Machine {
	t.Helper()
	dir := t.TempDir()
	m := Machine{Dir: dir, BinDir: filepath.Join(dir, "bin"), Config: config.Default()}
	c := &m.Config
	c.Root, c.RunRoot = filepath.Join(dir, "root"), filepath.Join(dir, "run")
	c.Network.ConfDir, c.Network.BinDirs = filepath.Join(dir, "net.d"), []string{filepath.Join(dir, "cni")}
	c.Image.Policy, c.Image.RegistriesConf = filepath.Join(dir, "policy.json"), filepath.Join(dir, "registries.conf")
	c.Image.RegistriesConfDir = filepath.Join(dir, "registries.conf.d")
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"proc/filesystems":                            "nodev\toverlay\n",
		"proc/sys/kernel/osrelease":                   "6.1.0\n",
		"proc/sys/kernel/seccomp/actions_avail":       "kill errno allow\n",
		"proc/self/mountinfo":                         "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n30 22 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
		"cg/cgroup.controllers":                       "cpuset cpu io memory hugetlb pids\n",
		"proc/sys/net/ipv4/ip_forward":                "1\n",
		"proc/sys/fs/inotify/max_user_instances":      "8192\n",
		"proc/sys/fs/inotify/max_user_watches":        "524288\n",
		"proc/sys/user/max_user_namespaces":           "1000\n",
		"proc/sys/kernel/pid_max":                     "4194304\n",
		"proc/sys/kernel/keys/root_maxkeys":           "1000000\n",
		"proc/sys/vm/max_map_count":                   "65530\n",
		"proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
		"proc/self/ns/mnt":                            "", "proc/self/ns/net": "", "proc/self/ns/ipc": "", "proc/self/ns/uts": "",
		"proc/self/ns/pid": "", "proc/self/ns/cgroup": "", "proc/self/ns/user": "",
		"etc/subuid":          "kubelet:65536:7208960\n",
		"etc/subgid":          "kubelet:65536:7208960\n",
		"root/x":              "",
		"run/x":               "",
		"policy.json":         `{"default":[{"type":"insecureAcceptAnything"}]}`,
		"registries.conf":     "",
		"auth.json":           "{}",
		"net.d/10-a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"br","ipam":{"type":"ipam"},"capabilities":{"portMappings":true}}]}`,
	} {
		put(t, filepath.Join(dir, name), text, 0o600)
	}
	plugin := "#!/bin/sh\ntest \"$CNI_COMMAND\" = VERSION || exit 1\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'\n"
	put(t, filepath.Join(dir, "cni", "br"), plugin, 0o755)
	put(t, filepath.Join(dir, "cni", "ipam"), plugin, 0o755)
	put(t, filepath.Join(dir, "bin", "ocid-monitor"), "#!/bin/sh\n", 0o755)
	put(t, filepath.Join(dir, "bin", "ocid-runtime"), "#!/bin/sh\necho ocid-runtime 1\n", 0o755)
	return m
}

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// reads: what depends on files alone; the rest is the machine that tests run on.
func reads(fs []Finding) []Finding {
	var out []Finding
	for _, f := range fs {
		switch {
		case f.Area == "permissions", f.Area == "time", f.Area == "disk", f.Check == "open files", f.Check == "overlay mount":
		case f.Area == "kernel" && (f.Check == "openat2" || f.Check == "pidfd_open" || f.Check == "mount_setattr" || f.Check == "fsopen"):
		case f.Area == "mounts" && (f.Check == "root" || f.Check == "run root"):
		default:
			out = append(out, f)
		}
	}
	return out
}

func TestHealthy(t *testing.T) {
	for _, f := range reads(Examine(t.Context(), healthy(t))) {
		if f.Status != OK {
			t.Errorf("%+v", f)
		}
	}
}

func TestFaults(t *testing.T) {
	in := func(name, text string) func(*testing.T, *Machine) {
		return func(t *testing.T, m *Machine) { t.Helper(); put(t, filepath.Join(m.Dir, name), text, 0o644) }
	}
	gone := func(name string) func(*testing.T, *Machine) {
		return func(t *testing.T, m *Machine) {
			t.Helper()
			if err := os.RemoveAll(filepath.Join(m.Dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	handler := func(name, path string) func(*testing.T, *Machine) {
		return func(_ *testing.T, m *Machine) {
			m.Config.Runtime.Handlers[name] = config.Handler{Path: filepath.Join(m.Dir, path)}
		}
	}
	for name, tc := range map[string]struct {
		fault  func(*testing.T, *Machine)
		check  string // AREA/CHECK
		status Status
		found  string
	}{
		"no overlay":            {in("proc/filesystems", "ext4\n"), "kernel/overlay", Fail, "missing"},
		"no seccomp":            {gone("proc/sys/kernel/seccomp"), "kernel/seccomp", Fail, "missing"},
		"no user namespaces":    {gone("proc/self/ns/user"), "kernel/user namespace", Warn, "missing"},
		"no network namespaces": {gone("proc/self/ns/net"), "kernel/net namespace", Fail, "missing"},
		"no cgroups":            {in("proc/self/mountinfo", "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"), "cgroups/mounted", Fail, "no cgroup hierarchy"},
		"hybrid": {
			in("proc/self/mountinfo", "22 1 8:1 / / rw shared:1 - ext4 x rw\n30 22 0:26 / /cg rw - cgroup2 x rw\n31 22 0:27 / /v1 rw - cgroup x rw,memory\n"),
			"cgroups/version", Warn, "beside it",
		},
		"no memory controller": {in("cg/cgroup.controllers", "cpu pids\n"), "cgroups/memory controller", Fail, "missing"},
		"no parser": {
			func(t *testing.T, m *Machine) {
				t.Helper()
				in("sys/module/apparmor/parameters/enabled", "Y\n")(t, m)
				in("sys/kernel/security/apparmor/profiles", "")(t, m)
			}, "security/AppArmor", Warn, "without apparmor_parser",
		},
		"no securityfs": {in("sys/module/apparmor/parameters/enabled", "Y\n"), "security/AppArmor", Warn, "out of reach"},
		"unused SELinux": {func(t *testing.T, m *Machine) {
			t.Helper()
			in("sys/fs/selinux/enforce", "1")(t, m)
			m.Config.Runtime.SELinux = false
		}, "security/SELinux", Warn, "false"},
		"private root":         {in("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 x rw\n30 22 0:26 / /cg rw - cgroup2 x rw\n"), "mounts/propagation of /", Warn, "private"},
		"no forwarding":        {in("proc/sys/net/ipv4/ip_forward", "0\n"), "sysctls/net.ipv4.ip_forward", Warn, "0"},
		"no bridge filter":     {gone("proc/sys/net/bridge"), "sysctls/net.bridge.bridge-nf-call-iptables", Warn, "missing"},
		"few instances":        {in("proc/sys/fs/inotify/max_user_instances", "128\n"), "sysctls/fs.inotify.max_user_instances", Warn, "128"},
		"few ids":              {in("etc/subuid", "kubelet:65536:65536\n"), "users//etc/subuid", Warn, "65536 ids"},
		"damaged ids":          {in("etc/subgid", "kubelet:65536:many\n"), "users//etc/subgid", Warn, "damaged"},
		"no monitor":           {gone("bin/ocid-monitor"), "handlers/monitor", Fail, "no such file"},
		"no embedded runtime":  {gone("bin/ocid-runtime"), "handlers/ocid", Fail, "no such file"},
		"broken runtime":       {in("bin/ocid-runtime", "#!/bin/sh\nexit 3\n"), "handlers/ocid", Fail, "exit status 3"},
		"missing handler":      {handler("runc", "nowhere"), "handlers/runc", Warn, "no such file"},
		"handler not runnable": {handler("x", "policy.json"), "handlers/x", Warn, "permission denied"},
		"handler is a folder":  {handler("x", "root"), "handlers/x", Warn, "not a file"},
		"silent handler":       {handler("old", "cni/br"), "handlers/old", Warn, "exit status 1"},
		"no network":           {gone("net.d"), "network/configuration", Fail, "none in"},
		"damaged network":      {in("net.d/00-first.conflist", "{"), "network/configuration", Fail, "00-first"},
		"no plugin":            {gone("cni/ipam"), "network/plugin ipam", Fail, "not in"},
		"plugin not runnable": {func(t *testing.T, m *Machine) {
			if err := os.Chmod(filepath.Join(m.Dir, "cni", "br"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "network/plugin br", Fail, "permission denied"},
		"plugin of another machine": {in("cni/br", "\x7fELFgarbage"), "network/plugin br", Fail, "br"},
		"no host ports": {
			in("net.d/10-a.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"br"}]}`),
			"network/host ports", Warn, "no plugin",
		},
		"damaged policy":     {in("policy.json", "{"), "images/policy.json", Fail, "policy.json"},
		"no policy":          {func(_ *testing.T, m *Machine) { m.Config.Image.Policy = "" }, "images/policy.json", Warn, "none"},
		"damaged registries": {in("registries.conf", "= ="), "images/registries.conf", Fail, "registries.conf"},
		"open credentials": {func(t *testing.T, m *Machine) {
			m.Config.Image.AuthFile = filepath.Join(m.Dir, "auth.json")
			if err := os.Chmod(m.Config.Image.AuthFile, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "images/auth_file", Warn, "0644"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			t.Setenv("XDG_CONFIG_HOME", t.TempDir())
			m := healthy(t)
			tc.fault(t, &m)
			found := Examine(t.Context(), m)
			if Failed(reads(found)) != (tc.status == Fail) {
				t.Errorf("failed: %t, want %t", Failed(reads(found)), tc.status == Fail)
			}
			for _, f := range found {
				if f.Area+"/"+f.Check != tc.check {
					continue
				}
				if f.Status != tc.status || !strings.Contains(f.Found, tc.found) {
					t.Errorf("got %+v", f)
				}
				if f.Cost == "" || f.Mend == "" {
					t.Errorf("what is missing has no cost or cure: %+v", f)
				}
				return
			}
			t.Errorf("nothing was found about %s", tc.check)
		})
	}
}

// A doctor leaves nothing behind.
func TestNothingIsChanged(t *testing.T) {
	m := healthy(t)
	before, err := os.ReadDir(m.Config.Root)
	if err != nil {
		t.Fatal(err)
	}
	Examine(t.Context(), m)
	after, err := os.ReadDir(m.Config.Root)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("left behind: %v", after)
	}
}
