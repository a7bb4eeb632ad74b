package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/internal/mountinfo"
	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
)

// statusAge is how old the plugins' answer to STATUS may be.
const statusAge = 5 * time.Second

// Options configure NewCNI.
type Options struct {
	ConfDir  string        // "" is /etc/cni/net.d
	BinDirs  []string      // searched in order; empty is /opt/cni/bin, /usr/libexec/cni, /usr/lib/cni
	CacheDir string        // records of attachments; must survive a restart and a reboot
	Timeout  time.Duration // of one operation, all plugins; 0 is two minutes
	Log      *slog.Logger
}

// CNI implements lifecycle.Network.
//
// Lock order: gate, then the pod's own lock, then mu.
type CNI struct {
	cni     libcni.CNI
	conf    *confDir
	records string
	binDirs []string
	timeout time.Duration
	log     *slog.Logger

	collected atomic.Uint64 // attachments that GC released

	// gate keeps the plugins' own garbage collection from taking an attachment
	// that is being made; it is held for reading by everything else.
	gate sync.RWMutex

	mu       sync.Mutex
	busy     map[runtime.PodID]*podLock // guarded by mu
	status   error                      // guarded by mu: last answer to STATUS
	statusAt time.Time                  // guarded by mu
	statusOf uint64                     // guarded by mu: load of the configuration it is about
	ports    hostPorts                  // guarded by mu
}

// podLock serialises the operations of one pod.
type podLock struct {
	sync.Mutex
	users int // guarded by CNI.mu
}

// NewCNI follows the configuration directory, which is made if absent.
func NewCNI(o Options) (*CNI, error) {
	if o.ConfDir == "" {
		o.ConfDir = "/etc/cni/net.d"
	}
	if len(o.BinDirs) == 0 {
		o.BinDirs = []string{"/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"}
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(o.CacheDir) {
		return nil, fmt.Errorf("%w: CNI cache directory %q is not an absolute path", runtime.ErrInvalid, o.CacheDir)
	}
	records := filepath.Join(o.CacheDir, "attachments")
	if err := os.MkdirAll(records, 0o700); err != nil {
		return nil, fmt.Errorf("set up CNI: %w", err)
	}
	if err := os.MkdirAll(o.ConfDir, 0o755); err != nil {
		o.Log.Warn("cannot make the CNI configuration directory", "error", err)
	}
	if err := atomicfile.RemoveTemps(records); err != nil {
		return nil, fmt.Errorf("set up CNI: %w", err)
	}
	return &CNI{
		cni:     libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, &pluginExec{}),
		conf:    &confDir{dir: o.ConfDir},
		records: records, binDirs: o.BinDirs, timeout: o.Timeout, log: o.Log,
		busy: map[runtime.PodID]*podLock{},
	}, nil
}

// Close stops following the configuration directory.
func (n *CNI) Close() error {
	n.conf.close()
	return nil
}

// Ready reports nil or why pods cannot be attached now. Plugins are asked
// (STATUS) if their configuration is of CNI 1.1 or later, and not each time.
func (n *CNI) Ready() error {
	list, load, err := n.conf.current()
	if err != nil || !atLeast11(list) {
		return err
	}
	n.mu.Lock()
	fresh := n.statusOf == load && time.Since(n.statusAt) < statusAge
	err = n.status
	n.mu.Unlock()
	if fresh {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(n.timeout, statusAge))
	defer cancel()
	if err = n.cni.GetStatusNetworkList(ctx, list); err != nil {
		err = fmt.Errorf("%w: network %q: %w", runtime.ErrUnavailable, list.Name, err)
	}
	n.mu.Lock()
	n.status, n.statusAt, n.statusOf = err, time.Now(), load
	n.mu.Unlock()
	return err
}

func atLeast11(list *libcni.NetworkConfigList) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0")
	return err == nil && ok
}

// hold takes the pod's lock.
func (n *CNI) hold(id runtime.PodID) (release func()) {
	n.mu.Lock()
	l := n.busy[id]
	if l == nil {
		l = &podLock{}
		n.busy[id] = l
	}
	l.users++
	n.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		n.mu.Lock()
		defer n.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(n.busy, id)
		}
	}
}

