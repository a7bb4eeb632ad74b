package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/internal/stages"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("%d, %v: %s", w.Code, err, b)
	}
	return string(b)
}

func TestMetrics(t *testing.T) {
	m := NewMetrics("v1", func(context.Context) Gauges {
		return Gauges{Pods: map[string]int{"ready": 3}, Leaks: map[string]uint64{"pod": 2}, MonitorsLost: 1}
	})
	r := stages.New(m)
	ctx, end := r.Begin(t.Context(), "RunPodSandbox", stages.Attr{Key: "pod", Value: "client-chosen"})
	stages.Start(ctx, "namespaces", stages.Attr{Key: "x", Value: "client-chosen"})()
	_, endCNI := stages.Enter(ctx, "cni ADD")
	endCNI(errors.New("no address"))
	end(status.Error(codes.Unavailable, "client-chosen"))
	m.Pulled("stalled", time.Second)
	m.Layer(true, 1000, time.Second)
	m.Layer(true, -1, time.Second)
	m.Layer(false, 500, 0)
	text := scrape(t, m)
	for _, want := range []string{
		`ocid_operations_total{code="Unavailable",operation="RunPodSandbox"} 1`,
		`ocid_operation_seconds_count{operation="RunPodSandbox"} 1`,
		`ocid_stage_seconds_count{stage="namespaces"} 1`,
		`ocid_cni_operations_total{operation="ADD",result="error"} 1`,
		`ocid_pulls_total{result="stalled"} 1`,
		`ocid_pull_layers_total{result="downloaded"} 2`, `ocid_pull_layers_total{result="present"} 1`,
		`ocid_pull_bytes_total 1000`,
		`ocid_pods{state="ready"} 3`, `ocid_leaks_total{kind="pod"} 2`, `ocid_monitors_lost_total 1`, `ocid_info{version="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "client-chosen") {
		t.Error("what a client sent became a label")
	}
	// Whatever is called, as often as it likes, the number of series is that of the code.
	before := strings.Count(text, "\n")
	for i := range 100 {
		_, end := r.Begin(t.Context(), "RunPodSandbox", stages.Attr{Key: "pod", Value: fmt.Sprint(i)})
		end(status.Error(codes.Unavailable, fmt.Sprint(i)))
	}
	if after := strings.Count(scrape(t, m), "\n"); after != before {
		t.Errorf("%d lines became %d", before, after)
	}
}

func TestRecent(t *testing.T) {
	var r Recent
	log := slog.New(r.Handler(slog.NewTextHandler(io.Discard, nil))).With("pod", "p")
	log.Info("not worth keeping")
	for i := range 2 * keepErrors {
		log.Warn("bad", "n", i, "stack", "long")
	}
	log.Error(strings.Repeat("é", maxError))
	last := r.Last()
	if len(last) != keepErrors {
		t.Fatalf("%d kept", len(last))
	}
	if l := last[keepErrors-2]; l.Text != fmt.Sprintf("bad pod=p n=%d", 2*keepErrors-1) || l.Level != "WARN" {
		t.Errorf("kept %+v", l)
	}
	if l := last[keepErrors-1]; len(l.Text) > maxError || l.Level != "ERROR" {
		t.Errorf("%d bytes kept", len(l.Text))
	}
}

// A tracer whose collector is away holds nobody up, and does not trace what is
// polled outside of somebody's trace.
func TestTracerWithoutCollector(t *testing.T) {
	tr, err := NewTracer(t.Context(), "http://127.0.0.1:1", 1, "v", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := stages.New(tr)
	ctx, end := tr.Begin(t.Context(), "ListContainers", "", nil)
	if end != nil || ctx != t.Context() {
		t.Error("a poll began a trace")
	}
	if _, end = tr.Begin(t.Context(), "reconcile", "cni DEL", nil); end != nil {
		t.Error("a stage without a call began a trace")
	}
	in := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	if _, end = tr.Begin(in, "ListContainers", "", nil); end == nil {
		t.Error("a poll within a trace was left out of it")
	}
	for range 100 {
		ctx, end := r.Begin(t.Context(), "RunPodSandbox")
		stages.Start(ctx, "monitor")()
		end(errors.New("x"))
	}
	done, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_ = tr.Close(done)
	if time.Since(begin) > 5*time.Second {
		t.Error("closing waited for a collector that is away")
	}
}
