package lifecycle

import (
	"context"
	"fmt"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
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
	_, err := m.o.Ledger.ChangeContainer(c.ID, func(r *runtime.Container) error {
		r.CgroupPath = c.CgroupPath
		return nil
	})
	if err != nil {
		return fmt.Errorf("record the container's cgroup: %w", err)
	}
	return nil
}

// confine looks up what the machine's security modules have to say.
func (m *Manager) confine(ctx context.Context, c *runtime.Container, in *spec.Input) (err error) {
	sec := &c.Config.Security
	if aa := m.o.Extensions.AppArmor; aa != nil && !sec.Privileged {
		if in.AppArmorDefault, err = aa.Profile(ctx, sec.AppArmor, sec.AppArmorProfile); err != nil {
			return err
		}
	}
	in.SELinux = m.o.Extensions.SELinux != nil
	return nil
}

// relabel gives the volumes that ask for it the label of the container's mounts.
func (m *Manager) relabel(ctx context.Context, c *runtime.Container, label string) error {
	if m.o.Extensions.SELinux == nil || label == "" {
		return nil
	}
	for _, mt := range c.Config.Mounts {
		if !mt.SELinuxRelabel || mt.HostPath == "" {
			continue
		}
		if err := m.o.Extensions.SELinux.Relabel(ctx, mt.HostPath, label); err != nil {
			return err
		}
	}
	return nil
}

// selinuxLevel gives a new pod its level.
func (m *Manager) selinuxLevel(p *runtime.Pod) (err error) {
	if se := m.o.Extensions.SELinux; se != nil {
		p.SELinuxLevel, err = se.Level(p.ID, p.Config.Security.SELinux)
	}
	return err
}

func (m *Manager) releaseLevel(id runtime.PodID) {
	if se := m.o.Extensions.SELinux; se != nil {
		se.Release(id)
	}
}

// keepLevels tells which levels pods of an earlier run have.
func (m *Manager) keepLevels(pods []runtime.Pod) {
	if se := m.o.Extensions.SELinux; se != nil {
		for _, p := range pods {
			se.Keep(p.ID, p.SELinuxLevel)
		}
	}
}

// mountLabel is the label of a container's files; "" without SELinux.
func (m *Manager) mountLabel(p *runtime.Pod, c *runtime.ContainerConfig) (string, error) {
	if m.o.Extensions.SELinux == nil {
		return "", nil
	}
	return spec.MountLabel(p, c)
}

// labelFor gives files that all containers of a pod share the pod's label.
func (m *Manager) labelFor(ctx context.Context, p runtime.Pod, paths ...string) error {
	label, err := m.mountLabel(&p, &runtime.ContainerConfig{})
	if err != nil || label == "" {
		return err
	}
	for _, path := range paths {
		if err := m.o.Extensions.SELinux.Relabel(ctx, path, label); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) labelPodFiles(ctx context.Context, p runtime.Pod) error {
	dir := m.podDir(p.ID)
	return m.labelFor(ctx, p, filepath.Join(dir, "hostname"), filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"))
}
