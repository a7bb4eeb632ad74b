// Package observe shows what the daemon does: Prometheus metrics, OpenTelemetry
// traces, and the debug socket with metrics, profiles and a dump of the state.
//
// Invariants:
//   - labels are constants of the program, gRPC codes, or names from the
//     configuration: what a client sends never becomes a label;
//   - what others can tell is asked when it is scraped, not kept;
//   - what is off costs nothing;
//   - a dump shows no values of environment variables: secrets are in them.
package observe

import (
	"context"
	"os"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/internal/stages"
)

// cniPrefix begins the stages that are operations of the network.
const cniPrefix = "cni "

// Gauges is what is counted when metrics are scraped.
type Gauges struct {
	Pods            map[string]int // by state
	Containers      map[string]int // by state
	Images          int
	ImageBytes      uint64
	RootFS          int
	Monitors        int // connected
	MonitorsStarted uint64
	MonitorsLost    uint64
	Leaks           map[string]uint64 // by kind, found by reconciliation
	Retrying        int               // clean-ups that failed and are tried again
	Running         int               // operations under way
}

// Metrics counts. It is a stages.Observer.
type Metrics struct {
	registry *prometheus.Registry

	results, cni, pulls, layers                          *prometheus.CounterVec
	seconds, stageSeconds, cniSeconds, pullSec, layerSec *prometheus.HistogramVec
	bytes                                                prometheus.Counter
}

// fast covers what takes from 0.1 ms to a minute, slow up to an hour.
var (
	fast = []float64{.0001, .0005, .001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
	slow = []float64{.1, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
)

// NewMetrics returns metrics that ask gauges at each scrape.
func NewMetrics(version string, gauges func(context.Context) Gauges) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ocid_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "ocid_" + name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		registry:     prometheus.NewRegistry(),
		results:      counter("operations_total", "CRI calls that ended, by gRPC code.", "operation", "code"),
		seconds:      histogram("operation_seconds", "Time of CRI calls.", fast, "operation"),
		stageSeconds: histogram("stage_seconds", "Time of the stages of calls.", fast, "stage"),
		cni:          counter("cni_operations_total", "Network operations that ended.", "operation", "result"),
		cniSeconds:   histogram("cni_operation_seconds", "Time of network operations.", fast, "operation"),
		pulls:        counter("pulls_total", "Image pulls that ended.", "result"),
		pullSec:      histogram("pull_seconds", "Time of image pulls.", slow, "result"),
		layers:       counter("pull_layers_total", "Layers that pulls got or found.", "result"),
		layerSec:     histogram("pull_layer_seconds", "Time from the start of a layer's download to its being unpacked.", slow),
		bytes:        prometheus.NewCounter(prometheus.CounterOpts{Name: "ocid_pull_bytes_total", Help: "Bytes of layers downloaded."}),
	}
	m.registry.MustRegister(m.results, m.seconds, m.stageSeconds, m.cni, m.cniSeconds, m.pulls, m.pullSec, m.layers,
		m.layerSec, m.bytes, &collector{version: version, gauges: gauges, begin: time.Now()})
	return m
}

// Begin implements stages.Observer.
func (m *Metrics) Begin(ctx context.Context, call, stage string, _ []stages.Attr) (context.Context, stages.End) {
	return ctx, func(d time.Duration, err error) {
		if op, ok := strings.CutPrefix(stage, cniPrefix); ok {
			m.cni.WithLabelValues(op, result(err)).Inc()
			m.cniSeconds.WithLabelValues(op).Observe(d.Seconds())
			return
		}
		if stage != "" {
			m.stageSeconds.WithLabelValues(stage).Observe(d.Seconds())
			return
		}
		m.results.WithLabelValues(call, status.Code(err).String()).Inc()
		m.seconds.WithLabelValues(call).Observe(d.Seconds())
	}
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// Pulled counts a pull; result is one of few words.
func (m *Metrics) Pulled(result string, d time.Duration) {
	m.pulls.WithLabelValues(result).Inc()
	m.pullSec.WithLabelValues(result).Observe(d.Seconds())
}

// Layer counts a layer of a pull: downloaded, or here already.
func (m *Metrics) Layer(downloaded bool, bytes int64, d time.Duration) {
	if !downloaded {
		m.layers.WithLabelValues("present").Inc()
		return
	}
	m.layers.WithLabelValues("downloaded").Inc()
	m.bytes.Add(float64(max(bytes, 0)))
	m.layerSec.WithLabelValues().Observe(d.Seconds())
}

// collector asks for gauges when it is scraped. Its set of metrics is not
// declared ahead, which spares keeping descriptions.
type collector struct {
	version string
	gauges  func(context.Context) Gauges
	begin   time.Time
}

// scrapeTime bounds what a scrape asks of others.
const scrapeTime = 5 * time.Second

// Describe implements prometheus.Collector.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	g := c.gauges(ctx)
	put := func(t prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc("ocid_"+name, help, names, nil), t, v, values...)
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	put(gauge, "info", "Always 1.", 1, "version", c.version)
	put(gauge, "uptime_seconds", "Time since the daemon started.", time.Since(c.begin).Seconds())
	for s, n := range g.Pods {
		put(gauge, "pods", "Pods on record.", float64(n), "state", s)
	}
	for s, n := range g.Containers {
		put(gauge, "containers", "Containers on record.", float64(n), "state", s)
	}
	put(gauge, "images", "Images in the store.", float64(g.Images))
	put(gauge, "image_bytes", "Bytes of unpacked layers.", float64(g.ImageBytes))
	put(gauge, "root_file_systems", "Root file systems of containers.", float64(g.RootFS))
	put(gauge, "monitors", "Monitors connected.", float64(g.Monitors))
	put(counter, "monitors_started_total", "Monitors started.", float64(g.MonitorsStarted))
	put(counter, "monitors_lost_total", "Monitors found dead while their pod lived.", float64(g.MonitorsLost))
	for k, n := range g.Leaks {
		put(counter, "leaks_total", "Leftovers without a record that reconciliation found.", float64(n), "kind", k)
	}
	put(gauge, "cleanups_retrying", "Clean-ups that failed and are tried again.", float64(g.Retrying))
	put(gauge, "operations_running", "Operations on pods and containers under way.", float64(g.Running))
	put(gauge, "goroutines", "Goroutines of the daemon.", float64(goruntime.NumGoroutine()))
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		put(gauge, "open_fds", "File descriptors of the daemon.", float64(len(fds)))
	}
	var mem goruntime.MemStats
	goruntime.ReadMemStats(&mem)
	put(gauge, "heap_bytes", "Heap in use by the daemon.", float64(mem.HeapInuse))
}
