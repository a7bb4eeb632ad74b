package lifecycle

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLacks(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"proc", "dev", "etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"var": "/run", "tmp": "nowhere", "srv": "/proc/self/root/etc"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	spec := func(cwd string, at ...string) *specs.Spec {
		s := &specs.Spec{Process: &specs.Process{Cwd: cwd}, Linux: &specs.Linux{}}
		for _, p := range at {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: p})
		}
		return s
	}
	hooked := spec("/")
	hooked.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x"}}}
	device := spec("/", "/dev")
	device.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x"}, {Path: "/node"}}
	for _, c := range []struct {
		s    *specs.Spec
		want string
	}{
		{spec("/", "/proc", "/dev", "/dev/shm", "/etc/hosts", "/var", "/var/"), ""},
		{spec("/etc", "/proc"), ""},
		{spec("/etc/hosts"), "/etc/hosts"},
		{spec("/work"), "/work"},
		{spec("/dev/work", "/dev"), ""},
		{spec("/", "/etc/resolv.conf"), "/etc/resolv.conf"},
		{spec("/", "/tmp"), "/tmp"},
		{spec("/", "/srv/hosts"), "/srv/hosts"},
		{spec("/", "/etc/hosts/x"), "/etc/hosts/x"},
		{hooked, "what hooks may make"},
		{device, "/node"},
	} {
		got, err := lacks(root, c.s)
		if err != nil || got != c.want {
			t.Errorf("cwd %s, mounts %v: %q, %v; want %q", c.s.Process.Cwd, c.s.Mounts, got, err, c.want)
		}
	}
}
