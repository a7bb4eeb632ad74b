package daemon

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/cmd/ocid/internal/observe"
	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

// gauges answers a scrape.
func (d *parts) gauges(ctx context.Context) observe.Gauges {
	n := d.manager.Counts()
	g := observe.Gauges{
		Pods: map[string]int{}, Containers: map[string]int{},
		Monitors: n.Monitors, MonitorsStarted: n.MonitorsStarted, MonitorsLost: n.MonitorsLost,
		Retrying: n.Retrying, Running: len(d.manager.Operations()),
		Leaks: map[string]uint64{"pod": n.LeakedPods, "root_file_system": n.LeakedRootFS, "network": d.cni.Collected()},
	}
	for _, p := range d.manager.Pods() {
		g.Pods[string(p.State)]++
	}
	for _, c := range d.manager.Containers() {
		g.Containers[string(c.State)]++
	}
	if imgs, err := d.store.Images(ctx); err == nil {
		g.Images = len(imgs)
	}
	if u, err := d.store.Usage(ctx); err == nil {
		g.ImageBytes = u.Bytes
	}
	if ids, err := d.store.List(ctx); err == nil {
		g.RootFS = len(ids)
	}
	return g
}

// pullResult names the end of a pull in one word.
func pullResult(err error) string {
	for _, row := range []struct {
		is   error
		word string
	}{
		{pull.ErrInvalid, "invalid"},
		{pull.ErrNotFound, "not_found"},
		{pull.ErrUnauthorized, "unauthorized"},
		{pull.ErrDenied, "denied"},
		{pull.ErrStalled, "stalled"},
		{pull.ErrCorrupt, "corrupt"},
		{pull.ErrNoSpace, "no_space"},
		{context.Canceled, "canceled"},
	} {
		if errors.Is(err, row.is) {
			return row.word
		}
	}
	if err != nil {
		return "error"
	}
	return "ok"
}

// dump is the state as the debug socket shows it.
type dump struct {
	Version    string                 `json:"version"`
	UptimeS    float64                `json:"uptimeSeconds"`
	Goroutines int                    `json:"goroutines"`
	HeapBytes  uint64                 `json:"heapBytes"`
	Counts     lifecycle.Counts       `json:"counts"`
	Calls      []active               `json:"calls"`
	Operations []operation            `json:"operations"`
	Pods       []runtime.Pod          `json:"pods"`
	Containers []runtime.Container    `json:"containers"`
	LastErrors []observe.Logged       `json:"lastErrors"`
	Stages     map[string]stages.Call `json:"stages"`
}

type active struct {
	stages.Active
	AgeS float64 `json:"ageSeconds"`
}

type operation struct {
	lifecycle.Operation
	AgeS float64 `json:"ageSeconds"`
}

// state renders everything that is in memory. Values of environment variables,
// where secrets are, are left out.
func (d *parts) state(context.Context) any {
	var mem goruntime.MemStats
	goruntime.ReadMemStats(&mem)
	s := dump{
		Version: Version, UptimeS: time.Since(d.begin).Seconds(),
		Goroutines: goruntime.NumGoroutine(), HeapBytes: mem.HeapInuse, Counts: d.manager.Counts(),
		Calls: []active{}, Operations: []operation{},
		Pods: d.manager.Pods(), Containers: d.manager.Containers(),
		LastErrors: d.recent.Last(), Stages: d.stages.Snapshot(),
	}
	for _, a := range d.stages.Active() {
		s.Calls = append(s.Calls, active{a, time.Since(a.Started).Seconds()})
	}
	for _, o := range d.manager.Operations() {
		s.Operations = append(s.Operations, operation{o, time.Since(o.Started).Seconds()})
	}
	for i := range s.Containers {
		env := make([]runtime.EnvVar, len(s.Containers[i].Config.Env))
		for j, e := range s.Containers[i].Config.Env {
			env[j].Key = e.Key
		}
		s.Containers[i].Config.Env = env
	}
	return s
}

// info is what Status(verbose) shows.
func (d *parts) info() map[string]any {
	c := d.conf.Load()
	cgroups := map[string]any{"version": 1, "driver": d.node().CgroupDriver(), "parent": d.cgroupParent}
	if d.host.cgroupV2 {
		cgroups["version"] = 2
	}
	network := map[string]any{"confDir": c.Network.ConfDir, "binDirs": c.Network.BinDirs}
	if name, plugins, err := d.cni.Network(); err != nil {
		network["error"] = err.Error()
	} else {
		network["name"], network["plugins"] = name, plugins
	}
	var handlers []map[string]any
	for _, h := range d.node().Handlers() {
		if h.Name == "" {
			continue
		}
		conf := c.Runtime.Handlers[h.Name]
		handlers = append(handlers, map[string]any{
			"name": h.Name, "default": h.Name == c.Runtime.DefaultHandler,
			"path": conf.Path, "embedded": conf.Path == "", "features": h,
		})
	}
	n := d.manager.Counts()
	return map[string]any{
		"versions":       map[string]string{"ocid": Version, "go": goruntime.Version(), "kernel": kernel()},
		"uptime":         time.Since(d.begin).Round(time.Second).String(),
		"paths":          map[string]string{"root": c.Root, "runRoot": c.RunRoot, "debugSocket": c.RunRoot + "/" + debugSocket},
		"cgroups":        cgroups,
		"cni":            network,
		"handlers":       handlers,
		"counts":         map[string]any{"pods": len(d.manager.Pods()), "containers": len(d.manager.Containers()), "lifecycle": n},
		"operations":     d.manager.Operations(),
		"lastErrors":     d.recent.Last(),
		"stages":         d.stages.Snapshot(),
		"config":         c,
		"capabilities":   d.host.caps,
		"apparmor":       d.host.appArmor,
		"minOOMScoreAdj": d.host.minOOMScore,
	}
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Sprint(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}
