package lifecycle

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// UsageReader reads what the kernel counts.
type UsageReader interface {
	// CPU reads only the CPU time of a cgroup: as long as it stands still,
	// nothing has run there.
	CPU(cgroup string) (nanos uint64, err error)
	// Cgroup reads all, and with detail what is dearer to read.
	Cgroup(cgroup string, detail bool) (runtime.Usage, error)
	Interfaces(netns string) ([]runtime.InterfaceUsage, error)
	// FileSystem adds the size of the file system that holds dir.
	FileSystem(dir string, d *runtime.UsageDetail) error
}

// idleAge is how long a reading stands for a group in which nothing has run
// since: the kernel may take pages back, and packets may come in, but no more.
const idleAge = 10 * time.Second

// lookAge is how long a look stands: a client that asks for containers and for
// their pods in one breath costs one.
const lookAge = 500 * time.Millisecond

// reading is the last one of a cgroup. The zero value is none.
type reading struct {
	mu    sync.Mutex
	usage runtime.Usage // guarded by mu, as all below; without Detail
	at    time.Time
	look  time.Time // when its CPU time was last seen
	links []runtime.InterfaceUsage
	// linksAt and linksCPU are when, and at which CPU time, links were read.
	linksAt  time.Time
	linksCPU uint64
}

// of reads the group, or gives the last reading if nothing has run since.
func (r *reading) of(in UsageReader, cgroup string, detail bool) (runtime.Usage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !detail && !r.at.IsZero() && now.Sub(r.at) < idleAge {
		if now.Sub(r.look) < lookAge {
			return r.usage, nil
		}
		if cpu, err := in.CPU(cgroup); err == nil && cpu == r.usage.CPUNanos {
			r.usage.Timestamp, r.look = now.UnixNano(), now
			return r.usage, nil
		}
	}
	u, err := in.Cgroup(cgroup, detail)
	if err != nil {
		return runtime.Usage{}, err
	}
	u.Timestamp = now.UnixNano()
	u.ReadAt = u.Timestamp
	r.usage, r.at, r.look = u, now, now
	r.usage.Detail = nil
	return u, nil
}

// network reads the interfaces, or gives the last reading as of does.
func (r *reading) network(in UsageReader, netns string, cpu uint64) ([]runtime.InterfaceUsage, int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if cpu != r.linksCPU || r.linksAt.IsZero() || now.Sub(r.linksAt) >= idleAge {
		links, err := in.Interfaces(netns)
		if err != nil {
			return nil, 0, err
		}
		r.links, r.linksAt, r.linksCPU = links, now, cpu
	}
	return r.links, r.linksAt.UnixNano(), nil
}

// ContainerUsage tells what the container uses; zero values for one that ended.
func (m *Manager) ContainerUsage(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	return m.containerUsage(id, false)
}

// ContainerDetail is ContainerUsage with what is dearer to read.
func (m *Manager) ContainerDetail(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	return m.containerUsage(id, true)
}

func (m *Manager) containerUsage(id runtime.ContainerID, detail bool) (runtime.Usage, error) {
	c, err := m.o.Ledger.ContainerView(id)
	if err != nil {
		return runtime.Usage{}, err
	}
	live, runs := m.liveIfAny(id), c.State == runtime.ContainerRunning || c.State == runtime.ContainerCreated
	u := runtime.Usage{Timestamp: time.Now().UnixNano()}
	u.ReadAt = u.Timestamp
	if runs {
		read, err := live.usage.of(m.o.Usage, c.CgroupPath, detail)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return u, err
		}
		if err == nil {
			u = read
		}
	}
	if m.o.UpperDir == nil {
		return u, nil
	}
	u.UpperMount = m.o.UpperDir(string(id))
	if runs {
		m.uppers.want(&live.upper, u.UpperMount, u.CPUNanos)
	}
	u.UpperBytes, u.UpperInodes, u.UpperAt = live.upper.last()
	if u.Detail != nil {
		if err := m.o.Usage.FileSystem(u.UpperMount, u.Detail); err != nil {
			m.log.Debug("size of a root file system's disk", "container", id, "error", err)
		}
	}
	return u, nil
}

