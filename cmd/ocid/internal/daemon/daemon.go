package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/internal/textpages"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/handler"
	"github.com/ocid-io/ocid/runtime/ledger"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor"
	"github.com/ocid-io/ocid/runtime/network"
	"github.com/ocid-io/ocid/server"
	"github.com/ocid-io/ocid/server/imagesvc"
	"github.com/ocid-io/ocid/server/runtimesvc"
	"github.com/ocid-io/ocid/store/layered"
)

// idleHeap is how much the heap may grow over what lives before it is
// collected, in percent. The daemon's garbage is short-lived and its memory is
// counted on every node.
const idleHeap = 50

// Serve runs the CRI daemon until ctx is done. Containers go on.
func Serve(ctx context.Context, c config.Config, log *slog.Logger) error {
	debug.SetGCPercent(idleHeap)
	if os.Geteuid() != 0 {
		return errors.New("ocid serve needs root: it mounts, makes namespaces and cgroups")
	}
	for _, dir := range []string{c.Root, c.RunRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	listeners, err := listen(c)
	if err != nil {
		return err
	}
	d, err := build(c, log) //nolint:contextcheck // the image library logs without a context
	if err != nil {
		return closeAll(listeners, err)
	}
	defer d.close()
	begin := time.Now()
	if err := d.manager.Reconcile(ctx); err != nil {
		log.Error("some of what an earlier run left could not be mended; it is tried again at the next start", "error", err)
	}
	if err := d.store.Collect(ctx, d.owned()); err != nil {
		log.Error("collect leftovers of the image store", "error", err)
	}
	log.Info("reconciled", "pods", len(d.manager.Pods()), "containers", len(d.manager.Containers()), "took", time.Since(begin))
	s := server.New(server.Options{Listeners: listeners, Log: log, Stages: d.stages})
	cri.RegisterRuntimeServiceServer(s, d.runtimeService(c, log))
	img := imagesvc.New(d.store, puller{d.puller}, log)
	img.Handlers(c.HandlerNames())
	cri.RegisterImageServiceServer(s, img)
	log.Info("serving", "listen", c.Server.Listen, "version", Version)
	go settle(log)
	defer context.AfterFunc(ctx, d.manager.EndEvents)()
	err = s.Serve(ctx)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	d.manager.Drain(drain)
	return err
}

// settle gives back what only the start needed, heap and code.
func settle(log *slog.Logger) {
	debug.FreeOSMemory()
	if err := textpages.Drop(); err != nil {
		log.Debug("cannot drop pages of the binary", "error", err)
	}
}

func listen(c config.Config) ([]net.Listener, error) {
	ls, err := server.Activated()
	if err != nil || len(ls) > 0 {
		return ls, err
	}
	l, err := server.Listen(c.Server.Listen)
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

func closeAll(ls []net.Listener, err error) error {
	for _, l := range ls {
		err = errors.Join(err, l.Close())
	}
	return err
}

// parts are the layers, built.
type parts struct {
	c       config.Config
	host    host
	store   *layered.Store
	puller  *pull.Puller
	cni     *network.CNI
	manager *lifecycle.Manager
	stages  *stages.Recorder

	handlers map[string]engine.Handler
}

func build(c config.Config, log *slog.Logger) (*parts, error) {
	h, err := readHost()
	if err != nil {
		return nil, err
	}
	d := &parts{c: c, host: h, stages: stages.New()}
	if d.store, d.puller, err = OpenImages(c, log); err != nil {
		return nil, err
	}
	// On the run root: pods do not outlive a reboot, what they leave under the
	// root is collected at start, and a record on tmpfs costs no disk flush.
	led, err := ledger.Open(filepath.Join(c.RunRoot, "ledger"), log)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	mons, handlers, err := monitors(c, log)
	if err != nil {
		return nil, err
	}
	d.cni, err = network.NewCNI(network.Options{
		ConfDir: c.Network.ConfDir, BinDirs: c.Network.BinDirs, CacheDir: c.Network.CacheDir,
		Timeout: time.Duration(c.Network.Timeout), Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("set up CNI: %w", err)
	}
	d.handlers = handlers
	ext, err := d.extensions(log)
	if err != nil {
		return nil, err
	}
	d.manager = lifecycle.New(lifecycle.Options{
		RunDir: c.RunRoot, Ledger: led, Images: images{d.store},
		Namespaces: network.Namespaces{}, Network: d.cni, Monitors: mons,
		MountShm:     network.MountShm,
		CgroupParent: c.Runtime.CgroupParent, CgroupV2: h.cgroupV2,
		DaemonCaps: h.caps, MinOOMScore: h.minOOMScore, BootID: h.bootID,
		SeccompRoot: c.Runtime.SeccompRoot, Usage: usage{},
		UpperDir:   func(id string) string { return filepath.Join(c.Root, "rootfs", id, "upper") },
		Extensions: ext,
		Log:        log,
	})
	return d, nil
}

func monitors(c config.Config, log *slog.Logger) (*monitor.Monitors, map[string]engine.Handler, error) {
	path := c.Runtime.MonitorPath
	if path == "" {
		var err error
		if path, err = beside("ocid-monitor"); err != nil {
			return nil, nil, err
		}
	}
	embedded, err := beside("ocid-runtime")
	if err != nil {
		return nil, nil, err
	}
	handlers := map[string]engine.Handler{}
	for name, h := range c.Runtime.Handlers {
		e := engine.Handler{Name: name, Path: h.Path, Root: h.Root, Args: h.Args}
		if h.Path == "" {
			e.Path, e.Embedded = embedded, true
		}
		if _, err := os.Stat(e.Path); err != nil {
			log.Warn("the runtime handler's binary is missing: pods that ask for it will fail", "handler", name, "error", err)
		}
		handlers[name] = e
	}
	mons, err := monitor.New(monitor.Options{
		MonitorPath: path, RuntimePath: embedded, Handlers: handlers,
		Default: c.Runtime.DefaultHandler, Log: log,
	})
	return mons, handlers, err
}

// owned tells which root file systems have a container's record.
func (d *parts) owned() func(id string) bool {
	ids := map[string]bool{}
	for _, c := range d.manager.Containers() {
		ids[string(c.ID)] = true
	}
	return func(id string) bool { return ids[id] }
}

func (d *parts) close() {
	if len(d.manager.Pods()) == 0 {
		removeEmptyCgroups(d.c.Runtime.CgroupParent)
	}
	_ = d.cni.Close()
	_ = d.store.Close()
}

func (d *parts) runtimeService(c config.Config, log *slog.Logger) *runtimesvc.Service {
	return runtimesvc.New(runtimesvc.Options{
		Pods: d.manager, Containers: d.manager, Records: d.manager, Events: d.manager, Tuning: d.manager,
		Execs: d.manager, Usages: d.manager, Node: node{d.manager, c, d.handlers, &handler.Prober{}, log}, Images: resolver{d.store},
		Host:    runtimesvc.Host{AppArmor: d.host.appArmor, CgroupV2: d.host.cgroupV2, Hugetlb: d.host.hugetlb},
		Version: Version, Log: log, ToStatus: server.Status,
		Info: func() map[string]any {
			return map[string]any{"stages": d.stages.Snapshot(), "config": c}
		},
	})
}

// node implements runtimesvc.Node.
type node struct {
	m        *lifecycle.Manager
	c        config.Config
	handlers map[string]engine.Handler
	prober   *handler.Prober
	log      *slog.Logger
}

// NetworkReady implements runtimesvc.Node.
func (n node) NetworkReady() error { return n.m.NetworkReady() }

// Handlers lists the default handler's alias and all names.
func (n node) Handlers() []runtime.HandlerInfo {
	out := []runtime.HandlerInfo{{}}
	for _, name := range n.c.HandlerNames() {
		info := n.handler(name)
		if name == n.c.Runtime.DefaultHandler {
			out[0] = info
			out[0].Name = ""
		}
		out = append(out, info)
	}
	return out
}

// handler tells what a handler can do: the embedded runtime's abilities are
// known, another one is asked, and what it cannot say is not guessed.
func (n node) handler(name string) runtime.HandlerInfo {
	h := n.handlers[name]
	if h.Embedded {
		return runtime.HandlerInfo{Name: name, RecursiveReadOnly: true}
	}
	f, err := n.prober.Features(context.Background(), h)
	if err != nil {
		n.log.Debug("a runtime's features are unknown", "handler", name, "error", err)
	}
	return runtime.HandlerInfo{Name: name, RecursiveReadOnly: f.RecursiveReadOnly}
}

// UpdateRuntimeConfig takes the pod address range, which CNI's own
// configuration already has.
func (n node) UpdateRuntimeConfig(podCIDR string) error {
	n.log.Debug("the pod address range is CNI's to know; ignored", "cidr", podCIDR)
	return nil
}

// CgroupDriver implements runtimesvc.Node.
func (n node) CgroupDriver() string { return "cgroupfs" }

// puller adapts pull to imagesvc.
type puller struct{ p *pull.Puller }

// PullImage implements imagesvc.Puller.
func (p puller) PullImage(ctx context.Context, req imagesvc.PullRequest) (string, error) {
	r := pull.Request{Reference: req.Reference}
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
