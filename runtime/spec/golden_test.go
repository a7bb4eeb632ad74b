package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

var update = flag.Bool("update", false, "rewrite testdata/*.json from what Build gives now")

// base is an ordinary container of an ordinary pod; each scenario changes it.
func base() Input {
	return Input{
		Pod: runtime.Pod{
			ID: "pod1",
			Config: runtime.PodConfig{
				Name: runtime.PodName{Name: "web", Namespace: "default", UID: "u-1"},
				Namespaces: runtime.Namespaces{
					Network: runtime.NamespacePod, IPC: runtime.NamespacePod, PID: runtime.NamespaceContainer,
				},
			},
		},
		Container: runtime.ContainerConfig{
			Name:  runtime.ContainerName{Name: "nginx", Attempt: 2},
			Image: "docker.io/library/nginx:1",
			Security: runtime.Security{
				MaskedPaths: DefaultMaskedPaths(), ReadOnlyPaths: DefaultReadOnlyPaths(),
				Namespaces: runtime.Namespaces{
					Network: runtime.NamespacePod, IPC: runtime.NamespacePod, PID: runtime.NamespaceContainer,
				},
			},
		},
		ContainerID: "ctr1",
		Image: runtime.ImageConfig{
			ID: "sha256:abc", Entrypoint: []string{"/entry"}, Cmd: []string{"-c", "conf"},
			Env: []string{"A=image", "B=image", "PATH=/bin", "malformed", "=empty"}, WorkingDir: "/srv",
			Labels: map[string]string{"org.systemd.property.ExecStart": "'/bin/evil'"},
		},
		User:       runtime.ResolvedUser{UID: 101, GID: 102, Groups: []uint32{102, 103}},
		Home:       "/home/web",
		RootPath:   "/run/ocid/rootfs/ctr1",
		CgroupPath: "/kubepods/pod1/ctr1",
		Namespaces: map[string]string{"net": "/pins/net", "ipc": "/pins/ipc", "uts": "/pins/uts"},
		HostsPath:  "/pod/hosts", HostnamePath: "/pod/hostname", ResolvPath: "/pod/resolv.conf",
		ShmPath: "/pod/shm", Hostname: "web", DaemonCaps: KnownCapabilities(), MinOOMScore: -500,
	}
}

func sec(in *Input) *runtime.Security { return &in.Container.Security }

func netMode(in *Input, m runtime.NamespaceMode) {
	in.Pod.Config.Namespaces.Network, sec(in).Namespaces.Network = m, m
}

func ipcMode(in *Input, m runtime.NamespaceMode) {
	in.Pod.Config.Namespaces.IPC, sec(in).Namespaces.IPC = m, m
}

func userNS(in *Input) {
	maps := []runtime.IDMapping{{ContainerID: 0, HostID: 100000, Length: 65536}}
	in.Pod.Config.Namespaces.User = &runtime.UserNamespace{UIDs: maps, GIDs: maps}
	in.Namespaces["user"] = "/pins/user"
}

// scenario names are the names of the golden files. show cuts the spec down to
// the part that the scenario is about; nil shows all of it.
type scenario struct {
	name   string
	change func(in *Input)
	show   func(s *specs.Spec) any
}

func process(s *specs.Spec) any { return s.Process }

func args(s *specs.Spec) any { return s.Process.Args }

func env(s *specs.Spec) any { return s.Process.Env }

func caps(s *specs.Spec) any { return s.Process.Capabilities }

func mounts(s *specs.Spec) any {
	return map[string]any{"mounts": s.Mounts, "rootfsPropagation": s.Linux.RootfsPropagation, "root": s.Root}
}

func isolation(s *specs.Spec) any {
	return map[string]any{
		"namespaces": s.Linux.Namespaces, "hostname": s.Hostname, "mounts": s.Mounts,
		"uidMappings": s.Linux.UIDMappings, "gidMappings": s.Linux.GIDMappings, "sysctl": s.Linux.Sysctl,
	}
}

