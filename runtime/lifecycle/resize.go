package lifecycle

import (
	"context"
	"fmt"

	"github.com/ocid-io/ocid/runtime"
)

// UpdatePodResources records what a pod as a whole may use. The cgroup above
// the containers is its client's, who has set its limits before this call, or
// is shared with other pods; so that the record is all there is to change.
func (m *Manager) UpdatePodResources(ctx context.Context, id runtime.PodID, resources, overhead *runtime.Resources) error {
	done, err := m.podTurn.take(ctx, string(id))
	if err != nil {
		return err
	}
	defer done()
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return err
	}
	set := func(p *runtime.Pod) error {
		if p.State != runtime.PodReady {
			return fmt.Errorf("%w: pod %s is %s", runtime.ErrState, id, p.State)
		}
		if resources != nil {
			p.Resources = resources
		}
		if overhead != nil {
			p.Overhead = overhead
		}
		return nil
	}
	if err := set(&p); err != nil {
		return err
	}
	if err := m.podStep(ctx, StepPodUpdate, p); err != nil {
		return err
	}
	// The plugins took their time, and the pod may have lost its monitor.
	if p, err = m.o.Ledger.ChangePod(id, set); err != nil {
		return err
	}
	return m.podStep(ctx, StepPodUpdated, p)
}
