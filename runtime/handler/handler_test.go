package handler

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/engine"
)

func adjust(t *testing.T, pol Policy, pod, ctr map[string]string, memory int64) (*specs.Spec, error) {
	t.Helper()
	s := &specs.Spec{
		Process: &specs.Process{Env: []string{"PATH=/bin"}}, Annotations: map[string]string{"io.ocid.pod-id": "p"},
		Mounts: []specs.Mount{{Destination: "/proc"}, {Destination: "/a/b"}},
		Linux:  &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}}},
	}
	ps := &Policies{Default: "d", ByName: map[string]Policy{"d": pol}}
	p := runtime.Pod{Config: runtime.PodConfig{Annotations: pod}}
	return s, ps.AdjustSpec(t.Context(), p, &runtime.Container{Config: runtime.ContainerConfig{Annotations: ctr}}, s)
}

func TestAnnotations(t *testing.T) {
	pod := map[string]string{"run.oci.keep": "pod", "org.systemd.property.X": "1", "io.ocid.pod-id": "forged"}
	ctr := map[string]string{"run.oci.keep": "ctr", "io.katacontainers.config.x": "y"}
	s, err := adjust(t, Policy{}, pod, ctr, 0)
	if err != nil || len(s.Annotations) != 1 {
		t.Errorf("nothing is allowed, and %v came through (%v)", s.Annotations, err)
	}
	pol := Policy{AllowedAnnotations: []string{"run.oci.*", "*", "org.systemd.property.*"}, DefaultAnnotations: map[string]string{"run.oci.keep": "default", "more": "default"}}
	s, err = adjust(t, pol, pod, ctr, 0)
	want := map[string]string{
		"run.oci.keep": "ctr", "org.systemd.property.X": "1", "io.katacontainers.config.x": "y", "more": "default", "io.ocid.pod-id": "p",
	}
	if err != nil || len(s.Annotations) != len(want) {
		t.Errorf("%v %v", s.Annotations, err)
	}
	for k, v := range want {
		if s.Annotations[k] != v {
			t.Errorf("%s is %q, want %q", k, s.Annotations[k], v)
		}
	}
}

func TestDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "base.json")
	if err := os.WriteFile(file, []byte(`{"ociVersion": "1.0.2",
		"process": {"env": ["PATH=/other", "BASE=1"], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}]},
		"mounts": [{"destination": "/proc", "type": "x"}, {"destination": "/m", "type": "tmpfs"}],
		"hooks": {"poststop": [{"path": "/bin/true"}]},
		"linux": {"sysctl": {"net.ipv4.ip_forward": "1"}, "resources": {"pids": {"limit": 9}}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := ReadBase(file)
	if err != nil {
		t.Fatal(err)
	}
	lim, err := ParseUlimit("nofile=1:2")
	if err != nil {
		t.Fatal(err)
	}
	s, err := adjust(t, Policy{Base: base, DefaultEnv: []string{"BASE=2", "NEW=3"}, Rlimits: []specs.POSIXRlimit{lim}}, nil, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "BASE=1", "NEW=3"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %v", s.Process.Env)
	}
	if len(s.Process.Rlimits) != 1 || s.Process.Rlimits[0].Soft != 5 {
		t.Errorf("rlimits %v", s.Process.Rlimits)
	}
	var at []string
	for _, m := range s.Mounts {
		at = append(at, m.Destination+m.Type)
	}
	if want := []string{"/proc", "/mtmpfs", "/a/b"}; !slices.Equal(at, want) {
		t.Errorf("mounts %v", at)
	}
	if len(s.Hooks.Poststop) != 1 || s.Linux.Sysctl["net.ipv4.ip_forward"] != "1" || *s.Linux.Resources.Pids.Limit != 9 {
		t.Errorf("%+v %+v", s.Hooks, s.Linux)
	}
	if base.Linux.Resources.Pids == nil || len(base.Mounts) != 2 {
		t.Error("the base was changed")
	}
	for _, bad := range []string{`{"root": {"path": "/"}}`, `{"linux": {"seccomp": {}}}`, `{"mounts": [{"destination": "/../x"}]}`, `nonsense`} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBase(file); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestMinMemory(t *testing.T) {
	for limit, ok := range map[int64]bool{0: true, -1: true, 99: false, 100: true} {
		if _, err := adjust(t, Policy{MinMemory: 100}, nil, nil, limit); errors.Is(err, runtime.ErrInvalid) == ok {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

func TestUlimits(t *testing.T) {
	for text, ok := range map[string]bool{
		"nofile=1024:2048": true, "core=0": true, "memlock=-1:-1": true, "nofile=2:1": false,
		"nofile": false, "NOFILE=1": false, "files=1": false, "as core=1": false, "nofile=a": false, "=1": false,
	} {
		if _, err := ParseUlimit(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func script(t *testing.T, body string) engine.Handler {
	t.Helper()
	f := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(f, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return engine.Handler{Name: "x", Path: f}
}

func TestFeatures(t *testing.T) {
	var p Prober
	count := filepath.Join(t.TempDir(), "count")
	h := script(t, `echo x >>`+count+`; echo '{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}'`)
	for range 3 {
		f, err := p.Features(t.Context(), h)
		if err != nil || !f.Known || !f.RecursiveReadOnly || !f.IDMappedMounts {
			t.Fatalf("%+v %v", f, err)
		}
	}
	if b, _ := os.ReadFile(count); len(b) != 2 {
		t.Errorf("asked %d times", len(b)/2)
	}
	for name, body := range map[string]string{"no such command": "echo what? >&2; exit 1", "not json": "echo hello"} {
		if f, err := p.Features(t.Context(), script(t, body)); err != nil || f.Known {
			t.Errorf("%s: %+v %v", name, f, err)
		}
	}
	if _, err := p.Features(t.Context(), engine.Handler{Path: "/no/such/runtime"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing runtime: %v", err)
	}
	if runc, err := os.Stat("/usr/sbin/runc"); err == nil && runc.Mode().IsRegular() {
		f, err := p.Features(t.Context(), engine.Handler{Name: "runc", Path: "/usr/sbin/runc"})
		if err != nil || !f.Known || !slices.Contains(f.MountOptions, "rbind") {
			t.Errorf("runc: %+v %v", f, err)
		}
	}
}

// TestHostAnnotations: a pattern for everything is not one for what OCI
// runtimes do to the host.
func TestHostAnnotations(t *testing.T) {
	for _, c := range []struct {
		pattern, key string
		want         bool
	}{
		{"*", "run.oci.keep", true},
		{"*", "org.systemd.property.ExecStopPost", false},
		{"org.*", "org.systemd.property.ExecStopPost", false},
		{"[o]rg.systemd.property.*", "org.systemd.property.ExecStopPost", false},
		{"org.systemd.property.TimeoutStopUSec", "org.systemd.property.TimeoutStopUSec", true},
		{"org.systemd.property.TimeoutStopUSec", "org.systemd.property.ExecStopPost", false},
		{"*", "org.criu.config", false},
		{"io.ocid.*", "io.ocid.pod-id", false},
	} {
		if got := (&Policy{AllowedAnnotations: []string{c.pattern}}).allows(c.key); got != c.want {
			t.Errorf("%q lets %q through: %v", c.pattern, c.key, got)
		}
	}
}
