package cgroup

import (
	"errors"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what a group, and all below it, has used. A field that the kernel
// does not tell is zero.
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

	MemoryCache        uint64 // page cache
	MemoryMapped       uint64 // mapped files
	MemoryActiveFile   uint64
	MemoryInactiveFile uint64

	Pids      uint64 // threads, as the pids controller counts
	PidsLimit uint64 // 0: none
	Processes uint64

	Pressure *Pressure // nil where the kernel does not measure it
	Detail   *Detail   // nil unless asked for
}

// Detail is what costs more files to read and few ask for.
type Detail struct {
	CPUUser, CPUSystem uint64 // nanoseconds

	Periods          uint64 // of the CPU quota that passed
	ThrottledPeriods uint64
	ThrottledNanos   uint64
	Bursts           uint64
	BurstNanos       uint64

	MemoryMax      uint64 // highest usage so far
	MemoryKernel   uint64
	MemoryFailures uint64 // times that usage ran into the limit
	OOMKills       uint64

	IO []DeviceIO // by device number
}

// DeviceIO counts what went to and came from one block device.
type DeviceIO struct {
	Major, Minor uint32

	ReadBytes, WriteBytes, DiscardBytes uint64
	Reads, Writes, Discards             uint64
}

// Pressure is the time that tasks lost waiting (Documentation/accounting/psi.rst).
type Pressure struct{ CPU, Memory, IO Stall }

// Stall is one resource's pressure: some tasks waited, or all did.
type Stall struct{ Some, Full StallTime }

// StallTime is a share of time in percent over three windows, and its sum.
type StallTime struct {
	Avg10, Avg60, Avg300 float64
	TotalNanos           uint64
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

var buffers = sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}

// Stats reads what the group uses. A group that is absent is an error that
// wraps os.ErrNotExist.
func (fs *FS) Stats(path string) (Stats, error) { return fs.stats(path, false) }

// DetailedStats is Stats with its Detail.
func (fs *FS) DetailedStats(path string) (Stats, error) { return fs.stats(path, true) }

func (fs *FS) stats(path string, detail bool) (Stats, error) {
	path, err := clean(path)
	if err != nil {
		return Stats{}, err
	}
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	r := reader{buf: *bp}
	s := Stats{Timestamp: time.Now().UnixNano()}
	if detail {
		s.Detail = &Detail{}
	}
	if fs.mode == Unified {
		r.v2(&s, fs.v2+path)
	} else {
		r.v1(&s, fs.v1, path)
	}
	if !r.any {
		return Stats{}, &os.PathError{Op: "cgroup stats", Path: path, Err: os.ErrNotExist}
	}
	if fs.v2 != "" {
		s.Pressure = r.pressure(fs.v2 + path)
	}
	if s.MemoryLimit > s.MemoryWorkingSet {
		s.MemoryAvailable = s.MemoryLimit - s.MemoryWorkingSet
	}
	return s, r.err
}

// CPU reads the CPU time that the group has used and nothing else: as long as
// it stands still nothing has run there.
func (fs *FS) CPU(path string) (nanos uint64, err error) {
	path, err = clean(path)
	if err != nil {
		return 0, err
	}
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	r := reader{buf: *bp}
	if fs.mode == Unified {
		nanos = r.cpuV2(fs.v2+path, nil)
	} else if root := fs.v1["cpuacct"]; root != "" {
		nanos = number(r.read(root + path + "/cpuacct.usage"))
	}
	if !r.any {
		return 0, &os.PathError{Op: "cgroup CPU", Path: path, Err: os.ErrNotExist}
	}
	return nanos, r.err
}

// reader reads small files into one buffer. any is set once a file was there.
type reader struct {
	buf []byte
	any bool
	err error
}

// read returns the file's content, valid until the next read; nothing for a
// file that is absent, which is how a controller that is off shows.
func (r *reader) read(path string) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if err != unix.ENOENT && err != unix.EOPNOTSUPP {
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
