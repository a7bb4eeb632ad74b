package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/observe"
	"github.com/ocid-io/ocid/internal/patientstat"
	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/handler"
	"github.com/ocid-io/ocid/runtime/ledger"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor"
	"github.com/ocid-io/ocid/runtime/network"
	"github.com/ocid-io/ocid/runtime/nri"
	"github.com/ocid-io/ocid/server"
	"github.com/ocid-io/ocid/server/imagesvc"
	"github.com/ocid-io/ocid/server/runtimesvc"
	"github.com/ocid-io/ocid/server/streaming"
	"github.com/ocid-io/ocid/store/layered"
)

// parts are the layers, built.
type parts struct {
	conf     atomic.Pointer[config.Config] // in force; replaced by a reload
	log      *slog.Logger
	begin    time.Time
	host     host
	idmapped bool   // root file systems can be made for user namespaces
	embedded string // the embedded runtime's binary
	monitor  string // the monitor's binary
	store    *layered.Store
	puller   *pull.Puller
	cni      *network.CNI
	monitors *monitor.Monitors
	manager  *lifecycle.Manager
	images   *imagesvc.Service

	stages  *stages.Recorder
	recent  *observe.Recent
	metrics *observe.Metrics
	tracer  *observe.Tracer // nil: no traces

	engines  atomic.Pointer[map[string]engine.Handler] // replaced by a reload
	policies livePolicies
	prober   handler.Prober

	driver       string // config.Systemd or config.Cgroupfs
	cgroupParent string // of pods that name none

	nri *nri.Adapter // nil: switched off
}

