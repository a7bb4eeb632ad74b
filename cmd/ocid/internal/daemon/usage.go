package daemon

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/cgroup"
	"github.com/ocid-io/ocid/internal/netlinks"
	"github.com/ocid-io/ocid/runtime"
)

// usage implements lifecycle.UsageReader on the kernel's files.
type usage struct {
	links netlinks.Reader

	mu      sync.Mutex
	devices map[[2]uint32]string // guarded by mu: names of block devices
}

// CPU implements lifecycle.UsageReader.
func (*usage) CPU(path string) (uint64, error) {
	host, err := cgroup.Host()
	if err != nil {
		return 0, err
	}
	return host.CPU(path)
}

// Cgroup implements lifecycle.UsageReader.
func (u *usage) Cgroup(path string, detail bool) (runtime.Usage, error) {
	host, err := cgroup.Host()
	if err != nil {
		return runtime.Usage{}, err
	}
	read := host.Stats
	if detail {
		read = host.DetailedStats
	}
	s, err := read(path)
	if err != nil {
		return runtime.Usage{}, err
	}
	out := runtime.Usage{
		CPUNanos: s.CPUNanos, MemoryUsage: s.MemoryUsage, MemoryWorkingSet: s.MemoryWorkingSet,
		MemoryRSS: s.MemoryRSS, MemoryLimit: s.MemoryLimit, MemoryAvailable: s.MemoryAvailable,
		MemoryCache: s.MemoryCache, MemoryMapped: s.MemoryMapped,
		ActiveFile: s.MemoryActiveFile, InactiveFile: s.MemoryInactiveFile,
		PageFaults: s.PageFaults, MajorPageFaults: s.MajorPageFaults,
		SwapUsage: s.SwapUsage, SwapLimit: s.SwapLimit,
		Pids: s.Pids, PidsLimit: s.PidsLimit, Processes: s.Processes,
	}
	if p := s.Pressure; p != nil {
		out.Pressure = &runtime.Pressure{CPU: stall(p.CPU), Memory: stall(p.Memory), IO: stall(p.IO)}
	}
	if s.Detail != nil {
		out.Detail = u.detail(s.Detail)
		if pids, err := host.Procs(path); err == nil {
			openFiles(pids, out.Detail)
		}
	}
	return out, nil
}

func stall(s cgroup.Stall) runtime.Stall {
	return runtime.Stall{Some: runtime.StallTime(s.Some), Full: runtime.StallTime(s.Full)}
}

func (u *usage) detail(d *cgroup.Detail) *runtime.UsageDetail {
	out := &runtime.UsageDetail{
		CPUUser: d.CPUUser, CPUSystem: d.CPUSystem,
		Periods: d.Periods, ThrottledPeriods: d.ThrottledPeriods, ThrottledNanos: d.ThrottledNanos,
		Bursts: d.Bursts, BurstNanos: d.BurstNanos,
		MemoryMax: d.MemoryMax, MemoryKernel: d.MemoryKernel, MemoryFailures: d.MemoryFailures, OOMKills: d.OOMKills,
	}
	for _, io := range d.IO {
		out.IO = append(out.IO, runtime.DeviceUsage{
			Device: u.device(io.Major, io.Minor), Major: io.Major, Minor: io.Minor,
			ReadBytes: io.ReadBytes, WriteBytes: io.WriteBytes, DiscardBytes: io.DiscardBytes,
			Reads: io.Reads, Writes: io.Writes, Discards: io.Discards,
		})
	}
	return out
}

// device names a block device as /dev does; "" if it is gone.
func (u *usage) device(major, minor uint32) string {
	key := [2]uint32{major, minor}
	u.mu.Lock()
	defer u.mu.Unlock()
	name, ok := u.devices[key]
	if !ok {
		if to, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)); err == nil {
			name = "/dev/" + filepath.Base(to)
		}
		if u.devices == nil || len(u.devices) > 4096 {
			u.devices = map[[2]uint32]string{}
		}
		u.devices[key] = name
	}
	return name
}

// maxOpenLinks bounds how many descriptors of a container are looked at to
// tell sockets from files.
const maxOpenLinks = 8192

// openFiles counts descriptors and sockets of processes, and reads the first
// process's limit. A process that has ended counts as nothing.
func openFiles(pids []int, d *runtime.UsageDetail) {
	left := maxOpenLinks
	for i, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		if i == 0 {
			d.MaxOpenFiles = maxOpenFiles(dir + "/limits")
		}
		f, err := os.Open(dir + "/fd")
		if err != nil {
			continue
		}
		for {
			names, err := f.Readdirnames(1024)
			d.FileDescriptors += uint64(len(names))
			for _, n := range names[:min(left, len(names))] {
				if to, err := os.Readlink(dir + "/fd/" + n); err == nil && strings.HasPrefix(to, "socket:") {
					d.Sockets++
				}
			}
			left -= min(left, len(names))
			if err != nil {
				break
			}
		}
		_ = f.Close()
	}
}

// maxOpenFiles reads the soft limit from /proc/PID/limits (proc(5)).
func maxOpenFiles(path string) uint64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "Max open files"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				n, _ := strconv.ParseUint(fields[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

// FileSystem implements lifecycle.UsageReader.
func (u *usage) FileSystem(dir string, d *runtime.UsageDetail) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	d.FSBytes = st.Blocks * uint64(max(st.Bsize, 0)) //nolint:gosec // not negative
	d.FSInodes, d.FSInodesFree = st.Files, st.Ffree
	var at unix.Stat_t
	if err := unix.Stat(dir, &at); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	d.FSDevice = u.device(unix.Major(at.Dev), unix.Minor(at.Dev))
	return nil
}

// Interfaces implements lifecycle.UsageReader.
func (u *usage) Interfaces(netns string) ([]runtime.InterfaceUsage, error) {
	links, err := u.links.Links(netns)
	if err != nil {
		return nil, err
	}
	out := make([]runtime.InterfaceUsage, len(links))
	for i, l := range links {
		out[i] = runtime.InterfaceUsage(l)
	}
	return out, nil
}
