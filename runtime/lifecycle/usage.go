package lifecycle

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// upperAge is how old a writable layer's measure may be before the next
// request has it measured again, beside the answer.
const upperAge = 10 * time.Second

// upperUsage caches what a writable layer takes; walking it is never done on
// the path of a request but the first.
type upperUsage struct {
	mu      sync.Mutex
	at      time.Time // guarded by mu, as all below
	running bool
	bytes   uint64
	inodes  uint64
}

// ContainerUsage tells what the container uses; zero values for one that ended.
func (m *Manager) ContainerUsage(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return runtime.Usage{}, err
	}
	var u runtime.Usage
	if c.State == runtime.ContainerRunning || c.State == runtime.ContainerCreated {
		if u, err = m.o.Usage.Cgroup(c.CgroupPath); err != nil && !errors.Is(err, os.ErrNotExist) {
			return u, err
		}
	}
	u.Timestamp = time.Now().UnixNano()
	if m.o.UpperDir != nil {
		dir := m.o.UpperDir(string(id))
		u.UpperMount = dir
		u.UpperBytes, u.UpperInodes = m.liveOf(id).upper.read(dir)
	}
	return u, nil
}

func (u *upperUsage) read(dir string) (bytes, inodes uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at.IsZero() {
		u.bytes, u.inodes = walk(dir)
		u.at = time.Now()
	} else if time.Since(u.at) > upperAge && !u.running {
		u.running = true
		go func() {
			b, n := walk(dir)
			u.mu.Lock()
			u.bytes, u.inodes, u.at, u.running = b, n, time.Now(), false
			u.mu.Unlock()
		}()
	}
	return u.bytes, u.inodes
}

// walk sums blocks and inodes below dir; what vanishes meanwhile is left out.
func walk(dir string) (bytes, inodes uint64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what vanished or cannot be read is left out
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += uint64(st.Blocks) * 512
				inodes++
			}
		}
		return nil
	})
	return bytes, inodes
}

// PodUsage sums what the pod's containers use and reads its interfaces.
func (m *Manager) PodUsage(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error) {
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return runtime.PodUsage{}, err
	}
	var sum runtime.PodUsage
	for _, c := range m.o.Ledger.ContainersOf(id) {
		if c.State != runtime.ContainerRunning {
			continue
		}
		u, err := m.ContainerUsage(ctx, c.ID)
		if err != nil {
			continue // it ended between the list and the look
		}
		sum.CPUNanos += u.CPUNanos
		sum.MemoryUsage += u.MemoryUsage
		sum.MemoryWorkingSet += u.MemoryWorkingSet
		sum.MemoryRSS += u.MemoryRSS
		sum.PageFaults += u.PageFaults
		sum.MajorPageFaults += u.MajorPageFaults
		sum.SwapUsage += u.SwapUsage
		sum.Pids += u.Pids
	}
	sum.Timestamp = time.Now().UnixNano()
	if p.State == runtime.PodReady && runtime.Has(p.Intents, runtime.IntentNetwork) {
		sum.Network, err = m.o.Usage.Interfaces(filepath.Join(m.nsDir(id), "net"))
		if err != nil {
			m.log.Debug("read the pod's interfaces", "pod", id, "error", err)
		}
	}
	return sum, nil
}
