package daemon

import (
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/cgroup"
	"github.com/ocid-io/ocid/runtime"
)

// usage implements lifecycle.UsageReader on the kernel's files.
type usage struct{}

// Cgroup reads what a cgroup uses.
func (usage) Cgroup(path string) (runtime.Usage, error) {
	host, err := cgroup.Host()
	if err != nil {
		return runtime.Usage{}, err
	}
	s, err := host.Stats(path)
	if err != nil {
		return runtime.Usage{}, err
	}
	return runtime.Usage{
		CPUNanos: s.CPUNanos, MemoryUsage: s.MemoryUsage, MemoryWorkingSet: s.MemoryWorkingSet,
		MemoryRSS: s.MemoryRSS, MemoryAvailable: s.MemoryAvailable,
		PageFaults: s.PageFaults, MajorPageFaults: s.MajorPageFaults,
		SwapUsage: s.SwapUsage, Pids: s.Pids, PidsLimit: s.PidsLimit,
	}, nil
}

// Interfaces reads the counters of a pinned network namespace. It enters the
// namespace on a thread of its own, which ends with the call.
func (usage) Interfaces(netns string) ([]runtime.InterfaceUsage, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread is in another namespace and must not be used again
		var r result
		r.text, r.err = netDev(netns)
		done <- r
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	return parseNetDev(string(r.text)), nil
}

func netDev(netns string) ([]byte, error) {
	f, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", netns, err)
	}
	return os.ReadFile("/proc/thread-self/net/dev")
}

// parseNetDev reads /proc/net/dev (proc(5)), loopback left out.
func parseNetDev(text string) []runtime.InterfaceUsage {
	var out []runtime.InterfaceUsage
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) < 11 || name == "lo" {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		out = append(out, runtime.InterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)})
	}
	return out
}
