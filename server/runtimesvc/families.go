package runtimesvc

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

func isContainer(x *subject) bool { return x.c != nil }

func hasQuota(x *subject) bool {
	return x.d.Periods > 0 || x.c != nil && x.c.Config.Resources != nil && deref(x.c.Config.Resources.CPUQuota) > 0
}

func hasPressure(x *subject) bool { return x.u.Pressure != nil }

func hasUpper(x *subject) bool { return x.c != nil && x.u.UpperAt != 0 }

// limits are those that the container was given.
func limits(x *subject) runtime.Resources {
	if x.c.Config.Resources == nil {
		return runtime.Resources{}
	}
	return *x.c.Config.Resources
}

var containerFamilies = join(cpuFamilies, memoryFamilies, diskFamilies, ioFamilies, processFamilies, specFamilies, pressureFamilies)

func join(lists ...[]family) (out []family) {
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

var cpuFamilies = []family{
	counter("container_cpu_user_seconds_total", "CPU time spent in user mode, in seconds.",
		func(x *subject) uint64 { return seconds64(x.d.CPUUser) }),
	counter("container_cpu_system_seconds_total", "CPU time spent in the kernel, in seconds.",
		func(x *subject) uint64 { return seconds64(x.d.CPUSystem) }),
	newFamily(cri.MetricType_COUNTER, "container_cpu_usage_seconds_total", "CPU time used, in seconds.", []string{"cpu"},
		func(x *subject, out emit) { out(seconds64(x.u.CPUNanos), "total") }),
	counter("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.",
		func(x *subject) uint64 { return x.d.Periods }).when(hasQuota),
	counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.",
		func(x *subject) uint64 { return x.d.ThrottledPeriods }).when(hasQuota),
	counter("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for the next CPU period, in seconds.",
		func(x *subject) uint64 { return seconds64(x.d.ThrottledNanos) }).when(hasQuota),
	counter("container_cpu_cfs_burst_periods_total", "Periods in which more than the CPU quota was used.",
		func(x *subject) uint64 { return x.d.Bursts }).when(hasQuota),
	counter("container_cpu_cfs_burst_seconds_total", "CPU time used beyond the quota, in seconds.",
		func(x *subject) uint64 { return seconds64(x.d.BurstNanos) }).when(hasQuota),
}

var memoryFamilies = []family{
	gauge("container_memory_cache", "Page cache in bytes.", func(x *subject) uint64 { return x.u.MemoryCache }),
	gauge("container_memory_rss", "Anonymous memory in bytes.", func(x *subject) uint64 { return x.u.MemoryRSS }),
	gauge("container_memory_kernel_usage", "Memory that the kernel holds for it, in bytes.", func(x *subject) uint64 { return x.d.MemoryKernel }),
	gauge("container_memory_mapped_file", "Mapped files in bytes.", func(x *subject) uint64 { return x.u.MemoryMapped }),
	gauge("container_memory_swap", "Swap in use, in bytes.", func(x *subject) uint64 { return x.u.SwapUsage }),
	counter("container_memory_failcnt", "Times that memory in use ran into its limit.", func(x *subject) uint64 { return x.d.MemoryFailures }),
	gauge("container_memory_usage_bytes", "Memory in use, whenever it was last touched, in bytes.", func(x *subject) uint64 { return x.u.MemoryUsage }),
	gauge("container_memory_max_usage_bytes", "The most memory that was ever in use, in bytes.", func(x *subject) uint64 { return x.d.MemoryMax }),
	gauge("container_memory_working_set_bytes", "Memory in use without idle page cache, in bytes.", func(x *subject) uint64 { return x.u.MemoryWorkingSet }),
	gauge("container_memory_total_active_file_bytes", "Page cache in active use, in bytes.", func(x *subject) uint64 { return x.u.ActiveFile }),
	gauge("container_memory_total_inactive_file_bytes", "Idle page cache in bytes.", func(x *subject) uint64 { return x.u.InactiveFile }),
	newFamily(cri.MetricType_COUNTER, "container_memory_failures_total", "Page faults.", []string{"failure_type", "scope"},
		func(x *subject, out emit) {
			// A container is one group: itself and all below it are the same.
			for _, scope := range []string{"container", "hierarchy"} {
				out(x.u.PageFaults, "pgfault", scope)
				out(x.u.MajorPageFaults, "pgmajfault", scope)
			}
		}),
	counter("container_oom_events_total", "Processes that were killed for want of memory.", func(x *subject) uint64 { return x.d.OOMKills }),
}

