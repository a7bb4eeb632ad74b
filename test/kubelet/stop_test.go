package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGracefulStop: preStop runs first, then SIGTERM, and the rest of the grace
// period is not waited for. A container that ignores all that is killed after it.
func TestGracefulStop(t *testing.T) {
	n, ctx := beside(t)
	dir := hostDir(t, n)
	up(ctx, t, n, "polite", fmt.Sprintf(`
  terminationGracePeriodSeconds: 60
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap 'echo term >>/host/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo post-start >>/host/order"]}}
      preStop: {exec: {command: [sh, -c, "sleep 1; echo pre-stop >>/host/order"]}}
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: %s}}]
`, dir))
	up(ctx, t, n, "deaf", `
  terminationGracePeriodSeconds: 3
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap : TERM; while :; do sleep 1; done"]
`)
	start := time.Now()
	check(t, withdraw(ctx, n, "polite"))
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("a container that ends at once took %v", d)
	}
	if got := string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "order")))); got != "post-start\npre-stop\nterm\n" {
		t.Errorf("order: %q", got)
	}
	start = time.Now()
	check(t, withdraw(ctx, n, "deaf"))
	if d := time.Since(start); d < 3*time.Second || d > 30*time.Second {
		t.Errorf("a deaf container with 3 s of grace took %v", d)
	}
}