// liveIfAny returns what is known of a live container, or something to work
// with that is not kept: a reader must not make known again what was forgotten.
func (m *Manager) liveIfAny(id runtime.ContainerID) *liveContainer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.live[id]; l != nil {
		return l
	}
	return &liveContainer{gone: make(chan struct{})}
}

// podReading returns the pod's last reading, kept for as long as its monitor is.
func (m *Manager) podReading(id runtime.PodID) *reading {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.podReadings[id]
	if r == nil {
		r = &reading{}
		if m.pods[id] != nil {
			m.podReadings[id] = r
		}
	}
	return r
}

// PodUsage tells what the pod uses: by its own cgroup, if it has one, where
// counters include containers that have ended; else as the sum of its
// containers. Its interfaces are the pod's network namespace's.
func (m *Manager) PodUsage(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error) {
	return m.podUsage(ctx, id, false)
}

// PodDetail is PodUsage with what is dearer to read.
func (m *Manager) PodDetail(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error) {
	return m.podUsage(ctx, id, true)
}

func (m *Manager) podUsage(_ context.Context, id runtime.PodID, detail bool) (runtime.PodUsage, error) {
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return runtime.PodUsage{}, err
	}
	containers := m.o.Ledger.ContainerViewsOf(id)
	r := m.podReading(id)
	var out runtime.PodUsage
	if out.Cgroup = ownCgroup(p, containers); out.Cgroup != "" {
		if out.Usage, err = r.of(m.o.Usage, out.Cgroup, detail); err != nil {
			out.Cgroup = ""
		}
	}
	processes := uint64(0)
	for _, c := range containers {
		if c.State != runtime.ContainerRunning {
			continue
		}
		u, err := m.liveIfAny(c.ID).usage.of(m.o.Usage, c.CgroupPath, false)
		if err != nil {
			continue // it ended between the list and the look
		}
		processes += u.Processes
		if out.Cgroup == "" {
			addUsage(&out.Usage, &u)
		}
	}
	out.Processes = processes // a group's own list leaves out those below it
	if out.Timestamp == 0 {
		out.Timestamp = time.Now().UnixNano()
		out.ReadAt = out.Timestamp
	}
	if p.State == runtime.PodReady && runtime.Has(p.Intents, runtime.IntentNetwork) {
		out.Network, out.NetworkAt, err = r.network(m.o.Usage, filepath.Join(m.nsDir(id), "net"), out.CPUNanos)
		if err != nil {
			m.log.Debug("read the pod's interfaces", "pod", id, "error", err)
		}
	}
	return out, nil
}

func addUsage(sum, u *runtime.Usage) {
	sum.CPUNanos += u.CPUNanos
	sum.MemoryUsage += u.MemoryUsage
	sum.MemoryWorkingSet += u.MemoryWorkingSet
	sum.MemoryRSS += u.MemoryRSS
	sum.MemoryCache += u.MemoryCache
	sum.MemoryMapped += u.MemoryMapped
	sum.ActiveFile += u.ActiveFile
	sum.InactiveFile += u.InactiveFile
	sum.PageFaults += u.PageFaults
	sum.MajorPageFaults += u.MajorPageFaults
	sum.SwapUsage += u.SwapUsage
	sum.Pids += u.Pids
	if sum.Timestamp == 0 || u.Timestamp < sum.Timestamp {
		sum.Timestamp = u.Timestamp
	}
	if sum.ReadAt == 0 || u.ReadAt < sum.ReadAt {
		sum.ReadAt = u.ReadAt
	}
}

// ownCgroup returns the cgroup above the pod's containers if it is this pod's
// alone, which the kubelet's naming tells: "pod" and the pod's uid, with
// underscores under systemd. It is "" if other pods may be in it.
func ownCgroup(p runtime.Pod, containers []*runtime.Container) string {
	uid := p.Config.Name.UID
	if uid == "" || len(containers) == 0 {
		return ""
	}
	dir := path.Dir(containers[0].CgroupPath)
	base := strings.TrimSuffix(path.Base(dir), ".slice")
	if strings.HasSuffix(base, "pod"+uid) || strings.HasSuffix(base, "pod"+strings.ReplaceAll(uid, "-", "_")) {
		return dir
	}
	return ""
}
