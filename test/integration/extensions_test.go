package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// put writes a file below the environment's directory and returns its path.
func put(t *testing.T, e *harness.Env, name, content string) string {
	t.Helper()
	p := filepath.Join(e.Dir, name)
	check(t, os.MkdirAll(filepath.Dir(p), 0o755))
	check(t, os.WriteFile(p, []byte(content), 0o755))
	return p
}

// ownConfigured starts a daemon whose configuration may name its directory as DIR.
func ownConfigured(t *testing.T, toml string, before ...func(*harness.Env)) (*harness.Env, context.Context) {
	t.Helper()
	e, ctx := own(t, harness.Options{Prelude: func(e *harness.Env) error {
		f, err := os.OpenFile(e.Config, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		for _, do := range before {
			do(e)
		}
		_, err = f.WriteString("\n" + strings.ReplaceAll(toml, "DIR", e.Dir))
		return err
	}})
	check(t, warm(ctx, e))
	return e, ctx
}

func says(t *testing.T, ctx context.Context, e *harness.Env, id, script string) string {
	t.Helper()
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", script))
	if r.ExitCode != 0 {
		t.Errorf("%q ended with %d: %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

const cdiFile = `{
  "cdiVersion": "0.6.0", "kind": "example.com/gpu",
  "containerEdits": {"env": ["GPU_VENDOR=example"]},
  "devices": [{"name": "one", "containerEdits": {
    "env": ["GPU=one"],
    "deviceNodes": [{"path": "/dev/gpu-one", "hostPath": "/dev/zero"}],
    "mounts": [{"hostPath": "DIR/driver", "containerPath": "/opt/driver", "options": ["ro", "rbind"]}],
    "hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "cat > DIR/cdi-hook"]}]}}]
}`

func TestCDI(t *testing.T) {
	e, ctx := ownConfigured(t, "[runtime]\ncdi_dirs = [\"DIR/cdi\"]\nhooks_dirs = []\n")
	noLeaks(t, e)
	for _, handler := range []string{"", "runc"} {
		pod := e.Pod("cdi", true)
		podID := must[string](t)(e.RunPod(ctx, pod, handler))
		c := harness.Shell("main", harness.Forever)
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/gpu=one"}}
		if handler == "" {
			_, err := e.CreateContainer(ctx, podID, pod, c)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "example.com/gpu=one") {
				t.Fatalf("a device that no file knows gave %v", err)
			}
		}
		put(t, e, "driver/lib.so", "driver")
		put(t, e, "cdi/gpu.json", strings.ReplaceAll(cdiFile, "DIR", e.Dir))
		id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
		if got := says(t, ctx, e, id, "echo $GPU_VENDOR $GPU; cat /opt/driver/lib.so; head -c 3 /dev/gpu-one | wc -c"); got != "example one\ndriver3" {
			t.Errorf("handler %q: the container sees %q", handler, got)
		}
		if b := must[[]byte](t)(os.ReadFile(filepath.Join(e.Dir, "cdi-hook"))); !strings.Contains(string(b), id) {
			t.Errorf("the hook was given %q", b)
		}
		check(t, os.Remove(filepath.Join(e.Dir, "cdi-hook")))
		check(t, e.Down(ctx, podID))
	}
}

func hookFile(path, args, when, stage string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": %q, "args": ["sh", "-c", %q], "env": ["PATH=/usr/bin:/bin"]}, "when": %s, "stages": [%q]}`, path, args, when, stage)
}

func TestOCIHooks(t *testing.T) {
	e, ctx := ownConfigured(t, "[runtime]\nhooks_dirs = [\"DIR/hooks.d\"]\n")
	noLeaks(t, e)
	record := func(stage string) string { return "cat >> " + filepath.Join(e.Dir, stage) }
	put(t, e, "hooks.d/a.json", hookFile("/bin/sh", record("started"), `{"annotations": {"^hook$": "^yes$"}}`, "poststart"))
	put(t, e, "hooks.d/b.json", hookFile("/bin/sh", record("stopped"), `{"annotations": {"^hook$": "^yes$"}}`, "poststop"))
	put(t, e, "hooks.d/c.json", hookFile("/bin/sh", `sed 's/"PATH=/"FILTERED=1","PATH=/'`, `{"annotations": {"^hook$": "^yes$"}}`, "precreate"))
	for _, handler := range []string{"", "runc"} {
		pod := e.Pod("hooked", true)
		podID := must[string](t)(e.RunPod(ctx, pod, handler))
		plain := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("plain", harness.Forever)))
		c := harness.Shell("hooked", harness.Forever)
		c.Annotations = map[string]string{"hook": "yes"}
		id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
		if got := says(t, ctx, e, id, "echo $FILTERED"); got != "1" {
			t.Errorf("handler %q: the precreate hook's variable is %q", handler, got)
		}
		check(t, e.Down(ctx, podID))
		for _, stage := range []string{"started", "stopped"} {
			b := must[[]byte](t)(os.ReadFile(filepath.Join(e.Dir, stage)))
			if !strings.Contains(string(b), id) || strings.Contains(string(b), plain) {
				t.Errorf("handler %q: hook %s saw %q", handler, stage, b)
			}
			check(t, os.Remove(filepath.Join(e.Dir, stage)))
		}
	}
}

// TestFailingHooks: whatever stage fails, the error names it and nothing is left.
func TestFailingHooks(t *testing.T) {
	e, ctx := ownConfigured(t, "[runtime]\nhooks_dirs = [\"DIR/hooks.d\"]\n")
	noLeaks(t, e)
	for _, handler := range []string{"", "runc"} {
		for _, stage := range []string{"precreate", "createRuntime", "createContainer"} {
			pod := e.Pod("fail", true)
			podID := must[string](t)(e.RunPod(ctx, pod, handler))
			f := put(t, e, "hooks.d/fail.json", hookFile("/bin/sh", "echo the reason >&2; exit 9", `{"always": true}`, stage))
			_, err := e.CreateContainer(ctx, podID, pod, harness.Shell("main", "true"))
			if err == nil || !strings.Contains(err.Error(), "hook") {
				t.Errorf("handler %q, stage %s: %v", handler, stage, err)
			}
			check(t, os.Remove(f))
			// The name is free again.
			must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("main", "true")))
			check(t, e.Down(ctx, podID))
		}
	}
	for _, handler := range []string{"", "runc"} {
		pod := e.Pod("late", true)
		podID := must[string](t)(e.RunPod(ctx, pod, handler))
		f := put(t, e, "hooks.d/fail.json", hookFile("/bin/sh", "exit 9", `{"always": true}`, "startContainer"))
		id := must[string](t)(e.CreateContainer(ctx, podID, pod, harness.Shell("main", harness.Forever)))
		check(t, os.Remove(f))
		// Some runtimes report it, some have let go of the container by then:
		// it must not run in either case.
		if err := e.StartContainer(ctx, id); err == nil {
			st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id))
			if st.GetExitCode() == 0 {
				t.Errorf("handler %q: the container ran in spite of its startContainer hook", handler)
			}
		}
		check(t, e.Down(ctx, podID))
	}
	pod := e.Pod("bad", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	f := put(t, e, "hooks.d/bad.json", `{"version": "1.0.0"`)
	_, err := e.CreateContainer(ctx, podID, pod, harness.Shell("main", "true"))
	if err == nil || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("a malformed file gave %v", err)
	}
	check(t, os.Remove(f))
	check(t, e.Down(ctx, podID))
}

