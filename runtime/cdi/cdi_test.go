package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

const file = `{
  "cdiVersion": "0.6.0", "kind": "example.com/gpu",
  "containerEdits": {"env": ["VENDOR=example"]},
  "devices": [
    {"name": "one", "containerEdits": {
      "env": ["GPU=one"],
      "deviceNodes": [{"path": "/dev/gpu-one", "hostPath": "/dev/null"}],
      "mounts": [{"hostPath": "/etc", "containerPath": "/opt/driver", "options": ["ro", "rbind"]}],
      "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}]}}]
}`

func fixture(t *testing.T) (*Injector, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gpu.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return New([]string{dir, filepath.Join(dir, "absent")}, nil), dir
}

func base() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}, Linux: &specs.Linux{}}
}

func TestInject(t *testing.T) {
	i, _ := fixture(t)
	for name, c := range map[string]runtime.ContainerConfig{
		"request":    {CDIDevices: []string{"example.com/gpu=one"}},
		"annotation": {Annotations: map[string]string{"cdi.k8s.io/plugin_x": "example.com/gpu=one"}},
		"both":       {CDIDevices: []string{"example.com/gpu=one"}, Annotations: map[string]string{"cdi.k8s.io/plugin_x": "example.com/gpu=one"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			if err := i.AdjustSpec(t.Context(), runtime.Pod{}, &runtime.Container{Config: c}, s); err != nil {
				t.Fatal(err)
			}
			if want := []string{"PATH=/bin", "VENDOR=example", "GPU=one"}; !slices.Equal(s.Process.Env, want) {
				t.Errorf("environment %v, want %v", s.Process.Env, want)
			}
			if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/gpu-one" || s.Linux.Devices[0].Major != 1 || s.Linux.Devices[0].Minor != 3 {
				t.Errorf("devices %+v", s.Linux.Devices)
			}
			if len(s.Mounts) != 1 || s.Mounts[0].Destination != "/opt/driver" {
				t.Errorf("mounts %+v", s.Mounts)
			}
			if s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 {
				t.Errorf("hooks %+v", s.Hooks)
			}
		})
	}
}

func TestNothingAskedReadsNothing(t *testing.T) {
	i, _ := fixture(t)
	c := runtime.Container{Config: runtime.ContainerConfig{Annotations: map[string]string{"a": "b"}}}
	if err := i.AdjustSpec(t.Context(), runtime.Pod{}, &c, base()); err != nil || i.cache != nil {
		t.Fatalf("error %v, cache %v", err, i.cache)
	}
}

func TestUnknownDevice(t *testing.T) {
	i, dir := fixture(t)
	for _, name := range []string{"example.com/gpu=two", "nonsense", "a/b=c/../d"} {
		err := i.AdjustSpec(t.Context(), runtime.Pod{}, &runtime.Container{Config: runtime.ContainerConfig{CDIDevices: []string{name}}}, base())
		if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A broken file is named where it may be the cause, and harms nobody else.
	if err := os.WriteFile(filepath.Join(dir, "bad.json"), []byte(`{"cdiVersion": 7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.Inject(base(), []string{"example.com/gpu=two"}); err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("the broken file is not named: %v", err)
	}
	if err := i.Inject(base(), []string{"example.com/gpu=one"}); err != nil {
		t.Errorf("a broken file took another's device away: %v", err)
	}
	// A device that appears counts at once.
	more := strings.ReplaceAll(file, `"one"`, `"two"`)
	if err := os.WriteFile(filepath.Join(dir, "more.json"), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.Inject(base(), []string{"example.com/gpu=two"}); err != nil {
		t.Errorf("a new file is not seen: %v", err)
	}
}
