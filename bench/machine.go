package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// daemon is the pid of the daemon, 0 if unknown.
func (b *bench) daemon() int {
	if b.o.pidFile == "" {
		return 0
	}
	data, err := os.ReadFile(b.o.pidFile)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}

func (b *bench) memoryIdle(ctx context.Context, group string) error {
	pid := b.daemon()
	if pid == 0 {
		return nil
	}
	b.add(row{Group: group, Name: "PSS of the daemon", P50: pss(pid) / 1024, Unit: "MB", Idle: b.quiet(ctx)})
	return nil
}

// restart ends the daemon with SIGTERM five times; whoever watches it starts it
// again. The time runs from its end to the first list with all pods ready.
func (b *bench) restart(ctx context.Context, group string, pods int, idle float64) error {
	var ms []float64
	for range 5 {
		pid := b.daemon()
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("daemon %d: %w", pid, err)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			return err
		}
		for {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30000)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		unix.Close(fd)
		start := time.Now()
		for {
			b.conn.ResetConnectBackoff()
			r, err := b.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
				State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
			}})
			if err == nil && len(r.Items) >= pods {
				break
			}
			if time.Since(start) > time.Minute {
				return fmt.Errorf("the daemon did not come back with %d pods: %d listed, %w", pods, len(r.GetItems()), err)
			}
			time.Sleep(time.Millisecond)
		}
		ms = append(ms, float64(time.Since(start).Microseconds())/1000)
	}
	b.add(row{Group: group, Name: "restart until all are listed", P50: quantile(ms, .5), P95: quantile(ms, .95), Unit: "ms", N: len(ms), Idle: idle})
	return nil
}

// quiet waits a little for the machine to settle and returns its idle share
// over the last look, in percent.
func (b *bench) quiet(ctx context.Context) float64 {
	unix.Sync()
	idle := 0.0
	for range 8 {
		i0, t0 := cpuTimes()
		select {
		case <-ctx.Done():
			return idle
		case <-time.After(500 * time.Millisecond):
		}
		i1, t1 := cpuTimes()
		if idle = 100 * (i1 - i0) / max(t1-t0, 1); idle >= 97 {
			break
		}
	}
	fmt.Printf("-- machine %.0f %% idle\n", idle)
	return idle
}

func cpuTimes() (idle, total float64) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line)[1:] {
		v, err := strconv.ParseFloat(f, 64)
		if err != nil || i > 7 {
			continue
		}
		total += v
		if i == 3 || i == 4 {
			idle += v
		}
	}
	return idle, total
}

func procValue(file, key string) float64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(l, key); ok {
			v, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err == nil {
				return v
			}
		}
	}
	return 0
}

// pss is a process's proportional memory in KiB.
func pss(pid int) float64 { return procValue(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") }

func peakRSS(pid int) float64 { return procValue(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:") }

// cpuSeconds is what a process and its ended children have used.
func cpuSeconds(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	sum := 0.0
	for _, i := range []int{11, 12, 13, 14} {
		if v, err := strconv.ParseFloat(f[i], 64); err == nil {
			sum += v
		}
	}
	return sum / 100 // USER_HZ
}

// named lists the processes whose program has a name.
func named(name string) []int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var out []int
	for _, d := range dirs {
		args, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue
		}
		first, _, _ := bytes.Cut(args, []byte{0})
		if exe, _ := os.Readlink(filepath.Join(d, "exe")); filepath.Base(string(first)) != name && filepath.Base(exe) != name {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
