package generatecmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func generate(t *testing.T, args ...string) (*specs.Spec, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	if err := cmd.Execute(); err != nil {
		if out.Len() > 0 {
			t.Errorf("a failed command printed %q", out.String())
		}
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		t.Fatalf("output: %v", err)
	}
	return &s, nil
}

func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("web:x:5:6::/w:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := generate(t, "--rootfs", dir, "-e", "A=b", "-e", "OCID_TEST_UNSET", "-v", "/srv:/data:ro,rslave", "-u", "web", "-w", "/w",
		"-m", "64m", "--cpus", "1.5", "--cpu-shares", "512", "--pids-limit", "50", "--cap-drop", "ALL", "--cap-add", "KILL",
		"--read-only", "-t", "--hostname", "box", "--pid", "host", "--device", "/dev/null:/dev/n:r",
		"--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined", "--sysctl", "net.ipv4.ip_forward=1",
		"--annotation", "io.kubernetes.container.x=y", "--", "sh", "-c", "true")
	if err != nil {
		t.Fatal(err)
	}
	p, r := s.Process, s.Linux.Resources
	last := s.Mounts[slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/data" })]
	for what, ok := range map[string]bool{
		"args":       slices.Equal(p.Args, []string{"sh", "-c", "true"}),
		"env":        slices.Contains(p.Env, "A=b") && slices.Contains(p.Env, "HOME=/w") && !strings.Contains(strings.Join(p.Env, " "), "UNSET"),
		"user":       p.User.UID == 5 && p.User.GID == 6,
		"cwd":        p.Cwd == "/w",
		"mount":      last.Source == "/srv" && slices.Contains(last.Options, "ro") && slices.Contains(last.Options, "rslave"),
		"memory":     *r.Memory.Limit == 64<<20,
		"cpu":        *r.CPU.Quota == 150000 && *r.CPU.Period == 100000 && *r.CPU.Shares == 512,
		"pids":       *r.Pids.Limit == 50,
		"caps":       slices.Equal(p.Capabilities.Bounding, []string{"CAP_KILL"}),
		"root":       s.Root.Readonly && s.Root.Path == dir,
		"tty":        p.Terminal,
		"hostname":   s.Hostname == "box",
		"pid":        !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace }),
		"device":     len(s.Linux.Devices) == 1 && s.Linux.Devices[0].Path == "/dev/n",
		"nnp":        p.NoNewPrivileges,
		"seccomp":    s.Linux.Seccomp == nil,
		"sysctl":     s.Linux.Sysctl["net.ipv4.ip_forward"] == "1",
		"annotation": s.Annotations["io.kubernetes.container.x"] == "y",
	} {
		if !ok {
			t.Errorf("%s is wrong", what)
		}
	}
}

func TestDefaultsAreConfined(t *testing.T) {
	s, err := generate(t, "--", "sh")
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp == nil || len(s.Linux.MaskedPaths) == 0 || s.Root.Path != "rootfs" || slices.Contains(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN") {
		t.Errorf("not confined: %+v", s.Linux)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range [][]string{
		{},
		{"--network", "bridge", "sh"},
		{"--network", "host", "--hostname", "x", "sh"},
		{"--pid", "x", "sh"},
		{"-m", "lots", "sh"},
		{"-m", "9223372036854775807g", "sh"},
		{"-m", "-1", "sh"},
		{"--cpus", "-1", "sh"},
		{"--cpus", "NaN", "sh"},
		{"--cpu-shares", "1", "sh"},
		{"-v", "/a", "sh"},
		{"-v", "/a:/b:odd", "sh"},
		{"-v", "a:/b", "sh"},
		{"--device", "/no/such", "sh"},
		{"--device", "a:b:c:d", "sh"},
		{"--security-opt", "odd", "sh"},
		{"--security-opt", "seccomp=/no/such/file", "sh"},
		{"--sysctl", "vm.swappiness=1", "sh"},
		{"--sysctl", "x", "sh"},
		{"--rootfs", "/no/such/root", "-u", "web", "sh"},
		{"-e", "A=\xff", "sh"},
	} {
		if _, err := generate(t, c...); err == nil {
			t.Errorf("%q was accepted", c)
		}
	}
}
