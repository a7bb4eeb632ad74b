package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/apparmor"
	"github.com/ocid-io/ocid/runtime/cdi"
	"github.com/ocid-io/ocid/runtime/handler"
	"github.com/ocid-io/ocid/runtime/hooks"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/nri"
	"github.com/ocid-io/ocid/runtime/selinux"
)

// extensions builds what has a say in a container's spec, in the order in
// which it is asked: the handler's configuration, devices, hooks.
func (d *parts) extensions(log *slog.Logger) (lifecycle.Extensions, error) {
	c := d.conf.Load()
	policies, err := handlerPolicies(*c)
	if err != nil {
		return lifecycle.Extensions{}, err
	}
	d.policies.Store(policies)
	devices := cdi.New(c.Runtime.CDIDirs, log)
	ext := lifecycle.Extensions{
		Adjust:           []lifecycle.SpecAdjuster{&d.policies, devices, hooks.New(c.Runtime.HooksDirs, log)},
		HidesHostDevices: d.policies.hideHostDevices,
	}
	// Nil pointers must not become interfaces that hold one.
	if aa := apparmor.New(apparmor.Options{Default: c.Runtime.AppArmor}); aa != nil {
		ext.AppArmor = aa
	}
	if se := selinux.New(); se != nil && c.Runtime.SELinux {
		ext.SELinux = se
	}
	if c.NRI.Enable {
		if d.nri, err = newNRI(c.NRI, d.host.minOOMScore, devices, log); err != nil {
			return ext, err
		}
		ext.Adjust = append(ext.Adjust, d.nri)
	}
	return ext, nil
}

func newNRI(c config.NRI, minOOMScore int, devices *cdi.Injector, log *slog.Logger) (*nri.Adapter, error) {
	return nri.New(nri.Options{
		Version: Version, Socket: c.Socket, PluginDir: c.PluginDir, PluginConfigDir: c.PluginConfigDir,
		RegistrationTimeout: time.Duration(c.RegistrationTimeout), RequestTimeout: time.Duration(c.RequestTimeout),
		MinOOMScore: minOOMScore, InjectCDI: devices.Inject, Log: log,
	})
}

// plugins are nil, not an interface that holds a nil, where there are none.
func (d *parts) plugins() lifecycle.Plugins {
	if d.nri == nil {
		return nil
	}
	return d.nri
}

// startPlugins lets plugins in, once what they will be told of is settled.
func (d *parts) startPlugins() error {
	if d.nri == nil {
		return nil
	}
	return d.nri.Start(d.manager)
}

// livePolicies are the handlers' policies, which a reload replaces.
type livePolicies struct {
	atomic.Pointer[handler.Policies]
}

// AdjustSpec implements lifecycle.SpecAdjuster.
func (l *livePolicies) AdjustSpec(ctx context.Context, p runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	return l.Load().AdjustSpec(ctx, p, c, s)
}

func (l *livePolicies) hideHostDevices(name string) bool { return l.Load().HideHostDevices(name) }

// handlerPolicies reads what the configuration says of each handler.
func handlerPolicies(c config.Config) (*handler.Policies, error) {
	out := &handler.Policies{Default: c.Runtime.DefaultHandler, ByName: map[string]handler.Policy{}}
	for name, h := range c.Runtime.Handlers {
		pol := handler.Policy{
			AllowedAnnotations: h.AllowedAnnotations, DefaultAnnotations: h.Annotations(),
			DefaultEnv: h.DefaultEnv, HideHostDevices: h.HideHostDevices, MinMemory: h.MinMemory,
		}
		for _, u := range h.DefaultUlimits {
			l, err := handler.ParseUlimit(u)
			if err != nil {
				return nil, fmt.Errorf("runtime.handlers.%s.default_ulimits: %w", name, err)
			}
			pol.Rlimits = append(pol.Rlimits, l)
		}
		if h.BaseRuntimeSpec != "" {
			base, err := handler.ReadBase(h.BaseRuntimeSpec)
			if err != nil {
				return nil, fmt.Errorf("runtime.handlers.%s.base_runtime_spec: %w", name, err)
			}
			pol.Base = base
		}
		if err := pol.Check(); err != nil {
			return nil, fmt.Errorf("runtime.handlers.%s: %w", name, err)
		}
		out.ByName[name] = pol
	}
	return out, nil
}