func disk(name, help string, read func(*subject) uint64) family {
	return newFamily(cri.MetricType_GAUGE, name, help, []string{"device"}, func(x *subject, out emit) {
		out(read(x), x.d.FSDevice)
	}).when(hasUpper)
}

var diskFamilies = []family{
	disk("container_fs_inodes_free", "Free inodes of the file system with the writable layer.", func(x *subject) uint64 { return x.d.FSInodesFree }),
	disk("container_fs_inodes_total", "Inodes of the file system with the writable layer.", func(x *subject) uint64 { return x.d.FSInodes }),
	disk("container_fs_limit_bytes", "Size of the file system with the writable layer, in bytes.", func(x *subject) uint64 { return x.d.FSBytes }),
	disk("container_fs_usage_bytes", "What the writable layer takes, in bytes.", func(x *subject) uint64 { return x.u.UpperBytes }),
}

func device(name, help string, read func(*runtime.DeviceUsage) uint64) family {
	return newFamily(cri.MetricType_COUNTER, name, help, []string{"device"}, func(x *subject, out emit) {
		for i := range x.d.IO {
			out(read(&x.d.IO[i]), x.d.IO[i].Device)
		}
	})
}

var ioFamilies = []family{
	device("container_fs_reads_bytes_total", "Bytes read from the device.", func(d *runtime.DeviceUsage) uint64 { return d.ReadBytes }),
	device("container_fs_reads_total", "Reads from the device.", func(d *runtime.DeviceUsage) uint64 { return d.Reads }),
	device("container_fs_writes_bytes_total", "Bytes written to the device.", func(d *runtime.DeviceUsage) uint64 { return d.WriteBytes }),
	device("container_fs_writes_total", "Writes to the device.", func(d *runtime.DeviceUsage) uint64 { return d.Writes }),
	newFamily(cri.MetricType_COUNTER, "container_blkio_device_usage_total", "Bytes by device and operation.",
		[]string{"device", "major", "minor", "operation"}, func(x *subject, out emit) {
			for _, d := range x.d.IO {
				major, minor := decimal(d.Major), decimal(d.Minor)
				out(d.ReadBytes, d.Device, major, minor, "Read")
				out(d.WriteBytes, d.Device, major, minor, "Write")
				out(d.DiscardBytes, d.Device, major, minor, "Discard")
			}
		}),
}

var processFamilies = []family{
	gauge("container_processes", "Processes.", func(x *subject) uint64 { return x.u.Processes }),
	gauge("container_threads", "Threads.", func(x *subject) uint64 { return x.u.Pids }),
	gauge("container_threads_max", "The most threads there may be; 0 is no limit.", func(x *subject) uint64 { return x.u.PidsLimit }),
	gauge("container_file_descriptors", "Open file descriptors.", func(x *subject) uint64 { return x.d.FileDescriptors }),
	gauge("container_sockets", "Open sockets.", func(x *subject) uint64 { return x.d.Sockets }),
	newFamily(cri.MetricType_GAUGE, "container_ulimits_soft", "Soft limits of the first process.", []string{"ulimit"},
		func(x *subject, out emit) { out(x.d.MaxOpenFiles, "max_open_files") }).when(isContainer),
}

