package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

func TestVersionAndStatus(t *testing.T) {
	e, ctx := env(t)
	v := must[*runtimeapi.VersionResponse](t)(e.Runtime.Version(ctx, &runtimeapi.VersionRequest{}))
	if v.RuntimeName != "ocid" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version is %v", v)
	}
	s := must[*runtimeapi.StatusResponse](t)(e.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}))
	for _, c := range s.Status.Conditions {
		if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
			t.Errorf("condition %s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	if !slices.ContainsFunc(s.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "runc" }) {
		t.Errorf("handler runc is not among %v", s.RuntimeHandlers)
	}
}

func TestImages(t *testing.T) {
	e, ctx := env(t)
	const name = "gcr.io/k8s-staging-cri-tools/test-image-tags"
	var ids []string
	for _, tag := range []string{"1", "2", "3"} {
		ids = append(ids, must[string](t)(e.Pull(ctx, name+":"+tag)))
	}
	if ids[0] != ids[1] || ids[1] != ids[2] {
		t.Fatalf("one image has several ids: %v", ids)
	}
	st := must[*runtimeapi.ImageStatusResponse](t)(e.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name + ":2"}}))
	if st.Image == nil || st.Image.Id != ids[0] || len(st.Image.RepoTags) != 3 || len(st.Image.RepoDigests) == 0 {
		t.Errorf("status of an image with three tags: %v", st.Image)
	}
	fs := must[*runtimeapi.ImageFsInfoResponse](t)(e.Image.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}))
	if len(fs.ImageFilesystems) != 1 || fs.ImageFilesystems[0].UsedBytes.GetValue() == 0 {
		t.Errorf("ImageFsInfo is %v", fs)
	}
	for range 2 { // removing what is gone is no error
		_, err := e.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ids[0]}})
		check(t, err)
	}
	st = must[*runtimeapi.ImageStatusResponse](t)(e.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name + ":1"}}))
	if st.Image != nil {
		t.Errorf("the image is still there: %v", st.Image)
	}
}

func TestPodLifecycle(t *testing.T) {
	for _, c := range []struct {
		name, handler string
		host          bool
	}{{"host network", "", true}, {"bridge", "", false}, {"runc, bridge", "runc", false}} {
		t.Run(c.name, func(t *testing.T) {
			e, ctx := env(t)
			lifecycle(t, ctx, e, c.handler, c.host)
		})
	}
}

func lifecycle(t *testing.T, ctx context.Context, e *harness.Env, handler string, host bool) {
	pod := e.Pod("life", host)
	pod.Hostname = "life"
	podID := must[string](t)(e.RunPod(ctx, pod, handler))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	c := harness.Shell("main", "echo to-out; echo to-err >&2; "+harness.Forever)
	c.Envs = []*runtimeapi.KeyValue{{Key: "COLOUR", Value: []byte("blue")}}
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	id := must[string](t)(e.CreateContainer(ctx, podID, pod, c))
	if s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); s.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state after create is %v", s.State)
	}
	check(t, e.StartContainer(ctx, id))
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "echo $COLOUR; echo oops >&2; exit 3"))
	if string(r.Stdout) != "blue\n" || string(r.Stderr) != "oops\n" || r.ExitCode != 3 {
		t.Errorf("exec gave %q, %q, %d", r.Stdout, r.Stderr, r.ExitCode)
	}
	if !host {
		ip := must[string](t)(e.PodIP(ctx, podID))
		if net.ParseIP(ip) == nil {
			t.Errorf("the pod's address is %q", ip)
		}
		r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "hostname"))
		if string(r.Stdout) != "life\n" {
			t.Errorf("hostname is %q", r.Stdout)
		}
	}
	stats := must[*runtimeapi.ContainerStatsResponse](t)(e.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))
	if stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || stats.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("stats are %v", stats.Stats)
	}
	check(t, e.StopContainer(ctx, id, 10))
	s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 || s.FinishedAt < s.StartedAt {
		t.Errorf("after stop: %v", s)
	}
	log := must[[]byte](t)(os.ReadFile(filepath.Join(pod.LogDirectory, "main.log")))
	for _, want := range []string{" stdout F to-out\n", " stderr F to-err\n"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	for range 2 {
		check(t, e.RemoveContainer(ctx, id))
	}
	for range 2 {
		check(t, e.StopPod(ctx, podID))
	}
	for range 2 {
		check(t, e.RemovePod(ctx, podID))
	}
	check(t, os.RemoveAll(pod.LogDirectory))
}

