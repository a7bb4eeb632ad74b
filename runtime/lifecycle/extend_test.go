package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// fakeSELinux gives every pod one level and writes down what it is asked.
type fakeSELinux struct {
	mu        sync.Mutex
	relabeled []string
	taken     int
	fail      error
}

func (f *fakeSELinux) Level(runtime.PodID, *runtime.SELinux) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken++
	return "s0:c1,c2", nil
}

func (f *fakeSELinux) Keep(runtime.PodID, string) {}

func (f *fakeSELinux) Release(runtime.PodID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.taken--
}

func (f *fakeSELinux) Relabel(_ context.Context, path, label string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.relabeled = append(f.relabeled, path+" "+label)
	return f.fail
}

type fakeAppArmor struct{ err error }

func (f fakeAppArmor) Profile(context.Context, runtime.ProfileKind, string) (string, error) {
	return "profile", f.err
}

type adjuster func(c *runtime.Container, s *specs.Spec) error

func (a adjuster) AdjustSpec(_ context.Context, _ runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	return a(c, s)
}

func TestExtensions(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	se := &fakeSELinux{}
	var seen *specs.Spec
	m.o.Extensions = Extensions{
		SELinux: se, AppArmor: fakeAppArmor{},
		Adjust: []SpecAdjuster{adjuster(func(c *runtime.Container, s *specs.Spec) error {
			seen = s
			c.CgroupPath, s.Linux.CgroupsPath = "/moved", "/moved"
			return nil
		})},
	}
	pod, err := m.RunPod(t.Context(), podConfig("ext"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := containerConfig("one")
	dir := t.TempDir()
	cfg.Mounts = []runtime.Mount{{HostPath: dir, ContainerPath: "/a", SELinuxRelabel: true}, {HostPath: "/etc", ContainerPath: "/b"}}
	id, err := m.CreateContainer(t.Context(), pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	if seen.Process.ApparmorProfile != "profile" || seen.Linux.MountLabel != label || !strings.HasSuffix(seen.Process.SelinuxLabel, ":s0:c1,c2") {
		t.Errorf("confined by %q, %q, %q", seen.Process.ApparmorProfile, seen.Process.SelinuxLabel, seen.Linux.MountLabel)
	}
	if !slices.Contains(se.relabeled, dir+" "+label) || slices.ContainsFunc(se.relabeled, func(s string) bool { return strings.HasPrefix(s, "/etc ") }) {
		t.Errorf("relabelled %v", se.relabeled)
	}
	if c, err := m.Container(string(id)); err != nil || c.CgroupPath != "/moved" {
		t.Errorf("the record has cgroup %q (%v)", c.CgroupPath, err)
	}
	if err := m.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if se.taken != 0 {
		t.Errorf("%d levels are left taken", se.taken)
	}
}

func TestExtensionsThatRefuse(t *testing.T) {
	reason := errors.New("the reason")
	for name, e := range map[string]Extensions{
		"adjuster": {Adjust: []SpecAdjuster{adjuster(func(*runtime.Container, *specs.Spec) error { return reason })}},
		"AppArmor": {AppArmor: fakeAppArmor{reason}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := newManager(t, w)
			pod, err := m.RunPod(t.Context(), podConfig("ext"))
			if err != nil {
				t.Fatal(err)
			}
			before := len(w.left())
			m.o.Extensions = e
			if _, err := m.CreateContainer(t.Context(), pod, containerConfig("one")); !errors.Is(err, reason) {
				t.Errorf("%v", err)
			}
			if left := w.left(); len(left) != before {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
