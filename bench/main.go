// Command bench measures any CRI runtime over its socket and prints a table
// and, with --json, a file. It is a client only; it starts no runtime.
//
// Rows: pods on the host's network and on the cluster network, one at a time
// and ten in parallel; exec alone; streams; memory; the pull of a big image; restart;
// the 200th pod against the 1st. Before each row it prints how idle the machine
// is, because a busy machine makes every figure worthless.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type options struct {
	socket, image, bigImage, handler, cgroupParent, logs, jsonFile, pidFile, rows string
	serial, parallel, many, containers                                            int
	match                                                                         string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	testDir := os.Getenv("OCID_TEST_DIR")
	pidFile := ""
	if testDir != "" {
		pidFile = testDir + "/daemon.pid"
	}
	flag.StringVar(&o.socket, "socket", os.Getenv("OCID_SOCKET"), "path of the CRI socket")
	flag.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "image with a shell")
	flag.StringVar(&o.bigImage, "big-image", "docker.io/bench/big:latest", "image for the pull row; empty skips the row")
	flag.StringVar(&o.handler, "handler", "", "runtime handler")
	flag.StringVar(&o.cgroupParent, "cgroup-parent", os.Getenv("OCID_CGROUP_PARENT"), "cgroup parent of the pods")
	flag.StringVar(&o.logs, "logs", "", "directory for container logs (default: a temporary one)")
	flag.StringVar(&o.jsonFile, "json", "", "write all figures to this file")
	flag.StringVar(&o.pidFile, "pid-file", pidFile, "file with the daemon's pid; whoever runs the daemon must start it again when it ends. Without it there are no rows on memory, CPU and restart")
	flag.StringVar(&o.match, "per-pod", "ocid-monitor", "name of the program that runs once per pod or container, for its memory")
	flag.StringVar(&o.rows, "rows", "", "only rows whose name contains this")
	flag.IntVar(&o.serial, "n", 20, "pods one at a time")
	flag.IntVar(&o.parallel, "p", 40, "pods ten in parallel")
	flag.IntVar(&o.many, "many", 200, "pods for the row that compares the last with the first")
	flag.IntVar(&o.containers, "containers", 500, "containers for the rows on list calls")
	flag.Parse()
	if o.socket == "" {
		return fmt.Errorf("give --socket")
	}
	if o.logs == "" {
		d, err := os.MkdirTemp("", "ocid-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(d)
		o.logs = d
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(o.socket, "unix://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	b := &bench{o: o, conn: conn, rt: runtimeapi.NewRuntimeServiceClient(conn), im: runtimeapi.NewImageServiceClient(conn)}
	return b.run(ctx)
}

type bench struct {
	o    options
	conn *grpc.ClientConn
	rt   runtimeapi.RuntimeServiceClient
	im   runtimeapi.ImageServiceClient
	out  output
}

type output struct {
	Runtime string           `json:"runtime"`
	Time    time.Time        `json:"time"`
	Rows    []row            `json:"rows"`
	Stages  *json.RawMessage `json:"stages,omitempty"`
}

// row is one figure or one pair of median and 95th percentile.
type row struct {
	Group string  `json:"group"`
	Name  string  `json:"name"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95,omitempty"`
	Unit  string  `json:"unit"`
	N     int     `json:"n,omitempty"`
	Idle  float64 `json:"idlePercent"`
}

func (b *bench) run(ctx context.Context) error {
	v, err := b.rt.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("version: %w", err)
	}
	b.out.Runtime = v.RuntimeName + " " + v.RuntimeVersion
	b.out.Time = time.Now().UTC()
	fmt.Println(b.out.Runtime)
	if _, err := b.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: b.o.image}}); err != nil {
		return fmt.Errorf("pull %s: %w", b.o.image, err)
	}
	for _, g := range []struct {
		name string
		f    func(context.Context, string) error
	}{
		{"daemon idle", b.memoryIdle},
		{"host network, serial", func(ctx context.Context, g string) error { return b.lives(ctx, g, true, b.o.serial, 1) }},
		{"bridge CNI, serial", func(ctx context.Context, g string) error { return b.lives(ctx, g, false, b.o.serial, 1) }},
		{"exec alone", b.execAlone},
		{"host network, 10 in parallel", func(ctx context.Context, g string) error { return b.lives(ctx, g, true, b.o.parallel, 10) }},
		{"bridge CNI, 10 in parallel", func(ctx context.Context, g string) error { return b.lives(ctx, g, false, b.o.parallel, 10) }},
		{"streams", b.streams},
		{"50 pods", b.fifty},
		{"pod count", b.growth},
		{"lists of 500 containers", b.lists},
		{"idle pods", b.idlePods},
		{"events", b.events},
		{"pull of the big image", b.pull},
	} {
		if !strings.Contains(g.name, b.o.rows) {
			continue
		}
		if err := g.f(ctx, g.name); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	b.stages(ctx)
	if b.o.jsonFile == "" {
		return nil
	}
	data, err := json.MarshalIndent(b.out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.o.jsonFile, append(data, '\n'), 0o644)
}

// add prints a row and keeps it.
func (b *bench) add(r row) {
	b.out.Rows = append(b.out.Rows, r)
	p95 := ""
	if r.P95 > 0 {
		p95 = fmt.Sprintf("/ %.1f", r.P95)
	}
	fmt.Printf("%-30s %-38s %9.1f %-9s %s\n", r.Group, r.Name, r.P50, p95, r.Unit)
}

// stages prints where the time went, for a runtime that says so.
func (b *bench) stages(ctx context.Context) {
	r, err := b.rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || r.Info["stages"] == "" {
		return
	}
	raw := json.RawMessage(r.Info["stages"])
	b.out.Stages = &raw
	var calls map[string]struct {
		Count, TotalNS, MaxNS int64
		Stages                map[string]struct{ Count, TotalNS, MaxNS int64 }
	}
	if json.Unmarshal(raw, &calls) != nil {
		return
	}
	fmt.Println("\nwhere the time goes, mean ms per call since the daemon's start")
	for _, name := range sorted(calls) {
		c := calls[name]
		if c.Count == 0 {
			continue
		}
		fmt.Printf("%-28s %9.2f  (%d calls)\n", name, float64(c.TotalNS)/float64(c.Count)/1e6, c.Count)
		for _, s := range sorted(c.Stages) {
			fmt.Printf("    %-24s %9.2f  (%d)\n", s, float64(c.Stages[s].TotalNS)/float64(c.Count)/1e6, c.Stages[s].Count)
		}
	}
}
