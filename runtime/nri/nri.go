// Package nri lets Node Resource Interface plugins see the lives of pods and
// containers and change what a container is made of.
//
// Invariants:
//   - a plugin changes what NRI has fields for, and nothing else; a field that
//     ocid cannot honour refuses the container instead of being passed over;
//   - what a plugin changes is checked as a request is: paths are absolute and
//     clean, a cgroup stays a path, ocid's own annotations stay as they are;
//   - no lock of ocid's is held while a plugin is waited for, except the turn
//     of the one container that the call is about; what a plugin wants of other
//     containers from within such a call is done after it, beside it;
//   - a plugin that does not answer in time is disconnected by the adaptation,
//     and the request goes on, unless the plugin's own policy says otherwise.
//
// A daemon with NRI switched off never builds an Adapter.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

const (
	// evictionGrace is how long an evicted container gets to end by itself.
	evictionGrace = 10 * time.Second
	// asideTime limits what is done for a plugin beside a call.
	asideTime = time.Minute
)

// Runtime is what plugins act on. Pods and Containers answer from memory.
type Runtime interface {
	Pods() []runtime.Pod
	Containers() []runtime.Container
	Spec(c *runtime.Container) (*specs.Spec, error)
	NamespacePaths(p runtime.Pod) map[string]string
	Changer
}

// Changer changes running containers without asking plugins again.
type Changer interface {
	ApplyUpdate(ctx context.Context, id runtime.ContainerID, r runtime.Resources) error
	StopContainer(ctx context.Context, id runtime.ContainerID, timeout time.Duration) error
}

// Options configure New.
type Options struct {
	Version             string
	Socket              string // "": no plugin can connect
	PluginDir           string // "": no plugin is started
	PluginConfigDir     string
	RegistrationTimeout time.Duration
	RequestTimeout      time.Duration
	MinOOMScore         int // lowest oom_score_adj that may be set
	// InjectCDI adds CDI devices; nil refuses them.
	InjectCDI func(s *specs.Spec, names []string) error
	Log       *slog.Logger
}

// Adapter connects plugins and ocid. It implements lifecycle.SpecAdjuster and
// lifecycle.Plugins.
type Adapter struct {
	o   Options
	log *slog.Logger
	ad  *adaptation.Adaptation
	// rt is nil until Start: no plugin is there to be told of anything.
	rt atomic.Pointer[Runtime]

	aside sync.WaitGroup
}

// New returns an Adapter; no plugin runs or connects until Start.
func New(o Options) (*Adapter, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Adapter{o: o, log: o.Log}
	nrilog.Set(logger{o.Log})
	if o.RegistrationTimeout > 0 {
		adaptation.SetPluginRegistrationTimeout(o.RegistrationTimeout)
	}
	if o.RequestTimeout > 0 {
		adaptation.SetPluginRequestTimeout(o.RequestTimeout)
	}
	opts := []adaptation.Option{
		adaptation.WithPluginPath(o.PluginDir), adaptation.WithPluginConfigPath(o.PluginConfigDir),
	}
	if o.Socket == "" {
		opts = append(opts, adaptation.WithDisabledExternalConnections())
	} else {
		opts = append(opts, adaptation.WithSocketPath(o.Socket))
	}
	var err error
	a.ad, err = adaptation.New("ocid", o.Version, a.synchronize, a.unsolicited, opts...)
	if err != nil {
		return nil, fmt.Errorf("set up NRI: %w", err)
	}
	return a, nil
}

// Start starts the configured plugins and takes connections of others.
func (a *Adapter) Start(rt Runtime) error {
	a.rt.Store(&rt)
	if err := a.ad.Start(); err != nil {
		return fmt.Errorf("start NRI: %w", err)
	}
	return nil
}

// Stop ends the plugins that were started and disconnects the others.
func (a *Adapter) Stop() {
	a.ad.Stop()
	a.aside.Wait()
}

// Hold implements lifecycle.Plugins.
func (a *Adapter) Hold() (release func()) { return a.ad.BlockPluginSync().Unblock }

// AdjustSpec asks the plugins what the container is to be made of.
func (a *Adapter) AdjustSpec(ctx context.Context, p runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	resp, err := a.ad.CreateContainer(ctx, &api.CreateContainerRequest{Pod: a.pod(p), Container: container(*c, s)})
	if err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	if err := a.adjust(s, c, resp.GetAdjust()); err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	// No turn is held here: the new container has no record that others wait for.
	if _, err := a.apply(ctx, resp.GetUpdate()); err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	a.evict(ctx, resp.GetEvict())
	return nil
}

// PodStep implements lifecycle.Plugins.
func (a *Adapter) PodStep(ctx context.Context, step lifecycle.Step, p runtime.Pod) error {
	if a.rt.Load() == nil {
		return nil
	}
	switch pod := a.pod(p); step {
	case lifecycle.StepPodRun:
		return a.ad.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
	case lifecycle.StepPodUpdate:
		_, err := a.ad.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
			Pod: pod, LinuxResources: pod.GetLinux().GetPodResources(), OverheadLinuxResources: pod.GetLinux().GetPodOverhead(),
		})
		return err
	case lifecycle.StepPodUpdated:
		return a.ad.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
	case lifecycle.StepPodStop:
		return a.ad.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
	case lifecycle.StepPodRemove:
		return a.ad.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
	default:
		return fmt.Errorf("no step of a pod: %s", step)
	}
}