func resources(s *specs.Spec) any {
	return map[string]any{"resources": s.Linux.Resources, "oom": s.Process.OOMScoreAdj, "devices": s.Linux.Devices}
}

func labels(s *specs.Spec) any {
	return map[string]any{
		"process": s.Process.SelinuxLabel, "mount": s.Linux.MountLabel, "apparmor": s.Process.ApparmorProfile,
		"masked": s.Linux.MaskedPaths, "readonly": s.Linux.ReadonlyPaths, "seccomp": s.Linux.Seccomp,
		"noNewPrivileges": s.Process.NoNewPrivileges,
	}
}

var scenarios = []scenario{
	{"plain", func(*Input) {}, nil},
	{"args-command-only", func(in *Input) { in.Container.Command = []string{"/cmd"} }, args},
	{"args-args-only", func(in *Input) { in.Container.Args = []string{"x"} }, args},
	{"args-both", func(in *Input) { in.Container.Command, in.Container.Args = []string{"/cmd"}, []string{"x"} }, args},
	{"env", func(in *Input) {
		in.Container.Env = []runtime.EnvVar{{Key: "B", Value: []byte("request")}, {Key: "HOME", Value: []byte("/h")}, {Key: "C", Value: []byte("<é&>\n")}}
	}, env},
	{"env-defaults", func(in *Input) { in.Image.Env, in.Home, in.Container.TTY = nil, "relative", true }, env},
	{"tty-cwd-relative", func(in *Input) { in.Container.TTY, in.Container.WorkingDir = true, "../data" }, process},
	{"cwd-default", func(in *Input) { in.Image.WorkingDir = "" }, process},
	{"ns-host", func(in *Input) {
		netMode(in, runtime.NamespaceNode)
		ipcMode(in, runtime.NamespaceNode)
		sec(in).Namespaces.PID = runtime.NamespaceNode
		in.ShmPath = ""
	}, isolation},
	{"ns-private", func(in *Input) {
		netMode(in, runtime.NamespaceContainer)
		ipcMode(in, runtime.NamespaceContainer)
		in.ShmPath = ""
		in.Pod.Config.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "fs/mqueue/msg_max": "9"}
	}, isolation},
	{"ns-pid-pod", func(in *Input) {
		sec(in).Namespaces.PID = runtime.NamespacePod
		in.Namespaces["pid"] = "/pins/pid"
	}, isolation},
	{"ns-pid-target-v2", func(in *Input) {
		sec(in).Namespaces.PID, sec(in).Namespaces.Target = runtime.NamespaceTarget, "other"
		in.Namespaces["pid"], in.CgroupV2 = "/proc/77/ns/pid", true
	}, isolation},
	{"ns-user", userNS, isolation},
	{"ns-user-host", func(in *Input) {
		userNS(in)
		in.Pod.Config.Namespaces.User.GIDs = []runtime.IDMapping{{ContainerID: 0, HostID: 5000, Length: 5}}
		in.User = runtime.ResolvedUser{}
		netMode(in, runtime.NamespaceNode)
		ipcMode(in, runtime.NamespaceNode)
		sec(in).Namespaces.PID = runtime.NamespaceNode
		in.ShmPath = ""
	}, isolation},
	{"sysctls-pinned", func(in *Input) { in.Pod.Config.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }, isolation},
	{"mounts-user", func(in *Input) {
		maps := []runtime.IDMapping{{ContainerID: 0, HostID: 100000, Length: 65536}}
		in.Container.Mounts = []runtime.Mount{
			{HostPath: "/vol/deep", ContainerPath: "/data/a/b", ReadOnly: true},
			{HostPath: "/vol/data/", ContainerPath: "/data/", Propagation: runtime.PropagationPrivate},
			{HostPath: "/vol/rro", ContainerPath: "/rro", ReadOnly: true, RecursiveReadOnly: true},
			{HostPath: "/vol/idmap", ContainerPath: "/idmap", UIDMappings: maps, GIDMappings: maps},
			{HostPath: "/vol/hosts", ContainerPath: "/etc/hosts"},
			{HostPath: "/vol/etc", ContainerPath: "/etc"},
			{HostPath: "/vol/shm", ContainerPath: "/dev/shm"},
		}
	}, mounts},
	{"mounts-rslave", func(in *Input) {
		in.Container.Mounts = []runtime.Mount{{HostPath: "/m", ContainerPath: "/m", Propagation: runtime.PropagationHostToContain}}
	}, mounts},
	{"mounts-rshared", func(in *Input) {
		in.Container.Mounts = []runtime.Mount{
			{HostPath: "/m", ContainerPath: "/m", Propagation: runtime.PropagationBidirectional},
			{HostPath: "/n", ContainerPath: "/n", Propagation: runtime.PropagationHostToContain},
		}
	}, mounts},
	{"mounts-host-dev-and-sys", func(in *Input) {
		in.Container.Mounts = []runtime.Mount{{HostPath: "/dev", ContainerPath: "/dev"}, {HostPath: "/sys", ContainerPath: "/sys"}}
	}, mounts},
	{"readonly-root", func(in *Input) {
		sec(in).ReadOnlyRootfs = true
		in.Image.Volumes = []string{"/var/lib/db", "cache", "/proc/x", "/", "../../dev", "/taken", "/var/lib/db/"}
		in.Container.Mounts = []runtime.Mount{{HostPath: "/v", ContainerPath: "/taken"}}
	}, mounts},
	{"image-volumes-writable-root", func(in *Input) { in.Image.Volumes = []string{"/var/lib/db"} }, mounts},
	{"no-pod-files", func(in *Input) { in.HostsPath, in.HostnamePath, in.ResolvPath = "", "", "" }, mounts},
	{"devices", func(in *Input) {
		in.Container.Devices = []runtime.Device{
			{HostPath: "/dev/snd", ContainerPath: "/dev/snd", Permissions: "rw"},
			{HostPath: "/dev/fuse", Permissions: "r"},
			{HostPath: "/dev/x", ContainerPath: "/dev/y"},
		}
		in.HostDevices = []specs.LinuxDevice{
			{Path: "/dev/snd/pcm", Type: "c", Major: 116, Minor: 3},
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
			{Path: "/dev/y", Type: "b", Major: 8, Minor: 1},
		}
	}, resources},
	{"privileged", func(in *Input) {
		sec(in).Privileged = true
		sec(in).Seccomp, sec(in).AppArmor = runtime.SeccompDefault, runtime.SeccompDefault
		sec(in).DropCapabilities = []string{"SYS_TIME"}
		in.AppArmorDefault, in.CgroupV2 = "ocid-default", true
		in.AllDevices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}, {Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}
		in.HostDevices = []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 1}}
	}, nil},
	{"caps-add-drop", func(in *Input) {
		sec(in).AddCapabilities, sec(in).DropCapabilities = []string{"net_admin", "CAP_SYS_TIME"}, []string{"MKNOD", "SYS_TIME"}
	}, caps},
	{"caps-drop-all-add-one", func(in *Input) {
		sec(in).AddCapabilities, sec(in).DropCapabilities = []string{"NET_BIND_SERVICE"}, []string{"ALL"}
	}, caps},
	{"caps-all-cut-to-daemon", func(in *Input) {
		sec(in).AddCapabilities, sec(in).DropCapabilities = []string{"all"}, []string{"SYS_ADMIN"}
		in.DaemonCaps = []string{"CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_BPF", "CAP_FUTURE"}
	}, caps},
	{"caps-ambient", func(in *Input) {
		sec(in).DropCapabilities, sec(in).AmbientCaps = []string{"ALL"}, []string{"NET_RAW"}
	}, caps},
	{"seccomp-default", func(in *Input) { sec(in).Seccomp, sec(in).NoNewPrivileges = runtime.SeccompDefault, true }, labels},
	{"seccomp-default-sys-admin", func(in *Input) {
		sec(in).Seccomp, sec(in).AddCapabilities = runtime.SeccompDefault, []string{"SYS_ADMIN", "BPF"}
	}, labels},
	{"seccomp-localhost", func(in *Input) {
		sec(in).Seccomp, sec(in).SeccompPath = runtime.SeccompLocalhost, "/p.json"
		in.SeccompFile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
			"syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO","errno":"EACCES"},
			{"name":"personality","action":"SCMP_ACT_ERRNO","errnoRet":7,"args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
			{"names":["mount"],"action":"SCMP_ACT_KILL","includes":{"caps":["CAP_SYS_ADMIN"]}},
			{"names":["umount2"],"action":"SCMP_ACT_KILL","excludes":{"caps":["CAP_CHOWN"]}}]}`)
	}, labels},
	{"labels", func(in *Input) {
		in.SELinux, in.AppArmorDefault = true, "ocid-default"
		sec(in).AppArmor, sec(in).SELinux = runtime.SeccompDefault, &runtime.SELinux{Type: "my_t"}
		in.Pod.Config.Security.SELinux = &runtime.SELinux{Level: "s0:c1,c2"}
		sec(in).MaskedPaths, sec(in).ReadOnlyPaths = nil, []string{"/proc/x"}
	}, labels},
	{"labels-on-a-machine-without", func(in *Input) {
		sec(in).AppArmor, sec(in).SELinux = runtime.SeccompDefault, &runtime.SELinux{Type: "my_t"}
	}, labels},
	{"apparmor-localhost", func(in *Input) { sec(in).AppArmor, sec(in).AppArmorProfile = runtime.SeccompLocalhost, "k8s-deny" }, labels},
	{"resources", func(in *Input) {
		in.Container.Resources = &runtime.Resources{
			CPUPeriod: new(uint64(100000)), CPUQuota: new(int64(50000)), CPUShares: new(uint64(512)), CPUSetCPUs: "0-1", CPUSetMems: "0",
			Memory: new(int64(64 << 20)), MemorySwap: new(int64(64 << 20)), Pids: new(int64(100)), OOMScoreAdj: new(-900),
			HugepageLimit: map[string]uint64{"2MB": 4 << 20, "1GB": 0},
		}
	}, resources},
	{"resources-unified-v2", func(in *Input) {
		in.CgroupV2 = true
		in.Container.Resources = &runtime.Resources{Unified: map[string]string{"memory.high": "1000"}, OOMScoreAdj: new(999)}
	}, resources},
	{"annotations", func(in *Input) {
		in.Container.Annotations = map[string]string{
			"io.kubernetes.container.hash": "abc", "org.systemd.property.ExecStart": "x", "run.oci.handler": "x",
			"io.katacontainers.config.hypervisor.path": "x", "io.ocid.pod-id": "forged", "other": "x",
		}
	}, func(s *specs.Spec) any { return s.Annotations }},
}

func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, sc := range scenarios {
		seen[sc.name+".json"] = true
		t.Run(sc.name, func(t *testing.T) {
			in := base()
			sc.change(&in)
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Marshal(s); err != nil {
				t.Fatal(err)
			}
			var shown any = s
			if sc.show != nil {
				shown = sc.show(s)
			}
			var b bytes.Buffer
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			if err := enc.Encode(shown); err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", sc.name+".json"), b.Bytes())
		})
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[filepath.Base(f)] {
			t.Errorf("%s belongs to no scenario", f)
		}
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s:%d: got %q, want %q (go test -update rewrites it)", file, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s: got %d lines, want %d", file, len(g), len(w))
}
