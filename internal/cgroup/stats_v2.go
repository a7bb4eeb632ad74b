package cgroup

import "bytes"

func (r *reader) v2(s *Stats, dir string) {
	s.CPUNanos = r.cpuV2(dir, s.Detail)
	pairs(r.read(dir+"/memory.stat"), func(key []byte, v uint64) {
		switch string(key) {
		case "anon":
			s.MemoryRSS = v
		case "file":
			s.MemoryCache = v
		case "file_mapped":
			s.MemoryMapped = v
		case "active_file":
			s.MemoryActiveFile = v
		case "inactive_file":
			s.MemoryInactiveFile = v
		case "pgfault":
			s.PageFaults = v
		case "pgmajfault":
			s.MajorPageFaults = v
		case "kernel":
			if s.Detail != nil {
				s.Detail.MemoryKernel = v
			}
		}
	})
	s.MemoryUsage = number(r.read(dir + "/memory.current"))
	s.MemoryWorkingSet = less(s.MemoryUsage, s.MemoryInactiveFile)
	s.MemoryLimit = number(r.read(dir + "/memory.max"))
	s.SwapUsage = number(r.read(dir + "/memory.swap.current"))
	s.SwapLimit = number(r.read(dir + "/memory.swap.max"))
	s.Pids = number(r.read(dir + "/pids.current"))
	s.PidsLimit = number(r.read(dir + "/pids.max"))
	s.Processes = r.processes(dir)
	if s.Detail == nil {
		return
	}
	s.Detail.MemoryMax = number(r.read(dir + "/memory.peak"))
	pairs(r.read(dir+"/memory.events"), func(key []byte, v uint64) {
		switch string(key) {
		case "max":
			s.Detail.MemoryFailures = v
		case "oom_kill":
			s.Detail.OOMKills = v
		}
	})
	s.Detail.IO = ioStat(r.read(dir + "/io.stat"))
}

// cpuV2 returns the nanoseconds used; d may be nil.
func (r *reader) cpuV2(dir string, d *Detail) (nanos uint64) {
	if d == nil {
		d = &Detail{}
	}
	pairs(r.read(dir+"/cpu.stat"), func(key []byte, v uint64) {
		switch string(key) {
		case "usage_usec":
			nanos = v * 1000
		case "user_usec":
			d.CPUUser = v * 1000
		case "system_usec":
			d.CPUSystem = v * 1000
		case "nr_periods":
			d.Periods = v
		case "nr_throttled":
			d.ThrottledPeriods = v
		case "throttled_usec":
			d.ThrottledNanos = v * 1000
		case "nr_bursts":
			d.Bursts = v
		case "burst_usec":
			d.BurstNanos = v * 1000
		}
	})
	return nanos
}

// ioStat reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func ioStat(data []byte) []DeviceIO {
	var out []DeviceIO
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d, ok := device(fields[0])
		if !ok {
			continue
		}
		for _, f := range fields[1:] {
			key, value, _ := bytes.Cut(f, []byte("="))
			v := number(value)
			switch string(key) {
			case "rbytes":
				d.ReadBytes = v
			case "wbytes":
				d.WriteBytes = v
			case "dbytes":
				d.DiscardBytes = v
			case "rios":
				d.Reads = v
			case "wios":
				d.Writes = v
			case "dios":
				d.Discards = v
			}
		}
		out = append(out, d)
	}
	return out
}

// device reads "MAJOR:MINOR".
func device(s []byte) (DeviceIO, bool) {
	major, minor, ok := bytes.Cut(s, []byte(":"))
	if !ok || !digits(major) || !digits(minor) {
		return DeviceIO{}, false
	}
	return DeviceIO{Major: uint32(number(major)), Minor: uint32(number(minor))}, true //nolint:gosec // at most six digits
}

func digits(s []byte) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 7
}