var specFamilies = []family{
	gauge("container_last_seen", "When this was read, in seconds since the epoch.", func(x *subject) uint64 { return unsigned(x.now.Unix()) }),
	gauge("container_start_time_seconds", "When it started, in seconds since the epoch.",
		func(x *subject) uint64 { return unsigned(x.c.StartedAt / 1e9) }).when(isContainer),
	gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds.", func(x *subject) uint64 {
		if p := deref(limits(x).CPUPeriod); p > 0 {
			return p
		}
		return 100000 // the kernel's own
	}).when(isContainer),
	gauge("container_spec_cpu_quota", "CPU time that may be used in a period, in microseconds.",
		func(x *subject) uint64 { return unsigned(deref(limits(x).CPUQuota)) }).
		when(func(x *subject) bool { return isContainer(x) && deref(limits(x).CPUQuota) > 0 }),
	gauge("container_spec_cpu_shares", "Share of the CPU under contention.", func(x *subject) uint64 {
		if s := deref(limits(x).CPUShares); s > 0 {
			return s
		}
		return 1024 // the kernel's own
	}).when(isContainer),
	gauge("container_spec_memory_limit_bytes", "Limit of memory in bytes; 0 is none.",
		func(x *subject) uint64 { return unsigned(deref(limits(x).Memory)) }).when(isContainer),
	gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap together in bytes; 0 is none.",
		func(x *subject) uint64 { return unsigned(deref(limits(x).MemorySwap)) }).when(isContainer),
	gauge("container_spec_memory_reservation_limit_bytes", "Memory that is left alone under pressure, in bytes; CRI has no such limit.",
		func(*subject) uint64 { return 0 }).when(isContainer),
}

func stalled(resource, what string, read func(*runtime.Pressure) runtime.Stall) []family {
	name := "container_pressure_" + resource
	return []family{
		counter(name+"_stalled_seconds_total", "Time in which all waited for "+what+", in seconds.",
			func(x *subject) uint64 { return seconds64(read(x.u.Pressure).Full.TotalNanos) }).when(hasPressure),
		counter(name+"_waiting_seconds_total", "Time in which some waited for "+what+", in seconds.",
			func(x *subject) uint64 { return seconds64(read(x.u.Pressure).Some.TotalNanos) }).when(hasPressure),
	}
}

var pressureFamilies = join(
	stalled("cpu", "the CPU", func(p *runtime.Pressure) runtime.Stall { return p.CPU }),
	stalled("memory", "memory", func(p *runtime.Pressure) runtime.Stall { return p.Memory }),
	stalled("io", "input and output", func(p *runtime.Pressure) runtime.Stall { return p.IO }),
)

// networkFamilies are of pods: its containers share its interfaces.
var networkFamilies = []family{
	link("container_network_receive_bytes_total", "Bytes received.", func(i *runtime.InterfaceUsage) uint64 { return i.RxBytes }),
	link("container_network_receive_packets_total", "Packets received.", func(i *runtime.InterfaceUsage) uint64 { return i.RxPackets }),
	link("container_network_receive_packets_dropped_total", "Packets dropped on receipt.", func(i *runtime.InterfaceUsage) uint64 { return i.RxDropped }),
	link("container_network_receive_errors_total", "Errors on receipt.", func(i *runtime.InterfaceUsage) uint64 { return i.RxErrors }),
	link("container_network_transmit_bytes_total", "Bytes sent.", func(i *runtime.InterfaceUsage) uint64 { return i.TxBytes }),
	link("container_network_transmit_packets_total", "Packets sent.", func(i *runtime.InterfaceUsage) uint64 { return i.TxPackets }),
	link("container_network_transmit_packets_dropped_total", "Packets dropped instead of being sent.", func(i *runtime.InterfaceUsage) uint64 { return i.TxDropped }),
	link("container_network_transmit_errors_total", "Errors when sending.", func(i *runtime.InterfaceUsage) uint64 { return i.TxErrors }),
}

func link(name, help string, read func(*runtime.InterfaceUsage) uint64) family {
	return newFamily(cri.MetricType_COUNTER, name, help, []string{"interface"}, func(x *subject, out emit) {
		for i := range x.links {
			out(read(&x.links[i]), x.links[i].Name)
		}
	})
}
