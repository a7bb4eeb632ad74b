package lifecycle

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/ocid-io/ocid/runtime"
)

// Cgroups looks after the control groups above a pod's containers.
type Cgroups interface {
	// Missing lists which of the group and its parents do not exist, the
	// outermost first. Paths are relative to each hierarchy's root.
	Missing(path string) []string
	// RemoveEmpty removes the group if nothing is in it; what still has
	// processes or children stays, without an error. Idempotent.
	RemoveEmpty(ctx context.Context, path string) error
}

const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
	// scopePrefix begins the name of each container's scope.
	scopePrefix = "ocid"
	maxUnitName = 255 // systemd.unit(5)
)

// sliceDir gives the cgroup of a slice: each dash in its name is one level, so
// a-b.slice is at /a.slice/a-b.slice (systemd.slice(5)). Of a path only the
// last part counts, for the rest follows from it.
func sliceDir(name string) (string, error) {
	name = path.Base(path.Clean("/" + name))
	stem, ok := strings.CutSuffix(name, sliceSuffix)
	bad := !ok || stem == "" || len(name) > maxUnitName
	for i := 0; i < len(stem) && !bad; i++ {
		c := stem[i]
		bad = (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_.:\\-", rune(c))
	}
	if bad {
		return "", fmt.Errorf("%w: the systemd cgroup driver needs the name of a slice as cgroup parent, and got %q", runtime.ErrInvalid, name)
	}
	dir, prefix := "", ""
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" {
			return "", fmt.Errorf("%w: cgroup parent %q is no name of a slice: an empty part beside a dash", runtime.ErrInvalid, name)
		}
		prefix += part
		dir += "/" + prefix + sliceSuffix
		prefix += "-"
	}
	return dir, nil
}

// podCgroup gives the cgroup above the pod's containers, and refuses a parent
// that the driver cannot use.
func (m *Manager) podCgroup(cfg runtime.PodConfig, systemd bool) (string, error) {
	parent := cfg.CgroupParent
	if parent == "" {
		parent = m.o.CgroupParent
	}
	if systemd {
		return sliceDir(parent)
	}
	return path.Clean("/" + parent), nil
}

// cgroupParent is the cgroup above the containers of a pod on record.
func (m *Manager) cgroupParent(p runtime.Pod) string {
	dir, err := m.podCgroup(p.Config, p.SystemdCgroups)
	if err != nil {
		// RunPod has refused such a parent; a damaged record leads nowhere else.
		return path.Clean("/" + m.o.CgroupParent)
	}
	return dir
}

// containerCgroup is where a container of the pod lives.
func (m *Manager) containerCgroup(p runtime.Pod, id runtime.ContainerID) string {
	if p.SystemdCgroups {
		return path.Join(m.cgroupParent(p), scopePrefix+"-"+string(id)+scopeSuffix)
	}
	return path.Join(m.cgroupParent(p), string(id))
}

// engineCgroup is what an OCI runtime is told: the path itself or, for a
// scope, "slice:prefix:name".
func engineCgroup(cgroup string) string {
	stem, ok := strings.CutSuffix(path.Base(cgroup), scopeSuffix)
	prefix, name, dash := strings.Cut(stem, "-")
	if !ok || !dash {
		return cgroup
	}
	return path.Base(path.Dir(cgroup)) + ":" + prefix + ":" + name
}

// hostCgroup is the reverse of engineCgroup; "" for what is neither.
func hostCgroup(engine string) string {
	parts := strings.Split(engine, ":")
	if len(parts) != 3 || strings.HasPrefix(engine, "/") {
		return engine
	}
	dir, err := sliceDir(parts[0])
	if err != nil || strings.Contains(parts[1]+parts[2], "/") {
		return ""
	}
	return path.Join(dir, parts[1]+"-"+parts[2]+scopeSuffix)
}

// putPod records a new pod, with the cgroups above it that come into being with
// it, so that they go with it too. Those that a client has made before stay its
// own. A group that another pod has announced is announced by this one as well:
// the last pod in it removes it. Announcing and removing take turns, so that no
// group is removed under a pod that counts on it.
func (m *Manager) putPod(ctx context.Context, p *runtime.Pod, parent string) error {
	if m.o.Cgroups == nil || p.Config.CgroupParent == "" {
		return m.o.Ledger.PutPod(*p) // the default parent stays as long as the daemon runs
	}
	done, err := m.podTurn.take(ctx, cgroupTurn)
	if err != nil {
		return err
	}
	defer done()
	p.CgroupsMade = m.o.Cgroups.Missing(parent)
	for _, other := range m.o.Ledger.PodViews() {
		for _, g := range other.CgroupsMade {
			if !slices.Contains(p.CgroupsMade, g) && (g == parent || strings.HasPrefix(parent, g+"/")) {
				p.CgroupsMade = append(p.CgroupsMade, g)
			}
		}
	}
	return m.o.Ledger.PutPod(*p)
}

// cgroupTurn is the key under which the groups above pods change; no pod's id.
const cgroupTurn = "cgroups"

// removeCgroups removes the cgroups that came with the pod, the innermost
// first, unless another pod is in them, and then the pod's record.
func (m *Manager) removeCgroups(ctx context.Context, p runtime.Pod) error {
	if m.o.Cgroups == nil || len(p.CgroupsMade) == 0 {
		return m.o.Ledger.DeletePod(p.ID)
	}
	done, err := m.podTurn.take(ctx, cgroupTurn)
	if err != nil {
		return err
	}
	defer done()
	shared := map[string]bool{}
	for _, other := range m.o.Ledger.PodViews() {
		if other.ID == p.ID {
			continue
		}
		for _, g := range other.CgroupsMade {
			shared[g] = true
		}
	}
	// The outer ones are prefixes of the inner ones, so length is depth.
	made := slices.SortedFunc(slices.Values(p.CgroupsMade), func(a, b string) int { return len(b) - len(a) })
	for _, g := range made {
		if shared[g] {
			continue
		}
		if err := m.o.Cgroups.RemoveEmpty(ctx, g); err != nil {
			return fmt.Errorf("remove cgroup %s of pod %s: %w", g, p.ID, err)
		}
	}
	return m.o.Ledger.DeletePod(p.ID)
}
