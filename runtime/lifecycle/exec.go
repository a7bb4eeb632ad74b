package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
)

// execDrain is how long output is read on after the process has ended, for
// children that keep the pipe open.
const execDrain = 2 * time.Second

// ExecSync runs cmd in a running container until it ends. A timeout above zero
// bounds it: the process is then killed and the error wraps ErrTimeout.
func (m *Manager) ExecSync(ctx context.Context, id runtime.ContainerID, cmd []string, timeout time.Duration, stdout, stderr io.Writer) (int32, error) {
	if len(cmd) == 0 {
		return 0, fmt.Errorf("%w: exec needs a command", runtime.ErrInvalid)
	}
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return 0, err
	}
	if c.State != runtime.ContainerRunning {
		return 0, fmt.Errorf("%w: container %s is %s", runtime.ErrState, id, c.State)
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return 0, err
	}
	proc, err := m.execProcess(&c)
	if err != nil {
		return 0, err
	}
	proc.Args = cmd
	proc.Terminal = false
	run := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		run, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	defer stages.Start(ctx, "engine-exec")()
	code, err := mon.Exec(run, id, ExecRequest{Process: proc, Stdout: stdout, Stderr: stderr, Drain: execDrain})
	if err != nil && errors.Is(run.Err(), context.DeadlineExceeded) && ctx.Err() == nil {
		return 0, fmt.Errorf("%w: exec in container %s: command timed out after %s and was killed", runtime.ErrTimeout, id, timeout)
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return int32(code), nil
}

// execProcess returns the process that execs start from: the container's own,
// read from its bundle once.
func (m *Manager) execProcess(c *runtime.Container) (specs.Process, error) {
	l := m.liveIfAny(c.ID)
	m.mu.Lock()
	p, loaded := l.process, l.loaded
	m.mu.Unlock()
	if loaded {
		return p, nil
	}
	b, err := os.ReadFile(filepath.Join(m.bundle(c), "config.json"))
	if err != nil {
		return p, fmt.Errorf("read the container's spec: %w", err)
	}
	var s struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Process == nil {
		return p, fmt.Errorf("the container's spec is damaged: %w", errors.Join(err, runtime.ErrState))
	}
	s.Process.Args = nil
	m.mu.Lock()
	l.process, l.loaded = *s.Process, true
	m.mu.Unlock()
	return *s.Process, nil
}

// ReopenLog makes the monitor close and open the container's log file.
func (m *Manager) ReopenLog(ctx context.Context, id runtime.ContainerID) error {
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return err
	}
	if c.State != runtime.ContainerRunning {
		return fmt.Errorf("%w: container %s is %s", runtime.ErrState, id, c.State)
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return err
	}
	return mon.ReopenLog(ctx, id)
}

// UpdateResources applies limits to a created or running container and records
// them; fields that r leaves out stay as they are.
func (m *Manager) UpdateResources(ctx context.Context, id runtime.ContainerID, r runtime.Resources) error {
	return m.updateResources(ctx, id, r, true)
}

func (m *Manager) updateResources(ctx context.Context, id runtime.ContainerID, r runtime.Resources, ask bool) error {
	done, err := m.ctrTurn.take(ctx, string(id))
	if err != nil {
		return err
	}
	defer done()
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return err
	}
	if c.State != runtime.ContainerRunning && c.State != runtime.ContainerCreated {
		return fmt.Errorf("%w: container %s is %s", runtime.ErrState, id, c.State)
	}
	ask = ask && m.o.Plugins != nil
	if ask {
		p, err := m.o.Ledger.Pod(c.PodID)
		if err != nil {
			return err
		}
		if r, err = m.o.Plugins.Update(ctx, p, c, r); err != nil {
			return fmt.Errorf("a plugin refuses the update of container %s: %w", id, err)
		}
	}
	lr, err := spec.Resources(&r, m.o.CgroupV2)
	if err != nil {
		return err
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return err
	}
	if err := mon.Update(ctx, id, *lr); err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	c, err = m.o.Ledger.ChangeContainer(id, func(c *runtime.Container) error {
		merged := mergeResources(c.Config.Resources, r)
		c.Config.Resources = &merged
		return nil
	})
	if err != nil || !ask {
		return err
	}
	return m.containerStep(ctx, StepUpdated, c)
}

// mergeResources lays the fields that are set in b over a.
func mergeResources(a *runtime.Resources, b runtime.Resources) runtime.Resources {
	if a == nil {
		return b
	}
	out := *a
	over(&out.CPUPeriod, b.CPUPeriod)
	over(&out.CPUQuota, b.CPUQuota)
	over(&out.CPUShares, b.CPUShares)
	over(&out.Memory, b.Memory)
	over(&out.MemorySwap, b.MemorySwap)
	over(&out.Pids, b.Pids)
	over(&out.OOMScoreAdj, b.OOMScoreAdj)
	if b.CPUSetCPUs != "" {
		out.CPUSetCPUs = b.CPUSetCPUs
	}
	if b.CPUSetMems != "" {
		out.CPUSetMems = b.CPUSetMems
	}
	out.HugepageLimit = overMap(a.HugepageLimit, b.HugepageLimit)
	out.Unified = overMap(a.Unified, b.Unified)
	return out
}

func over[T any](dst **T, src *T) {
	if src != nil {
		*dst = src
	}
}

func overMap[V any](a, b map[string]V) map[string]V {
	if len(a) == 0 {
		return b
	}
	out := make(map[string]V, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

// bundleCgroup reads the cgroup path back from a bundle, "" when it cannot.
func bundleCgroup(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return ""
	}
	var s struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(b, &s) != nil {
		return ""
	}
	return hostCgroup(s.Linux.CgroupsPath)
}
