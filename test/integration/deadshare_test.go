package integration

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/deadfs"
	"github.com/ocid-io/ocid/test/harness"
)

// TestDeadShare: a volume whose server is dead fails its own container, in
// bounded time, holds nobody else up and leaves nothing hanging in the daemon.
func TestDeadShare(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE")
	}
	e, ctx := env(t)
	dir := filepath.Join(e.Dir, "share")
	check(t, os.MkdirAll(dir, 0o755))
	dead := must[*deadfs.FS](t)(deadfs.Mount(dir, false))
	t.Cleanup(func() { dead.Close(); os.RemoveAll(dir) })
	pod := e.Pod("share", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	before := goroutines(t, ctx, e)
	c := harness.Shell("main", harness.Forever)
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/share", HostPath: filepath.Join(dir, "volume")}, {ContainerPath: "/top", HostPath: dir}}
	failed := make(chan error, 1)
	go func() {
		_, err := e.CreateContainer(ctx, podID, pod, c)
		failed <- err
	}()
	other := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("other", harness.Forever)))
	wantSh(t, ctx, e, other, "echo fine", "fine")
	select {
	case err := <-failed:
		t.Fatalf("it did not wait for the share at all: %v", err)
	default:
	}
	if err := <-failed; status.Code(err) != codes.Unavailable {
		t.Errorf("a dead share: %v, want Unavailable", err)
	}
	begin := time.Now()
	if _, err := e.CreateContainer(ctx, podID, pod, c); status.Code(err) != codes.Unavailable || time.Since(begin) > 5*time.Second {
		t.Errorf("the same share again: %v after %v", err, time.Since(begin))
	}
	check(t, e.RemoveContainer(ctx, other))
	if after := goroutines(t, ctx, e); after > before+2 { // the connection's own
		t.Errorf("%d goroutines, %d before", after, before)
	}
	dead.Close()
	check(t, os.MkdirAll(filepath.Join(dir, "volume"), 0o755))
	for {
		if _, err := e.CreateContainer(ctx, podID, pod, c); err == nil {
			break
		} else if status.Code(err) != codes.Unavailable {
			t.Fatalf("when the share is back: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // until the kernel has ended who hung
	}
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
}

func goroutines(t *testing.T, ctx context.Context, e *harness.Env) int {
	t.Helper()
	text := must[string](t)(debugGet(ctx, e, "/debug/pprof/goroutine?debug=1"))
	m := regexp.MustCompile(`total (\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no number of goroutines in %.200s", text)
	}
	return must[int](t)(strconv.Atoi(m[1]))
}