// ContainerStep implements lifecycle.Plugins.
func (a *Adapter) ContainerStep(ctx context.Context, step lifecycle.Step, p runtime.Pod, c runtime.Container) error {
	if a.rt.Load() == nil {
		return nil
	}
	pod, ctr := a.pod(p), a.container(c)
	switch step {
	case lifecycle.StepCreated:
		return a.ad.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: ctr})
	case lifecycle.StepStart:
		return a.ad.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: ctr})
	case lifecycle.StepStarted:
		return a.ad.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: ctr})
	case lifecycle.StepUpdated:
		return a.ad.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: ctr})
	case lifecycle.StepStopped:
		resp, err := a.ad.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: ctr})
		a.applyAside(ctx, resp.GetUpdate())
		return err
	case lifecycle.StepRemove:
		return a.ad.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: ctr})
	default:
		return fmt.Errorf("no step of a container: %s", step)
	}
}

// Update implements lifecycle.Plugins.
func (a *Adapter) Update(ctx context.Context, p runtime.Pod, c runtime.Container, r runtime.Resources) (runtime.Resources, error) {
	resp, err := a.ad.UpdateContainer(ctx, &api.UpdateContainerRequest{
		Pod: a.pod(p), Container: a.container(c), LinuxResources: fromResources(r),
	})
	if err != nil {
		return r, fmt.Errorf("NRI: %w", err)
	}
	var others []*api.ContainerUpdate
	for _, u := range resp.GetUpdate() {
		if u.GetContainerId() != string(c.ID) {
			others = append(others, u)
			continue
		}
		changed, err := toResources(u.GetLinux().GetResources())
		if err != nil {
			return r, fmt.Errorf("NRI: %w", err)
		}
		r = overlay(r, changed)
	}
	a.applyAside(ctx, others)
	a.evict(ctx, resp.GetEvict())
	return r, nil
}

// apply does what plugins want of containers; it returns what failed. Failures
// that a plugin said to ignore are no error.
func (a *Adapter) apply(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	var errs []error
	for _, u := range updates {
		r, err := toResources(u.GetLinux().GetResources())
		if err == nil {
			err = a.runtime().ApplyUpdate(ctx, runtime.ContainerID(u.GetContainerId()), r)
		}
		if err == nil {
			continue
		}
		failed = append(failed, u)
		a.log.Warn("an update that a plugin wants failed", "container", u.GetContainerId(), "error", err)
		if !u.GetIgnoreFailure() {
			errs = append(errs, fmt.Errorf("update of container %s: %w", u.GetContainerId(), err))
		}
	}
	return failed, errors.Join(errs...)
}

// applyAside applies updates after the call that they came with: that holds
// the turn of its container, and two such calls would wait for each other.
func (a *Adapter) applyAside(ctx context.Context, updates []*api.ContainerUpdate) {
	if len(updates) == 0 {
		return
	}
	a.aside.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), asideTime)
		defer cancel()
		_, _ = a.apply(ctx, updates) // apply has logged it, and there is nobody to tell
	})
}

// evict stops containers that a plugin wants gone; the kubelet sees them exit.
func (a *Adapter) evict(ctx context.Context, list []*api.ContainerEviction) {
	for _, e := range list {
		a.log.Warn("a plugin evicts a container", "container", e.GetContainerId(), "reason", e.GetReason())
		a.aside.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), asideTime)
			defer cancel()
			if err := a.runtime().StopContainer(ctx, runtime.ContainerID(e.GetContainerId()), evictionGrace); err != nil {
				a.log.Warn("an eviction failed", "container", e.GetContainerId(), "error", err)
			}
		})
	}
}

// unsolicited serves a plugin that wants updates by itself.
func (a *Adapter) unsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return a.apply(ctx, updates)
}

// synchronize brings a new plugin up to date.
func (a *Adapter) synchronize(ctx context.Context, give adaptation.SyncCB) error {
	var pods []*api.PodSandbox
	for _, p := range a.runtime().Pods() {
		if p.State == runtime.PodReady {
			pods = append(pods, a.pod(p))
		}
	}
	var containers []*api.Container
	for _, c := range a.runtime().Containers() {
		switch c.State {
		case runtime.ContainerCreated, runtime.ContainerRunning:
			containers = append(containers, a.container(c))
		case runtime.ContainerCreating, runtime.ContainerExited, runtime.ContainerRemoving:
		}
	}
	updates, err := give(ctx, pods, containers)
	if err != nil {
		return err
	}
	_, err = a.apply(ctx, updates)
	return err
}

// logger writes NRI's log as ocid's.
type logger struct{ log *slog.Logger }

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

// Infof is debugging here: NRI reports each plugin's every registration step.
func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelDebug, format, args)
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.write(ctx, slog.LevelWarn, format, args)
}

// Errorf passes over the one about WASM plugins, which ocid is built without.
func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	for _, a := range args {
		if err, ok := a.(error); ok && errors.Is(err, adaptation.ErrWasmDisabled) {
			return
		}
	}
	l.write(ctx, slog.LevelError, format, args)
}

func (l logger) write(ctx context.Context, level slog.Level, format string, args []any) {
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nri: "+fmt.Sprintf(format, args...))
	}
}

func (a *Adapter) runtime() Runtime { return *a.rt.Load() }
