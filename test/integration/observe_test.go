package integration

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// collector is an OTLP collector that keeps what it gets.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracepb.Span
}

func (c *collector) Export(_ context.Context, req *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, s := range r.ScopeSpans {
			c.spans = append(c.spans, s.Spans...)
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

// tree renders the spans of one trace below a span, each as its path of names.
func (c *collector) tree(trace, root string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	children := map[string][]*tracepb.Span{}
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == trace {
			parent := hex.EncodeToString(s.ParentSpanId)
			children[parent] = append(children[parent], s)
		}
	}
	var out []string
	var walk func(id, path string)
	walk = func(id, path string) {
		for _, s := range children[id] {
			p := strings.TrimPrefix(path+"/"+s.Name, "/")
			out = append(out, p)
			walk(hex.EncodeToString(s.SpanId), p)
		}
	}
	walk(root, "")
	slices.Sort(out)
	return out
}

func TestTrace(t *testing.T) {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	col := &collector{}
	g := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(g, col)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	// A share of nothing: what the caller has decided to trace is traced still.
	e, ctx := own(t, harness.Options{ExtraTOML: fmt.Sprintf("[tracing]\nendpoint = \"http://%s\"\nsampling = 0.0\n", l.Addr())})
	const trace, root = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-"+root+"-01")
	must[string](t)(e.Pull(traced, harness.Busybox))
	podID, _, err := e.Up(traced, e.Pod("traced", false), "", harness.Shell("main", harness.Forever))
	check(t, err)
	check(t, e.Down(ctx, podID))
	check(t, e.Signal(unix.SIGTERM)) // flushes
	got := col.tree(trace, root)
	for _, want := range []string{
		"PullImage", "PullImage/pull-resolve", "PullImage/pull-copy", "PullImage/pull-copy/pull-layer", "PullImage/pull-commit",
		"RunPodSandbox", "RunPodSandbox/monitor", "RunPodSandbox/namespaces", "RunPodSandbox/cni-add",
		"RunPodSandbox/cni-add/cni ADD", "RunPodSandbox/cni-add/cni ADD/cni-plugin",
		"CreateContainer", "CreateContainer/rootfs", "CreateContainer/spec", "CreateContainer/engine-create",
		"StartContainer", "StartContainer/engine-start",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no span %q in the trace:\n%s", want, strings.Join(got, "\n"))
		}
	}
	for _, s := range got {
		if strings.HasPrefix(s, "StopPodSandbox") {
			t.Errorf("a call outside the trace is in it: %s", s)
		}
	}
	col.mu.Lock()
	defer col.mu.Unlock()
	for _, s := range col.spans {
		if hex.EncodeToString(s.TraceId) != trace {
			t.Errorf("nothing else was to be sampled, and %s was", s.Name)
		}
	}
}

// debugGet asks the debug socket.
func debugSocket(t *testing.T, ctx context.Context, e *harness.Env, path string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(e.RunRoot, "debug.sock"))
	}}}
	return httpGet(t, ctx, &c, "http://ocid"+path)
}

func httpGet(t *testing.T, ctx context.Context, c *http.Client, url string) string {
	t.Helper()
	req := must[*http.Request](t)(http.NewRequestWithContext(ctx, http.MethodGet, url, nil))
	resp, err := c.Do(req)
	check(t, err)
	defer resp.Body.Close()
	b := must[[]byte](t)(io.ReadAll(resp.Body))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s\n%s", url, resp.Status, b)
	}
	return string(b)
}

func freePort(t *testing.T) string {
	t.Helper()
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().String()
}

