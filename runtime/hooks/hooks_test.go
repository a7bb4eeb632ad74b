package hooks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
}

func hook(path, when, stage string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": %q}, "when": %s, "stages": [%q]}`, path, when, stage)
}

func run(t *testing.T, h *Hooks, p runtime.Pod, c runtime.ContainerConfig) (*specs.Spec, error) {
	t.Helper()
	s := &specs.Spec{Process: &specs.Process{Args: []string{"/bin/server"}}, Root: &specs.Root{Path: "/r"}, Linux: &specs.Linux{}}
	return s, h.AdjustSpec(t.Context(), p, &runtime.Container{Config: c}, s)
}

func TestMatching(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "always.json", hook("/bin/true", `{"always": true}`, "createRuntime"))
	write(t, dir, "annotated.json", hook("/bin/true", `{"annotations": {"^a$": "^b$"}}`, "startContainer"))
	write(t, dir, "command.json", hook("/bin/true", `{"commands": [".*/server"]}`, "createContainer"))
	write(t, dir, "mounts.json", hook("/bin/true", `{"hasBindMounts": true}`, "poststop"))
	h := New([]string{filepath.Join(dir, "absent"), dir}, nil)
	s, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if k := s.Hooks; len(k.CreateRuntime) != 1 || len(k.StartContainer) != 0 || len(k.CreateContainer) != 1 || len(k.Poststop) != 0 {
		t.Errorf("plain container: %+v", k)
	}
	s, err = run(t, h, runtime.Pod{Config: runtime.PodConfig{Annotations: map[string]string{"a": "b"}}},
		runtime.ContainerConfig{Mounts: []runtime.Mount{{}}})
	if err != nil {
		t.Fatal(err)
	}
	if k := s.Hooks; len(k.StartContainer) != 1 || len(k.Poststop) != 1 {
		t.Errorf("annotated container with a mount: %+v", k)
	}
}

func TestChangesAreSeen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hooks.d")
	h := New([]string{dir}, nil)
	if s, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{}); err != nil || s.Hooks != nil {
		t.Fatalf("without a directory: %v %v", s.Hooks, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.json", hook("/bin/true", `{"always": true}`, "poststart"))
	if s, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{}); err != nil || s.Hooks == nil || len(s.Hooks.Poststart) != 1 {
		t.Fatalf("a new file: %v %v", s.Hooks, err)
	}
	write(t, dir, "b.json", `{"version": "9"}`)
	_, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{})
	if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "b.json") {
		t.Fatalf("a malformed file: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "b.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{}); err != nil {
		t.Fatalf("after it was removed: %v", err)
	}
	write(t, dir, "c.json", hook("/no/such/program", `{"always": true}`, "poststart"))
	if s, err := run(t, h, runtime.Pod{}, runtime.ContainerConfig{}); err != nil || len(s.Hooks.Poststart) != 1 {
		t.Fatalf("a hook without its program: %v %v", s.Hooks, err)
	}
}

func TestPrecreate(t *testing.T) {
	for name, c := range map[string]struct {
		script, hostname string
		want             error
		text             string
	}{
		"changes":  {script: `sed 's/"path":"\/r"/"path":"\/changed"/'`},
		"fails":    {script: `echo why >&2; exit 3`, text: "why"},
		"no spec":  {script: `cat >/dev/null; echo '{}'`, text: "lacks"},
		"not json": {script: `cat >/dev/null; echo hello`, text: "did not print"},
		"hangs":    {script: `exec sleep 60`, want: runtime.ErrTimeout},
		"floods":   {script: `cat >/dev/null; head -c 20000000 /dev/zero`, text: "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, "filter", "#!/bin/sh\n"+c.script+"\n")
			write(t, dir, "h.json", fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": %q, "timeout": 1, "env": ["PATH=/bin:/usr/bin"]}, "when": {"always": true}, "stages": ["precreate"]}`, filepath.Join(dir, "filter")))
			begin := time.Now()
			s, err := run(t, New([]string{dir}, nil), runtime.Pod{}, runtime.ContainerConfig{})
			switch {
			case c.want == nil && c.text == "":
				if err != nil || s.Root.Path != "/changed" {
					t.Errorf("root %q, error %v", s.Root.Path, err)
				}
			case c.want != nil && !errors.Is(err, c.want), err == nil, !strings.Contains(err.Error(), c.text):
				t.Errorf("error %v, want %v %q", err, c.want, c.text)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}
