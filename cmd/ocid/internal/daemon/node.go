package daemon

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/cgroup"
	"github.com/ocid-io/ocid/runtime"
)

// node implements runtimesvc.Node.
type node struct{ *parts }

func (d *parts) node() node { return node{d} }

// NetworkReady implements runtimesvc.Node.
func (n node) NetworkReady() error { return n.manager.NetworkReady() }

// RuntimeReady reports nil or what keeps every new pod from running. It looks
// at what can go away while the daemon runs, with a few system calls.
func (n node) RuntimeReady() error {
	c := n.conf.Load()
	if err := unix.Access(n.monitor, unix.X_OK); err != nil {
		return fmt.Errorf("the monitor %s cannot be executed: %w; install ocid-monitor there", n.monitor, err)
	}
	// The embedded runtime was read into memory at the start.
	if p := c.Runtime.Handlers[c.Runtime.DefaultHandler].Path; p != "" {
		if err := unix.Access(p, unix.X_OK); err != nil {
			return fmt.Errorf("the default runtime handler %q cannot be executed: %s: %w", c.Runtime.DefaultHandler, p, err)
		}
	}
	for _, dir := range []string{c.Root, c.RunRoot} {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			return fmt.Errorf("%s cannot be written to: %w", dir, err)
		}
	}
	if _, err := cgroup.Host(); err != nil {
		return fmt.Errorf("cgroups cannot be used: %w", err)
	}
	return nil
}

// Handlers lists the default handler's alias and all names.
func (n node) Handlers() []runtime.HandlerInfo {
	c := n.conf.Load()
	out := []runtime.HandlerInfo{{}}
	for _, name := range c.HandlerNames() {
		info := n.handler(name)
		if name == c.Runtime.DefaultHandler {
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
	h := (*n.engines.Load())[name]
	if h.Embedded {
		return runtime.HandlerInfo{Name: name, RecursiveReadOnly: true, UserNamespaces: n.idmapped}
	}
	f, err := n.prober.Features(context.Background(), h)
	if err != nil {
		n.log.Debug("a runtime's features are unknown", "handler", name, "error", err)
	}
	return runtime.HandlerInfo{Name: name, RecursiveReadOnly: f.RecursiveReadOnly, UserNamespaces: n.idmapped && f.IDMappedMounts}
}

// UpdateRuntimeConfig takes the pod address range, which CNI's own
// configuration already has.
func (n node) UpdateRuntimeConfig(podCIDR string) error {
	n.log.Debug("the pod address range is CNI's to know; ignored", "cidr", podCIDR)
	return nil
}

// CgroupDriver implements runtimesvc.Node.
func (n node) CgroupDriver() string { return n.driver }

// CheckNetwork implements runtimesvc.NetworkChecker.
func (n node) CheckNetwork(ctx context.Context, id runtime.PodID) error { return n.cni.Check(ctx, id) }
