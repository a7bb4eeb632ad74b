package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/observe"
	"github.com/ocid-io/ocid/internal/textpages"
	"github.com/ocid-io/ocid/server"
	"github.com/ocid-io/ocid/server/imagesvc"
)

const (
	// idleHeap is how much the heap may grow over what lives before it is
	// collected, in percent. The daemon's garbage is short-lived and its memory is
	// counted on every node.
	idleHeap = 50
	// flushTime bounds how long the last spans may take to be sent.
	flushTime = 5 * time.Second
	// debugSocket is under the run root, for its owner alone.
	debugSocket = "debug.sock"
)

// Options is what the daemon runs with.
type Options struct {
	Config *config.Loaded
	Log    *slog.Logger
	Level  *slog.LevelVar                 // of Log
	Reload func() (*config.Loaded, error) // reads the configuration anew
}

// Serve runs the CRI daemon until ctx is done. Containers go on.
func Serve(ctx context.Context, o Options) error {
	debug.SetGCPercent(idleHeap)
	if os.Geteuid() != 0 {
		return errors.New("ocid serve needs root: it mounts, makes namespaces and cgroups")
	}
	// From here on a reload is a wish that waits, not the end of the process.
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	defer signal.Stop(reload)
	c := o.Config.Config
	for _, dir := range []string{c.Root, c.RunRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	listeners, err := listen(c)
	if err != nil {
		return err
	}
	d, err := build(ctx, o)
	if err != nil {
		return closeAll(listeners, err)
	}
	defer d.close(ctx)
	streams, err := d.listenStreams(c)
	if err != nil {
		return closeAll(listeners, err)
	}
	d.reconcile(ctx)
	if err := d.startPlugins(); err != nil {
		return closeAll(listeners, err)
	}
	s := server.New(server.Options{
		Listeners: listeners, Log: d.log, Stages: d.stages,
		Reload: reload, OnReload: func() { d.reload(o) },
	})
	cri.RegisterRuntimeServiceServer(s, d.runtimeService(c, d.log, streams).Wire())
	d.images = imagesvc.New(pinning{d.store, c.Image.Pinned}, puller{d.puller}, d.log)
	d.images.Handlers(c.HandlerNames())
	cri.RegisterImageServiceServer(s, d.images)
	if err := d.observe(ctx, c); err != nil {
		return closeAll(listeners, err)
	}
	d.log.Info("serving", "listen", c.Server.Listen, "streams", streams.Base(), "version", Version)
	go settle(d.log)
	defer context.AfterFunc(ctx, d.manager.EndEvents)()
	defer d.serveStreams(ctx, streams)()
	err = s.Serve(ctx)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	d.manager.Drain(drain)
	return err
}

// reconcile makes the world agree with the records before anything is served.
func (d *parts) reconcile(ctx context.Context) {
	begin := time.Now()
	ctx, end := d.stages.Begin(ctx, "reconcile")
	err := d.manager.Reconcile(ctx)
	end(err)
	if err != nil {
		d.log.Error("some of what an earlier run left could not be mended now; it is tried again", "error", err)
	}
	if err := d.store.Collect(ctx, d.owned()); err != nil {
		d.log.Error("collect leftovers of the image store", "error", err)
	}
	d.log.Info("reconciled", "pods", len(d.manager.Pods()), "containers", len(d.manager.Containers()), "took", time.Since(begin))
}

// observe serves the debug socket and, where configured, metrics over TCP.
func (d *parts) observe(ctx context.Context, c config.Config) error {
	l, err := server.ListenPrivate(filepath.Join(c.RunRoot, debugSocket))
	switch {
	case errors.Is(err, server.ErrInUse):
		// With a socket that it was handed, this is how a second daemon on the
		// same run root is known.
		return err
	case err != nil:
		d.log.Warn("there is no debug socket", "error", err)
	default:
		go observe.ServeDebug(ctx, l, d.metrics, d.state, d.log)
	}
	if c.Metrics.Listen == "" {
		return nil
	}
	if l, err = net.Listen("tcp", c.Metrics.Listen); err != nil {
		return fmt.Errorf("metrics.listen: %w", err)
	}
	go observe.ServeMetrics(ctx, l, d.metrics, d.log)
	return nil
}

// reload takes over what can be taken over, and says what cannot.
func (d *parts) reload(o Options) {
	next, err := o.Reload()
	if err != nil {
		d.log.Error("the configuration was not reloaded, the old one stays in force", "error", err)
		return
	}
	before := d.conf.Load()
	changes := config.Changes(*before, next.Config)
	now := *before
	handlers := false
	for _, c := range changes {
		if !c.Reload {
			d.log.Warn("a changed key takes effect at the next restart", "key", c.Key, "running", c.Old, "file", c.New)
			continue
		}
		d.log.Info("a changed key takes effect", "key", c.Key, "old", c.Old, "new", c.New)
		handlers = handlers || c.Key != "log_level"
	}
	now.LogLevel = next.LogLevel
	// An unknown level was refused with the configuration.
	_ = o.Level.UnmarshalText([]byte(now.LogLevel))
	if handlers {
		now.Runtime.Handlers = next.Runtime.Handlers
		if err := d.reloadHandlers(now); err != nil {
			d.log.Error("the runtime handlers were not reloaded", "error", err)
			now.Runtime.Handlers = before.Runtime.Handlers
		}
	}
	d.conf.Store(&now)
	d.log.Info("the configuration was reloaded", "changes", len(changes))
}

// reloadHandlers puts new handlers in force for new pods. Pods that run go on
// with what their monitor was started with; a handler that is gone is kept for
// taking down what it had made.
func (d *parts) reloadHandlers(c config.Config) error {
	policies, err := handlerPolicies(c)
	if err != nil {
		return err
	}
	handlers := d.handlers(c)
	if err := d.monitors.SetHandlers(handlers); err != nil {
		return err
	}
	d.policies.Store(policies)
	d.engines.Store(&handlers)
	d.images.Handlers(c.HandlerNames())
	return nil
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
