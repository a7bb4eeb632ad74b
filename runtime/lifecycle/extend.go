package lifecycle

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// SpecAdjuster changes a container's OCI spec after it was built and before it
// is written. It may set c.CgroupPath along with the spec's. Nothing outside
// the process may be left by it: an error ends the creation, and is not undone.
type SpecAdjuster interface {
	AdjustSpec(ctx context.Context, p runtime.Pod, c *runtime.Container, s *specs.Spec) error
}

// AppArmor tells which loaded profile a request stands for; "" is none.
type AppArmor interface {
	Profile(ctx context.Context, kind runtime.ProfileKind, name string) (string, error)
}

// SELinux gives pods their labels. Level is idempotent by pod, and Keep tells
// it what pods of an earlier run of the daemon have; Release is idempotent.
type SELinux interface {
	Level(id runtime.PodID, asked *runtime.SELinux) (string, error)
	Keep(id runtime.PodID, level string)
	Release(id runtime.PodID)
	// Relabel gives a volume's files the label, in bounded time.
	Relabel(ctx context.Context, path, label string) error
}

// Extensions are the parts of the machine, and of its operator, that have a
// say in what a container becomes. A nil field is none and costs nothing.
type Extensions struct {
	// Adjust run in order.
	Adjust   []SpecAdjuster
	AppArmor AppArmor
	SELinux  SELinux
	// HidesHostDevices tells that privileged containers of a handler get no
	// device of the host that they did not ask for.
	HidesHostDevices func(handler string) bool
}

// adjust lets the extensions change a built spec.
func (m *Manager) adjust(ctx context.Context, op *operation, p runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	if len(m.o.Extensions.Adjust) == 0 {
		return nil
	}
	defer op.enter(ctx, "adjust")()
	before := c.CgroupPath
	for _, a := range m.o.Extensions.Adjust {
		if err := a.AdjustSpec(ctx, p, c, s); err != nil {
			return err
		}
	}
	if c.CgroupPath == before {
		return nil
	}
	// The intent to make a cgroup was for another one.
	if err := m.o.Ledger.PutContainer(*c); err != nil {
		return fmt.Errorf("record the container's cgroup: %w", err)
	}
	return nil
}
