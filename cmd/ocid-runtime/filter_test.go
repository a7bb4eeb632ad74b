package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// build makes the binary under test once per run.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "ocid-runtime")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// confined is a bundle whose program prints what confines it. Its profile
// refuses mkdir alone, with three architectures, so that what is seen is the
// profile's doing.
func confined(t *testing.T, action specs.LinuxSeccompAction) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	dir := t.TempDir()
	for _, d := range []string{"rootfs/bin", "rootfs/proc", "rootfs/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs/bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `b=/bin/busybox; $b grep Seccomp: /proc/self/status; $b mkdir /tmp/x && $b echo made; $b ls /proc/self/fd`
	spec := specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/busybox", "sh", "-c", script}, Cwd: "/", NoNewPrivileges: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow,
				Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
				Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: action}},
			},
		},
	}
	b, err = json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// run creates and starts a container and returns what it printed.
func runConfined(t *testing.T, bin, root, bundle, id string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	command := func(out *os.File, args ...string) {
		t.Helper()
		var stderr bytes.Buffer
		c := exec.Command(bin, append([]string{"--root", root}, args...)...)
		c.Stdout, c.Stderr = out, out
		if out == nil {
			c.Stderr = &stderr
		}
		if err := c.Run(); err != nil {
			var said bytes.Buffer
			if out != nil {
				out.Close()
				_, _ = said.ReadFrom(r)
			}
			t.Fatalf("%s: %v %s%s", args[0], err, stderr.String(), said.String())
		}
	}
	command(w, "create", "--bundle", bundle, id)
	w.Close()
	command(nil, "start", id)
	var out bytes.Buffer
	if _, err := out.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	command(nil, "delete", "--force", id)
	return out.String()
}

func TestKeptFilter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin := build(t)
	root := filepath.Join(t.TempDir(), "state")
	bundle := confined(t, specs.ActErrno)
	first := runConfined(t, bin, root, bundle, "first")
	kept, err := os.ReadDir(root + ".seccomp")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	second := runConfined(t, bin, root, bundle, "second")
	for name, out := range map[string]string{"compiled": first, "kept": second} {
		if !strings.Contains(out, "Seccomp:\t2") {
			t.Errorf("%s: no filter is loaded:\n%s", name, out)
		}
		if strings.Contains(out, "made") || !strings.Contains(out, "Operation not permitted") {
			t.Errorf("%s: mkdir was not refused:\n%s", name, out)
		}
		// ls has its own descriptor 3; a fifth would be a leak.
		if strings.Contains(out, "\n4\n") {
			t.Errorf("%s: a descriptor leaked:\n%s", name, out)
		}
	}
	// A profile that differs must not find the first one's program.
	if out := runConfined(t, bin, root, confined(t, specs.ActAllow), "third"); !strings.Contains(out, "made") {
		t.Errorf("another profile: %s", out)
	}
	// That the kept program is what is loaded shows when it is another's: with
	// the name and head of the first and an allow-all body, mkdir works.
	path := filepath.Join(root+".seccomp", kept[0].Name())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	allow := append(b[:filterHead:filterHead], 6, 0, 0, 0, 0, 0, 0xff, 0x7f) // BPF_RET SECCOMP_RET_ALLOW
	if err := os.WriteFile(path, allow, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := runConfined(t, bin, root, bundle, "fourth"); !strings.Contains(out, "made") {
		t.Errorf("the kept program was not used:\n%s", out)
	}
	// A damaged one is compiled anew.
	if err := os.WriteFile(path, b[:len(b)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	if out := runConfined(t, bin, root, bundle, "fifth"); strings.Contains(out, "made") {
		t.Errorf("a damaged program was used:\n%s", out)
	}
}

func TestFilterKey(t *testing.T) {
	a, err := filterKey(&configs.Seccomp{DefaultAction: configs.Allow})
	if err != nil {
		t.Fatal(err)
	}
	b, err := filterKey(&configs.Seccomp{DefaultAction: configs.Errno})
	if err != nil || bytes.Equal(a, b) || len(a) != filterHead {
		t.Errorf("%x %x %v", a, b, err)
	}
}
