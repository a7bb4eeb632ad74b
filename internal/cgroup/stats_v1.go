package cgroup

import "bytes"

// userHZ is the unit of cpuacct.stat: the kernel's interface counts a second
// as a hundred ticks on every architecture that Go knows.
const userHZ = 100

func (r *reader) v1(s *Stats, roots map[string]string, path string) {
	if root := roots["cpuacct"]; root != "" {
		s.CPUNanos = number(r.read(root + path + "/cpuacct.usage"))
	}
	if root := roots["memory"]; root != "" {
		r.memoryV1(s, root+path)
	}
	if root := roots["pids"]; root != "" {
		s.Pids = number(r.read(root + path + "/pids.current"))
		s.PidsLimit = number(r.read(root + path + "/pids.max"))
	}
	for _, controller := range []string{"pids", "memory", "cpuacct"} {
		if root := roots[controller]; root != "" {
			s.Processes = r.processes(root + path)
			break
		}
	}
	if s.Detail != nil {
		r.detailV1(s.Detail, roots, path)
	}
}

func (r *reader) memoryV1(s *Stats, dir string) {
	var memsw uint64
	pairs(r.read(dir+"/memory.stat"), func(key []byte, v uint64) {
		switch string(key) {
		case "total_rss":
			s.MemoryRSS = v
		case "total_cache":
			s.MemoryCache = v
		case "total_mapped_file":
			s.MemoryMapped = v
		case "total_active_file":
			s.MemoryActiveFile = v
		case "total_inactive_file":
			s.MemoryInactiveFile = v
		case "total_pgfault":
			s.PageFaults = v
		case "total_pgmajfault":
			s.MajorPageFaults = v
		case "total_swap":
			s.SwapUsage = v
		case "hierarchical_memory_limit":
			s.MemoryLimit = v
		case "hierarchical_memsw_limit":
			memsw = v
		}
	})
	s.MemoryUsage = number(r.read(dir + "/memory.usage_in_bytes"))
	s.MemoryWorkingSet = less(s.MemoryUsage, s.MemoryInactiveFile)
	if s.MemoryLimit >= unlimitedV1 {
		s.MemoryLimit = 0
	}
	if memsw < unlimitedV1 {
		s.SwapLimit = less(memsw, s.MemoryLimit)
	}
}

func (r *reader) detailV1(d *Detail, roots map[string]string, path string) {
	if root := roots["cpuacct"]; root != "" {
		pairs(r.read(root+path+"/cpuacct.stat"), func(key []byte, v uint64) {
			switch string(key) {
			case "user":
				d.CPUUser = v * (1e9 / userHZ)
			case "system":
				d.CPUSystem = v * (1e9 / userHZ)
			}
		})
	}
	if root := roots["cpu"]; root != "" {
		pairs(r.read(root+path+"/cpu.stat"), func(key []byte, v uint64) {
			switch string(key) {
			case "nr_periods":
				d.Periods = v
			case "nr_throttled":
				d.ThrottledPeriods = v
			case "throttled_time":
				d.ThrottledNanos = v
			case "nr_bursts":
				d.Bursts = v
			case "burst_time":
				d.BurstNanos = v
			}
		})
	}
	if root := roots["memory"]; root != "" {
		d.MemoryMax = number(r.read(root + path + "/memory.max_usage_in_bytes"))
		d.MemoryKernel = number(r.read(root + path + "/memory.kmem.usage_in_bytes"))
		d.MemoryFailures = number(r.read(root + path + "/memory.failcnt"))
		pairs(r.read(root+path+"/memory.oom_control"), func(key []byte, v uint64) {
			if string(key) == "oom_kill" {
				d.OOMKills = v
			}
		})
	}
	if root := roots["blkio"]; root != "" {
		d.IO = addBlkio(d.IO, r.read(root+path+"/blkio.throttle.io_service_bytes_recursive"), true)
		d.IO = addBlkio(d.IO, r.read(root+path+"/blkio.throttle.io_serviced_recursive"), false)
	}
}

// addBlkio reads lines such as "8:0 Read 4096" into the devices known so far.
func addBlkio(devices []DeviceIO, data []byte, isBytes bool) []DeviceIO {
	for line := range bytes.Lines(data) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue // the sum of all devices has two fields
		}
		id, ok := device(f[0])
		if !ok {
			continue
		}
		i := 0
		for i < len(devices) && (devices[i].Major != id.Major || devices[i].Minor != id.Minor) {
			i++
		}
		if i == len(devices) {
			devices = append(devices, id)
		}
		d, v := &devices[i], number(f[2])
		switch op := string(f[1]); {
		case op == "Read" && isBytes:
			d.ReadBytes = v
		case op == "Read":
			d.Reads = v
		case op == "Write" && isBytes:
			d.WriteBytes = v
		case op == "Write":
			d.Writes = v
		case op == "Discard" && isBytes:
			d.DiscardBytes = v
		case op == "Discard":
			d.Discards = v
		}
	}
	return devices
}