func TestMetricsAndState(t *testing.T) {
	address := freePort(t)
	e, ctx := own(t, harness.Options{ExtraTOML: fmt.Sprintf("[metrics]\nlisten = %q\n", address)})
	must[string](t)(e.Pull(ctx, harness.Busybox))
	ctr := harness.Shell("main", harness.Forever)
	ctr.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte("s3cr3t-in-the-environment")}}
	podID, _, err := e.Up(ctx, e.Pod("seen", false), "", ctr)
	check(t, err)
	if _, err := e.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: strings.Repeat("0", 64)}); err == nil {
		t.Fatal("started what does not exist")
	}
	metrics := httpGet(t, ctx, http.DefaultClient, "http://"+address+"/metrics")
	for _, want := range []string{
		`ocid_operations_total{code="OK",operation="RunPodSandbox"} 1`,
		`ocid_operations_total{code="NotFound",operation="StartContainer"} 1`,
		`ocid_operation_seconds_bucket{operation="CreateContainer",le="+Inf"} 1`,
		`ocid_stage_seconds_count{stage="engine-create"} 1`,
		`ocid_cni_operations_total{operation="ADD",result="ok"} 1`,
		`ocid_pulls_total{result="ok"} 1`,
		`ocid_pull_layers_total{result="downloaded"}`,
		`ocid_pods{state="ready"} 1`, `ocid_containers{state="running"} 1`,
		`ocid_images 1`, `ocid_root_file_systems 1`, `ocid_monitors 1`, `ocid_monitors_started_total 1`,
		`ocid_leaks_total{kind="pod"} 0`, `ocid_info{version=`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(metrics, "ocid_pull_bytes_total 0\n") {
		t.Error("a pull of no bytes")
	}
	if st, err := os.Stat(filepath.Join(e.RunRoot, "debug.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the debug socket has mode %v, %v", st.Mode(), err)
	}
	text := debugSocket(t, ctx, e, "/state")
	if strings.Contains(text, "s3cr3t") {
		t.Error("the state shows a secret")
	}
	var state struct {
		Pods, Containers []struct{ ID string }
		Counts           struct{ Monitors int }
		Goroutines       int
		Operations       []any
	}
	check(t, json.Unmarshal([]byte(text), &state))
	if len(state.Pods) != 1 || state.Pods[0].ID != podID || len(state.Containers) != 1 || state.Counts.Monitors != 1 || state.Goroutines == 0 || state.Operations == nil {
		t.Errorf("state: %+v", state)
	}
	if !strings.Contains(debugSocket(t, ctx, e, "/debug/pprof/goroutine?debug=1"), "goroutine profile") {
		t.Error("no profile")
	}
	check(t, e.Down(ctx, podID))
	checkLeaksCounted(t, ctx, e)
}

// checkLeaksCounted leaves what no record owns while the daemon is away.
func checkLeaksCounted(t *testing.T, ctx context.Context, e *harness.Env) {
	t.Helper()
	check(t, e.Signal(unix.SIGKILL))
	check(t, os.MkdirAll(filepath.Join(e.RunRoot, "pods", strings.Repeat("e", 64)), 0o755))
	check(t, e.Start(ctx))
	if m := debugSocket(t, ctx, e, "/metrics"); !strings.Contains(m, `ocid_leaks_total{kind="pod"} 1`) {
		t.Errorf("a leaked pod was not counted")
	}
}