// Add attaches the pod's pinned network namespace and returns its addresses,
// in the order of the plugins' result. What a failed Add left of an earlier
// try is undone first; after an error nothing is attached, unless the error
// says that undoing failed too: then Del or GC will.
func (n *CNI) Add(ctx context.Context, id runtime.PodID, cfg runtime.PodConfig, netns string) ([]string, error) {
	if id == "" || string(id) != filepath.Base(string(id)) {
		return nil, fmt.Errorf("%w: pod id %.80q", runtime.ErrInvalid, id)
	}
	n.gate.RLock()
	defer n.gate.RUnlock()
	defer n.hold(id)()
	list, _, err := n.conf.current()
	if err != nil {
		return nil, err
	}
	a := &attachment{Version: recordVersion, ID: id, NetNS: netns, Config: list.Bytes, Args: [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", cfg.Name.Namespace},
		{"K8S_POD_NAME", cfg.Name.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", string(id)},
		{"K8S_POD_UID", cfg.Name.UID},
	}}
	if err := checkArgs(a.Args); err != nil {
		return nil, err
	}
	if a.CapabilityArgs, err = n.capabilityArgs(list, id, &cfg); err != nil {
		return nil, err
	}
	if err := n.havePlugins(list); err != nil {
		return nil, fmt.Errorf("attach to network %q: %w", list.Name, err)
	}
	if err := n.del(ctx, id, netns); err != nil {
		return nil, fmt.Errorf("undo an earlier attachment: %w", err)
	}
	if err := n.reservePorts(a); err != nil {
		return nil, err
	}
	if err := n.writeRecord(a); err != nil {
		n.releasePorts(id)
		return nil, err
	}
	ips, err := n.add(ctx, list, a)
	if err == nil {
		return ips, nil
	}
	err = fmt.Errorf("attach to network %q: %w", list.Name, err)
	// The caller's deadline may have been what failed; undoing has its own.
	if derr := n.del(context.WithoutCancel(ctx), id, netns); derr != nil {
		n.log.Warn("cannot undo a failed network attachment", "pod", id, "error", derr)
		err = errors.Join(err, derr)
	}
	return nil, err
}

// havePlugins finds every plugin of the chain before the first runs: with one
// missing nothing could be undone either.
func (n *CNI) havePlugins(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name == "" {
				continue
			}
			if _, err := (pluginExec{}).FindInPath(name, n.binDirs); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *CNI) add(ctx context.Context, list *libcni.NetworkConfigList, a *attachment) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	ctx, end := stages.Enter(ctx, "cni ADD", stages.Attr{Key: "network", Value: list.Name})
	res, err := n.cni.AddNetworkList(ctx, list, a.runtimeConf(a.NetNS))
	end(err)
	if err != nil {
		return nil, err
	}
	result, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, fmt.Errorf("read the plugins' result: %w", err)
	}
	var ips []string
	for _, ip := range result.IPs {
		if ip == nil || len(ip.Address.IP) != net.IPv4len && len(ip.Address.IP) != net.IPv6len {
			return nil, errors.New("the plugins' result has a malformed address")
		}
		if s := ip.Address.IP.String(); !slices.Contains(ips, s) {
			ips = append(ips, s)
		}
	}
	if len(ips) == 0 {
		return nil, errors.New("the plugins gave the pod no address")
	}
	return ips, nil
}

// Check asks the plugins whether the pod's attachment is as they made it.
func (n *CNI) Check(ctx context.Context, id runtime.PodID) error {
	n.gate.RLock()
	defer n.gate.RUnlock()
	defer n.hold(id)()
	a, list, err := n.readRecord(id)
	if err != nil {
		return err
	}
	if a == nil {
		return fmt.Errorf("%w: pod %s is not attached to a network", runtime.ErrNotFound, id)
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	if err := n.cni.CheckNetworkList(ctx, list, a.runtimeConf(a.NetNS)); err != nil {
		return fmt.Errorf("network %q: %w", list.Name, err)
	}
	return nil
}

// Del detaches with the configuration that the pod was attached with. It does
// nothing if the pod is not attached, and works when netns is gone.
func (n *CNI) Del(ctx context.Context, id runtime.PodID, _ runtime.PodConfig, netns string) error {
	if id == "" || string(id) != filepath.Base(string(id)) {
		return fmt.Errorf("%w: pod id %.80q", runtime.ErrInvalid, id)
	}
	n.gate.RLock()
	defer n.gate.RUnlock()
	defer n.hold(id)()
	return n.del(ctx, id, netns)
}

// del must be called with the pod held.
func (n *CNI) del(ctx context.Context, id runtime.PodID, netns string) error {
	a, list, err := n.readRecord(id)
	if err != nil || a == nil {
		return err
	}
	if netns == "" {
		netns = a.NetNS
	}
	// Plugins must do without a namespace that is gone, but take a plain file
	// at its path for an error.
	if ok, err := mountinfo.Mounted(netns); err != nil || !ok {
		netns = ""
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	ctx, end := stages.Enter(ctx, "cni DEL", stages.Attr{Key: "network", Value: list.Name})
	err = n.cni.DelNetworkList(ctx, list, a.runtimeConf(netns))
	end(err)
	if err != nil {
		return fmt.Errorf("detach from network %q: %w", list.Name, err)
	}
	return n.removeRecord(id)
}

// GC releases every attachment that is not in keep and not being made now, and
// has plugins of CNI 1.1 or later collect what they know of and we do not.
func (n *CNI) GC(ctx context.Context, keep []runtime.PodID) error {
	ids, err := n.recorded()
	if err != nil {
		return fmt.Errorf("collect network attachments: %w", err)
	}
	var errs []error
	for _, id := range ids {
		if !slices.Contains(keep, id) && !n.isBusy(id) {
			if err := n.Del(ctx, id, runtime.PodConfig{}, ""); err != nil {
				errs = append(errs, fmt.Errorf("pod %s: %w", id, err))
			}
			n.collected.Add(1)
		}
	}
	if err := n.pluginGC(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Collected counts the attachments without a pod that GC found.
func (n *CNI) Collected() uint64 { return n.collected.Load() }

// Network names the current network, its configuration file and its plugins.
func (n *CNI) Network() (name string, plugins []string, err error) {
	list, _, err := n.conf.current()
	if err != nil {
		return "", nil, err
	}
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Network.Type)
	}
	return list.Name, plugins, nil
}

func (n *CNI) isBusy(id runtime.PodID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.busy[id] != nil
}

// pluginGC names every attachment on record as valid: those not to be kept are
// off the record by now, unless undoing them failed.
func (n *CNI) pluginGC(ctx context.Context) error {
	list, _, err := n.conf.current()
	if err != nil || list.DisableGC || !atLeast11(list) {
		return nil // without a network there is nobody to ask
	}
	n.gate.Lock()
	defer n.gate.Unlock()
	ids, err := n.recorded()
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{ValidAttachments: make([]types.GCAttachment, 0, len(ids))}
	for _, id := range ids {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: string(id), IfName: ifName})
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	ctx, end := stages.Enter(ctx, "cni GC", stages.Attr{Key: "network", Value: list.Name})
	err = n.cni.GCNetworkList(ctx, list, args)
	end(err)
	if err != nil {
		return fmt.Errorf("garbage collection of network %q: %w", list.Name, err)
	}
	return nil
}
