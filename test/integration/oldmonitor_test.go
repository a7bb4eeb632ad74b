package integration

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// recorded is the monitor as it was when protocol version 1 was current, built
// with `make build` and compressed with gzip -9n. It is never built anew: a
// later release adds its own record beside it.
const recorded = "testdata/ocid-monitor.protocol1.amd64.gz"

// TestOldMonitor: a pod whose monitor is of an older release lives on under a
// new daemon, and is served in every way that its monitor knows.
func TestOldMonitor(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the recorded monitor is an amd64 program")
	}
	old := unpack(t, recorded)
	e, ctx := own(t, harness.Options{Progress: os.Stderr, ExtraTOML: "[runtime]\nmonitor_path = \"" + old + "\"\n"})
	must[string](t)(e.Pull(ctx, harness.Busybox))
	pod := e.Pod("old", false)
	c := harness.Shell("main", `echo before; trap 'echo term; exit 7' TERM; while :; do sleep 0.1; done`)
	c.LogPath = "main.log"
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	if !usesMonitor(e, old) {
		t.Fatal("the pod does not run under the recorded monitor")
	}

	check(t, e.Signal(unix.SIGKILL))
	b := must[[]byte](t)(os.ReadFile(e.Config))
	check(t, os.WriteFile(e.Config, []byte(strings.Replace(string(b), "monitor_path", "# monitor_path", 1)), 0o644))
	check(t, e.Start(ctx))

	st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("after the daemon's change the container is %v: %s", st.State, st.Message)
	}
	if r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "echo", "here")); string(r.Stdout) != "here\n" {
		t.Errorf("exec printed %q", r.Stdout)
	}
	_, err := e.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	check(t, err)
	_, err = e.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	})
	check(t, err)
	// A second container, made by the new daemon under the old monitor.
	second := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("second", harness.Forever)))
	check(t, e.StopContainer(ctx, second, 0))
	check(t, e.RemoveContainer(ctx, second))
	// A pod of now, beside it, has a monitor of now.
	now := e.Pod("now", true)
	nowID, _, err := e.Up(ctx, now, "", harness.Shell("main", harness.Forever))
	check(t, err)
	if !usesMonitor(e, filepath.Join(e.Bin, "ocid-monitor")) {
		t.Error("a new pod does not run under the new monitor")
	}
	check(t, e.Down(ctx, nowID))

	check(t, e.StopContainer(ctx, id, 10))
	if st = must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); st.ExitCode != 7 {
		t.Errorf("exit code %d (%s), want the handler's 7", st.ExitCode, st.Message)
	}
	log := string(must[[]byte](t)(os.ReadFile(st.LogPath)))
	if !strings.Contains(log, " before\n") || !strings.Contains(log, " term\n") {
		t.Errorf("the log is\n%s", log)
	}
	check(t, e.Down(ctx, podID))
	if usesMonitor(e, old) {
		t.Error("the old monitor outlived its pod")
	}
}

func usesMonitor(e *harness.Env, path string) bool {
	for _, p := range e.Processes() {
		if p.Exe == path {
			return true
		}
	}
	return false
}

func unpack(t *testing.T, file string) string {
	t.Helper()
	f := must[*os.File](t)(os.Open(file))
	defer f.Close()
	z := must[*gzip.Reader](t)(gzip.NewReader(f))
	path := filepath.Join(t.TempDir(), "ocid-monitor")
	out := must[*os.File](t)(os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755))
	_, err := io.Copy(out, z)
	check(t, err)
	check(t, out.Close())
	return path
}