func TestReload(t *testing.T) {
	e, ctx := own(t, harness.Options{})
	dir := e.Config + ".d"
	check(t, os.Mkdir(dir, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "10.toml"), []byte("[network]\ntimeout = '7s'\n[runtime.handlers.again]\npath = '/usr/sbin/runc'\n"), 0o644))
	reload := func(want string) {
		t.Helper()
		offset := len(e.LogTail(1 << 20))
		check(t, unix.Kill(e.PID(), unix.SIGHUP))
		for !strings.Contains(e.LogTail(1 << 20)[offset:], want) {
			select {
			case <-ctx.Done():
				t.Fatalf("the log never says %q", want)
			case <-time.After(5 * time.Millisecond): // nothing announces a line of the log
			}
		}
	}
	reload("the configuration was reloaded")
	if !strings.Contains(e.LogTail(1<<20), "takes effect at the next restart\" key=network.timeout running=\"\\\"2m0s\\\"\" file=\"\\\"7s\\\"\"") {
		t.Errorf("the log does not say what needs a restart:\n%s", e.LogTail(10))
	}
	st := must[*runtimeapi.StatusResponse](t)(e.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}))
	var names []string
	for _, h := range st.RuntimeHandlers {
		names = append(names, h.Name)
	}
	if !slices.Contains(names, "again") {
		t.Errorf("the new handler is not there: %v", names)
	}
	if _, err := e.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: e.Pod("h", true), RuntimeHandler: "again"}); err != nil {
		t.Errorf("a pod of the new handler: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "10.toml"), []byte("nonsense = 1\n"), 0o644))
	reload("the old one stays in force")
	if out, err := e.Ocid(ctx, "config", "check"); err == nil || !strings.Contains(out, "10.toml") || !strings.Contains(out, "nonsense") {
		t.Errorf("config check: %v\n%s", err, out)
	}
}

func TestRuntimeNotReady(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"ocid-monitor"} {
		b := must[[]byte](t)(os.ReadFile(filepath.Join(must[string](t)(harness.RepoRoot()), "bin", name)))
		check(t, os.WriteFile(filepath.Join(bin, name), b, 0o755))
	}
	e, ctx := own(t, harness.Options{ExtraTOML: fmt.Sprintf("[runtime]\nmonitor_path = %q\n", filepath.Join(bin, "ocid-monitor"))})
	ready := func() *runtimeapi.RuntimeCondition {
		st := must[*runtimeapi.StatusResponse](t)(e.Runtime.Status(ctx, &runtimeapi.StatusRequest{}))
		return st.Status.Conditions[0]
	}
	if c := ready(); !c.Status {
		t.Fatalf("not ready: %v", c)
	}
	check(t, os.Remove(filepath.Join(bin, "ocid-monitor")))
	if c := ready(); c.Status || !strings.Contains(c.Message, "ocid-monitor") {
		t.Errorf("without its monitor the runtime says %v", c)
	}
}

// A root that turns read-only under the daemon is told by Status and doctor.
func TestDoctorAndReadOnlyRoot(t *testing.T) {
	e, ctx := own(t, harness.Options{TmpRoot: "256m"})
	failed := func() []string {
		out, err := e.Ocid(ctx, "doctor", "-o", "json")
		end := strings.LastIndexByte(out, ']') + 1
		var found []struct{ Area, Check, Status, Found, Cost, Mend string }
		if jerr := json.Unmarshal([]byte(out[:end]), &found); jerr != nil {
			t.Fatalf("%v in\n%s", jerr, out)
		}
		var names []string
		for _, f := range found {
			if f.Status != "ok" && (f.Cost == "" || f.Mend == "") {
				t.Errorf("no cost or cure: %+v", f)
			}
			if f.Status == "fail" {
				names = append(names, f.Area+"/"+f.Check)
			}
		}
		if (err != nil) != (len(names) > 0) {
			t.Errorf("doctor ended with %v, and what failed is %v", err, names)
		}
		return names
	}
	if names := failed(); len(names) != 0 {
		t.Errorf("on a machine that runs pods, doctor says that %v failed", names)
	}
	check(t, unix.Mount("", e.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if names := failed(); !slices.Contains(names, "mounts/root writable") {
		t.Errorf("doctor does not see that the root is read-only: %v", names)
	}
	st := must[*runtimeapi.StatusResponse](t)(e.Runtime.Status(ctx, &runtimeapi.StatusRequest{}))
	if c := st.Status.Conditions[0]; c.Status || !strings.Contains(c.Message, e.Root) {
		t.Errorf("with a read-only root the runtime says %v", c)
	}
	check(t, unix.Mount("", e.Root, "", unix.MS_REMOUNT, ""))
}