func TestWebServerOnBridge(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("web", false)
	pod.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18080}}
	podID, _, err := e.Up(ctx, pod, "", harness.Shell("web", "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp"))
	check(t, err)
	ip := must[string](t)(e.PodIP(ctx, podID))
	for _, addr := range []string{ip + ":80", "127.0.0.1:18080"} {
		if body := fetch(t, ctx, "http://"+addr+"/"); body != "hello\n" {
			t.Errorf("%s answers %q", addr, body)
		}
	}
	check(t, e.Down(ctx, podID))
}

func fetch(t *testing.T, ctx context.Context, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		req := must[*http.Request](t)(http.NewRequestWithContext(ctx, http.MethodGet, url, nil))
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			defer resp.Body.Close()
			return string(must[[]byte](t)(io.ReadAll(resp.Body)))
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // until the server listens
	}
}

func TestRetriesByName(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("twice", true)
	var pods, ids []string
	for range 2 {
		pods = append(pods, must[string](t)(e.RunPod(ctx, pod, "")))
	}
	if pods[0] != pods[1] {
		t.Errorf("one pod name gave two pods: %v", pods)
	}
	c := harness.Shell("twice", harness.Forever)
	for range 2 {
		ids = append(ids, must[string](t)(e.CreateContainer(ctx, pods[0], pod, c)))
	}
	if ids[0] != ids[1] {
		t.Errorf("one container name gave two containers: %v", ids)
	}
	// Many at once join one operation.
	results := make(chan string, 8)
	crowd := e.Pod("crowd", true)
	for range cap(results) {
		go func() {
			id, err := e.RunPod(ctx, crowd, "")
			results <- fmt.Sprint(id, err)
		}()
	}
	first := <-results
	for range cap(results) - 1 {
		if r := <-results; r != first {
			t.Errorf("concurrent calls for one name gave %s and %s", first, r)
		}
	}
	check(t, e.Down(ctx, must[string](t)(e.RunPod(ctx, crowd, ""))))
	check(t, e.Down(ctx, pods[0]))
}

func TestClientThatGivesUp(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("hasty", false)
	hasty, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	_, first := e.RunPod(hasty, pod, "")
	id := must[string](t)(e.RunPod(ctx, pod, ""))
	list := must[*runtimeapi.ListPodSandboxResponse](t)(e.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))
	n := 0
	for _, p := range list.Items {
		if p.Metadata.Uid == pod.Metadata.Uid {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d pods of one name, first call: %v", n, first)
	}
	check(t, e.Down(ctx, id))
}

func TestDaemonRestart(t *testing.T) {
	e, ctx := env(t)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		pod := e.Pod("survivor", false)
		podID, id, err := e.Up(ctx, pod, "", harness.Shell("main", "echo before; "+harness.Forever))
		check(t, err)
		short := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("short", "sleep 0.3; exit 7")))
		check(t, e.Signal(sig))
		check(t, e.Start(ctx))
		s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
		if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("after %v the container is %v", sig, s.State)
		}
		r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "true"))
		if r.ExitCode != 0 {
			t.Errorf("exec after %v gave %d", sig, r.ExitCode)
		}
		if s := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, short)); s.ExitCode != 7 {
			t.Errorf("a container that ended around %v has exit code %d, want 7", sig, s.ExitCode)
		}
		check(t, e.Down(ctx, podID))
	}
}
