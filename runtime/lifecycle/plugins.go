package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// Step is a moment in the life of a pod or container that plugins learn of.
type Step string

// Steps. At those marked so an error refuses what is being done; at all others
// it is too late, and an error is only logged.
const (
	StepPodRun     Step = "pod run"    // refuses
	StepPodUpdate  Step = "pod update" // refuses
	StepPodUpdated Step = "pod updated"
	StepPodStop    Step = "pod stop"
	StepPodRemove  Step = "pod remove"
	StepCreated    Step = "container created"
	StepStart      Step = "container start" // refuses
	StepStarted    Step = "container started"
	StepUpdated    Step = "container updated"
	StepStopped    Step = "container stopped"
	StepRemove     Step = "container remove"
	stepPluginTime      = 30 * time.Second
)

// Plugins are told of each step. A call takes bounded time.
type Plugins interface {
	PodStep(ctx context.Context, step Step, p runtime.Pod) error
	ContainerStep(ctx context.Context, step Step, p runtime.Pod, c runtime.Container) error
	// Update returns r as the plugins want it.
	Update(ctx context.Context, p runtime.Pod, c runtime.Container, r runtime.Resources) (runtime.Resources, error)
	// Hold keeps plugins from being brought up to date until release is called:
	// what is being made would be neither on the list they get nor told to them.
	Hold() (release func())
}

func (m *Manager) holdPlugins() (release func()) {
	if m.o.Plugins == nil {
		return func() {}
	}
	return m.o.Plugins.Hold()
}

// podStep tells the plugins; only at StepPodRun and StepPodUpdate its error matters.
func (m *Manager) podStep(ctx context.Context, step Step, p runtime.Pod) error {
	if m.o.Plugins == nil {
		return nil
	}
	err := m.o.Plugins.PodStep(ctx, step, p)
	if err != nil && (step == StepPodRun || step == StepPodUpdate) {
		return fmt.Errorf("a plugin refuses the %s: %w", step, err)
	}
	if err != nil {
		m.log.Warn("a plugin failed", "step", step, "pod", p.ID, "error", err)
	}
	return nil
}

// containerStep tells the plugins; only at StepStart its error matters.
func (m *Manager) containerStep(ctx context.Context, step Step, c runtime.Container) error {
	if m.o.Plugins == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepPluginTime)
	defer cancel()
	p, err := m.o.Ledger.Pod(c.PodID)
	if err == nil {
		err = m.o.Plugins.ContainerStep(ctx, step, p, c)
	}
	if err != nil && step == StepStart {
		return fmt.Errorf("a plugin refuses the start: %w", err)
	}
	if err != nil {
		m.log.Warn("a plugin failed", "step", step, "container", c.ID, "error", err)
	}
	return nil
}

// Spec reads the OCI spec that a container was made from.
func (m *Manager) Spec(c *runtime.Container) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(m.bundle(c), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's spec: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w: the container's spec is damaged: %w", runtime.ErrState, err)
	}
	return &s, nil
}

// NamespacePaths tells where the namespaces of a pod are pinned, by the names
// of the OCI spec.
func (m *Manager) NamespacePaths(p runtime.Pod) map[string]string {
	names := map[string]string{"net": "network"}
	out := map[string]string{}
	for _, n := range pinned(p.Config) {
		name := n
		if oci, ok := names[n]; ok {
			name = oci
		}
		out[name] = filepath.Join(m.nsDir(p.ID), n)
	}
	if p.Config.Namespaces.PID == runtime.NamespacePod {
		out["pid"] = filepath.Join(m.nsDir(p.ID), "pid")
	}
	return out
}

// ApplyUpdate is UpdateResources on behalf of a plugin: no plugin is asked.
func (m *Manager) ApplyUpdate(ctx context.Context, id runtime.ContainerID, r runtime.Resources) error {
	return m.updateResources(ctx, id, r, false)
}
