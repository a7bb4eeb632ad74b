package integration

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/test/harness"
)

func TestCrictl(t *testing.T) {
	cache := must[string](t)(harness.CacheDir())
	bin := filepath.Join(cache, "bin", "crictl")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("needs crictl (hack/tools crictl)")
	}
	e, ctx := env(t)
	dir := t.TempDir()
	crictl := func(args ...string) string {
		t.Helper()
		return runCrictl(t, ctx, bin, e, args...)
	}
	write := func(name string, v any) string {
		p := filepath.Join(dir, name)
		check(t, os.WriteFile(p, must[[]byte](t)(json.Marshal(v)), 0o644))
		return p
	}
	pod := write("pod.json", map[string]any{
		"metadata":      map[string]any{"name": "ctl", "namespace": "test", "uid": "crictl"},
		"log_directory": filepath.Join(dir, "logs"),
		"linux":         map[string]any{"cgroup_parent": e.CgroupParent},
	})
	ctr := write("ctr.json", map[string]any{
		"metadata": map[string]any{"name": "main"},
		"image":    map[string]any{"image": harness.Busybox},
		"command":  []string{"sh", "-c", "echo from-crictl; " + harness.Forever},
		"log_path": "main.log",
	})
	const extra = "gcr.io/k8s-staging-cri-tools/test-image-1:latest"
	crictl("pull", extra)
	if out := crictl("images"); !strings.Contains(out, "gcr.io/k8s-staging-cri-tools/test-image-1") {
		t.Errorf("images:\n%s", out)
	}
	podID := crictl("runp", pod)
	id := crictl("create", podID, ctr, pod)
	crictl("start", id)
	if out := crictl("exec", "-s", id, "echo", "inside"); out != "inside" {
		t.Errorf("exec -s printed %q", out)
	}
	if out := crictl("logs", id); !strings.Contains(out, "from-crictl") {
		t.Errorf("logs printed %q", out)
	}
	if out := crictl("stats", "-o", "json", id); !strings.Contains(out, id) {
		t.Errorf("stats printed %q", out)
	}
	if out := crictl("ps", "-q"); !strings.Contains(out, id) {
		t.Errorf("ps printed %q", out)
	}
	crictl("stop", id)
	crictl("rm", id)
	crictl("stopp", podID)
	crictl("rmp", podID)
	crictl("rmi", extra)
}

func runCrictl(t *testing.T, ctx context.Context, bin string, e *harness.Env, args ...string) string {
	t.Helper()
	endpoint := "unix://" + e.Socket
	c := exec.CommandContext(ctx, bin, append([]string{"--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "60s"}, args...)...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("crictl %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	if args[0] == "logs" {
		return string(out) + stderr.String()
	}
	return strings.TrimSpace(string(out))
}
