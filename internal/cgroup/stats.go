package cgroup

import (
	"errors"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what a group has used. A field that the kernel does not tell is zero.
type Stats struct {
	Timestamp int64  // nanoseconds since the epoch
	CPUNanos  uint64 // CPU time used

	MemoryUsage      uint64
	MemoryWorkingSet uint64 // usage less inactive file cache
	MemoryRSS        uint64 // anonymous memory
	MemoryLimit      uint64 // 0: none
	MemoryAvailable  uint64 // limit less working set; 0 without a limit
	PageFaults       uint64
	MajorPageFaults  uint64
	SwapUsage        uint64
	SwapLimit        uint64 // 0: none

	Pids      uint64
	PidsLimit uint64 // 0: none
}

// CoreNanos is the CPU in use between two readings, in nanoseconds per second
// (a core in full use is 1e9); 0 if the readings do not tell.
func CoreNanos(before, after Stats) uint64 {
	dt := after.Timestamp - before.Timestamp
	if dt <= 0 || after.CPUNanos < before.CPUNanos {
		return 0
	}
	return uint64(float64(after.CPUNanos-before.CPUNanos) / float64(dt) * 1e9)
}

const unlimitedV1 = 1 << 62 // v1 says "no limit" with the largest page-aligned int64

var buffers = sync.Pool{New: func() any { b := make([]byte, 8<<10); return &b }}

// Stats reads what the group uses. A group that is absent is an error that
// wraps os.ErrNotExist.
func (fs *FS) Stats(path string) (Stats, error) {
	path, err := clean(path)
	if err != nil {
		return Stats{}, err
	}
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	r := reader{buf: *bp}
	s := Stats{Timestamp: time.Now().UnixNano()}
	if fs.mode == Unified {
		r.v2(&s, fs.v2+path)
	} else {
		r.v1(&s, fs.v1, path)
	}
	if !r.any {
		return Stats{}, &os.PathError{Op: "cgroup stats", Path: path, Err: os.ErrNotExist}
	}
	if s.MemoryLimit > s.MemoryWorkingSet {
		s.MemoryAvailable = s.MemoryLimit - s.MemoryWorkingSet
	}
	return s, r.err
}

// reader reads small files into one buffer. any is set once a file was there.
type reader struct {
	buf []byte
	any bool
	err error
}

func (r *reader) v2(s *Stats, dir string) {
	var inactive, usec uint64
	pairs(r.read(dir+"/cpu.stat"), func(key []byte, v uint64) {
		if string(key) == "usage_usec" {
			usec = v
		}
	})
	s.CPUNanos = usec * 1000
	pairs(r.read(dir+"/memory.stat"), func(key []byte, v uint64) {
		switch string(key) {
		case "anon":
			s.MemoryRSS = v
		case "inactive_file":
			inactive = v
		case "pgfault":
			s.PageFaults = v
		case "pgmajfault":
			s.MajorPageFaults = v
		}
	})
	s.MemoryUsage = number(r.read(dir + "/memory.current"))
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.MemoryLimit = number(r.read(dir + "/memory.max"))
	s.SwapUsage = number(r.read(dir + "/memory.swap.current"))
	s.SwapLimit = number(r.read(dir + "/memory.swap.max"))
	s.Pids = number(r.read(dir + "/pids.current"))
	s.PidsLimit = number(r.read(dir + "/pids.max"))
}

func (r *reader) v1(s *Stats, roots map[string]string, path string) {
	if root := roots["cpuacct"]; root != "" {
		s.CPUNanos = number(r.read(root + path + "/cpuacct.usage"))
	}
	if root := roots["memory"]; root != "" {
		var inactive, memsw uint64
		pairs(r.read(root+path+"/memory.stat"), func(key []byte, v uint64) {
			switch string(key) {
			case "total_rss":
				s.MemoryRSS = v
			case "total_inactive_file":
				inactive = v
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
		s.MemoryUsage = number(r.read(root + path + "/memory.usage_in_bytes"))
		s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
		if s.MemoryLimit >= unlimitedV1 {
			s.MemoryLimit = 0
		}
		if memsw < unlimitedV1 {
			s.SwapLimit = less(memsw, s.MemoryLimit)
		}
	}
	if root := roots["pids"]; root != "" {
		s.Pids = number(r.read(root + path + "/pids.current"))
		s.PidsLimit = number(r.read(root + path + "/pids.max"))
	}
}

// read returns the file's content, valid until the next read; nothing for a
// file that is absent, which is how a controller that is off shows.
func (r *reader) read(path string) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if err != unix.ENOENT {
			r.fail(path, err)
		}
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	for n := 0; ; {
		m, err := unix.Read(fd, r.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			if err != unix.ENODEV && err != unix.EOPNOTSUPP {
				r.fail(path, err)
			}
			return nil
		case m == 0 || n+m == len(r.buf):
			r.any = true
			return r.buf[:n+m]
		default:
			n += m
		}
	}
}

func (r *reader) fail(path string, err error) {
	r.err = errors.Join(r.err, &os.PathError{Op: "read", Path: path, Err: err})
}

// pairs calls fn for each line "key number".
func pairs(data []byte, fn func(key []byte, v uint64)) {
	for len(data) > 0 {
		line := data
		if i := indexByte(data, '\n'); i >= 0 {
			line, data = data[:i], data[i+1:]
		} else {
			data = nil
		}
		if i := indexByte(line, ' '); i > 0 {
			fn(line[:i], number(line[i+1:]))
		}
	}
}

func indexByte(b []byte, c byte) int {
	for i := range b {
		if b[i] == c {
			return i
		}
	}
	return -1
}

// number reads leading digits; "max" and the like are 0, what is too large is
// the largest.
func number(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		d := uint64(c - '0')
		if v > (math.MaxUint64-d)/10 {
			return math.MaxUint64
		}
		v = v*10 + d
	}
	return v
}

func less(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}