func TestHandlerConfiguration(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("needs Debian's runc")
	}
	e, ctx := ownConfigured(t, fmt.Sprintf(`
[runtime.handlers.special]
path = %q
allowed_annotations = ["example.com/*"]
default_annotations = ["default=1"]
default_env = ["REGION=north"]
default_ulimits = ["nofile=100:200"]
privileged_without_host_devices = true
container_min_memory = 8388608
base_runtime_spec = "DIR/base.json"
`, runc)+"[runtime]\nhooks_dirs = [\"DIR/hooks.d\"]\n", func(e *harness.Env) {
		put(t, e, "base.json", `{"process": {"env": ["BASE=1"]}, "mounts": [{"destination": "/base", "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"]}]}`)
	})
	first, _, err := e.Up(ctx, e.Pod("first", true), "special", harness.Shell("main", "true"))
	check(t, err)
	check(t, e.Down(ctx, first))
	noLeaks(t, e)
	pod := e.Pod("special", true)
	pod.Linux.SecurityContext.Privileged = true
	pod.Annotations = map[string]string{"example.com/a": "1", "run.oci.x": "2"}
	podID := must[string](t)(e.RunPod(ctx, pod, "special"))
	c := harness.Shell("main", harness.Forever)
	c.Linux.SecurityContext.Privileged = true
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	if got := says(t, ctx, e, id, "echo $REGION $BASE $(ulimit -n); grep -c ' /base tmpfs ' /proc/mounts; ls /dev | grep -c loop0 || true"); got != "north 1 100\n1\n0" {
		t.Errorf("the container sees %q", got)
	}
	b := must[[]byte](t)(os.ReadFile(filepath.Join(e.RunRoot, "pods", podID, "containers", id, "config.json")))
	for text, want := range map[string]bool{`"example.com/a":"1"`: true, `"default":"1"`: true, "run.oci.x": false} {
		if strings.Contains(string(b), text) != want {
			t.Errorf("%s in the OCI spec: %v, want %v", text, !want, want)
		}
	}
	small := harness.Shell("small", "true")
	small.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4 << 20}
	if _, err := e.CreateContainer(ctx, podID, pod, small); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a container with too little memory: %v", err)
	}
	check(t, e.Down(ctx, podID))
}