func build(ctx context.Context, o Options) (*parts, error) {
	h, err := readHost()
	if err != nil {
		return nil, err
	}
	c := o.Config.Config
	d := &parts{begin: time.Now(), host: h, recent: &observe.Recent{}}
	d.conf.Store(&c)
	d.log = slog.New(d.recent.Handler(o.Log.Handler()))
	log := d.log
	if err := d.observers(ctx, c); err != nil {
		return nil, err
	}
	if d.driver, d.cgroupParent, err = cgroupDriver(c.Runtime, h); err != nil {
		return nil, err
	}
	d.store, d.puller, err = openImages(c, log, d.metrics) //nolint:contextcheck // the image library logs without a context
	if err != nil {
		return nil, err
	}
	d.idmapped = d.probeIDMap()
	// On the run root: pods do not outlive a reboot, what they leave under the
	// root is collected at start, and a record on tmpfs costs no disk flush.
	led, err := ledger.Open(filepath.Join(c.RunRoot, "ledger"), log)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if d.monitors, err = d.newMonitors(c); err != nil {
		return nil, err
	}
	d.cni, err = network.NewCNI(network.Options{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: c.Network.CacheDir,
		Timeout: time.Duration(c.Network.Timeout), Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("set up CNI: %w", err)
	}
	ext, err := d.extensions(log)
	if err != nil {
		return nil, err
	}
	d.manager = lifecycle.New(lifecycle.Options{
		RunDir: c.RunRoot, Ledger: led, Images: images{d.store},
		Namespaces: network.Namespaces{}, Network: d.cni, Dialer: network.Dialer{}, Monitors: d.monitors,
		MountShm:     network.MountShm,
		CgroupParent: d.cgroupParent, CgroupV2: h.cgroupV2,
		Systemd: d.driver == config.Systemd, Cgroups: cgroups{systemd: d.driver == config.Systemd},
		DaemonCaps: h.caps, MinOOMScore: h.minOOMScore, BootID: h.bootID,
		Stat:        (&patientstat.Prober{Helper: []string{d.monitor, "stat"}}).Stat,
		SeccompRoot: c.Runtime.SeccompRoot, Usage: &usage{},
		CheckpointDir: filepath.Join(c.Root, "checkpoints"),
		UpperDir:      func(id string) string { return filepath.Join(c.Root, "rootfs", id, "upper") },
		Extensions:    ext, Plugins: d.plugins(),
		Log: log,
	})
	return d, nil
}

// observers sets up what is told of calls and stages.
func (d *parts) observers(ctx context.Context, c config.Config) error {
	d.metrics = observe.NewMetrics(Version, d.gauges)
	all := []stages.Observer{d.metrics}
	if c.Tracing.Endpoint != "" {
		t, err := observe.NewTracer(ctx, c.Tracing.Endpoint, c.Tracing.Sampling, Version, d.log)
		if err != nil {
			return err
		}
		d.tracer = t
		all = append(all, t)
	}
	d.stages = stages.New(all...)
	return nil
}

func (d *parts) newMonitors(c config.Config) (*monitor.Monitors, error) {
	var err error
	if d.monitor = c.Runtime.MonitorPath; d.monitor == "" {
		if d.monitor, err = beside("ocid-monitor"); err != nil {
			return nil, err
		}
	}
	if d.embedded, err = beside("ocid-runtime"); err != nil {
		return nil, err
	}
	handlers := d.handlers(c)
	d.engines.Store(&handlers)
	return monitor.New(monitor.Options{
		MonitorPath: d.monitor, RuntimePath: d.embedded, Handlers: handlers,
		Default: c.Runtime.DefaultHandler, Cgroup: c.Runtime.MonitorCgroup, Log: d.log,
	})
}

func (d *parts) handlers(c config.Config) map[string]engine.Handler {
	handlers := map[string]engine.Handler{}
	for name, h := range c.Runtime.Handlers {
		e := engine.Handler{Name: name, Path: h.Path, Root: h.Root, Args: h.Args}
		if d.driver == config.Systemd {
			e.Args = append(slices.Clone(h.Args), "--systemd-cgroup")
		}
		if h.Path == "" {
			e.Path, e.Embedded = d.embedded, true
		}
		if _, err := os.Stat(e.Path); err != nil {
			d.log.Warn("the runtime handler's binary is missing: pods that ask for it will fail", "handler", name, "error", err)
		}
		handlers[name] = e
	}
	return handlers
}

// owned tells which root file systems have a container's record.
func (d *parts) owned() func(id string) bool {
	ids := map[string]bool{}
	for _, c := range d.manager.Containers() {
		ids[string(c.ID)] = true
		for _, v := range c.VolumeIDs() {
			ids[v] = true
		}
	}
	return func(id string) bool { return ids[id] }
}

func (d *parts) close(ctx context.Context) {
	if d.nri != nil {
		d.nri.Stop()
	}
	if len(d.manager.Pods()) == 0 {
		d.removeDefaultCgroup()
	}
	_ = d.cni.Close()
	_ = d.store.Close()
	if d.tracer != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err := d.tracer.Close(ctx); err != nil {
			d.log.Warn("the last traces are lost", "error", err)
		}
	}
}

func (d *parts) runtimeService(c config.Config, log *slog.Logger, streams *streaming.Server) *runtimesvc.Service {
	return runtimesvc.New(runtimesvc.Options{
		Pods: d.manager, Containers: d.manager, Records: d.manager, Events: d.manager, Tuning: d.manager,
		Execs: d.manager, Streamable: d.manager, StreamURLs: streams, Usages: d.manager, Snapshots: d.manager, Node: d.node(), Images: resolver{d.store},
		Host:    runtimesvc.Host{AppArmor: d.host.appArmor, CgroupV2: d.host.cgroupV2, Hugetlb: d.host.hugetlb},
		Version: Version, Log: log, ToStatus: server.Status,
		Info: d.info,
	})
}

// puller adapts pull to imagesvc.
type puller struct{ p *pull.Puller }

// PullImage implements imagesvc.Puller.
func (p puller) PullImage(ctx context.Context, req imagesvc.PullRequest) (string, error) {
	r := pull.Request{Reference: req.Reference, Namespace: req.Namespace}
	a := pull.Auth{
		Username: req.Username, Password: req.Password, Auth: req.Auth,
		ServerAddress: req.ServerAddress, IdentityToken: req.IdentityToken, RegistryToken: req.RegistryToken,
	}
	if a != (pull.Auth{}) {
		r.Auth = &a
	}
	res, err := p.p.Pull(ctx, r)
	if err != nil {
		return "", pullStatus(err)
	}
	return res.ImageID, nil
}
