package cgroup

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// pressure reads the stalls of a v2 group, which exist on a hybrid host too.
// It is nil where the kernel does not measure or the group is not there.
func (r *reader) pressure(dir string) *Pressure {
	p := &Pressure{}
	found := false
	for _, x := range []struct {
		file string
		into *Stall
	}{{"/cpu.pressure", &p.CPU}, {"/memory.pressure", &p.Memory}, {"/io.pressure", &p.IO}} {
		data := r.read(dir + x.file)
		found = found || len(data) > 0
		parseStall(data, x.into)
	}
	if !found {
		return nil
	}
	return p
}

// parseStall reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=24295".
func parseStall(data []byte, s *Stall) {
	for line := range bytes.Lines(data) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var t *StallTime
		switch string(fields[0]) {
		case "some":
			t = &s.Some
		case "full":
			t = &s.Full
		default:
			continue
		}
		for _, f := range fields[1:] {
			key, value, _ := bytes.Cut(f, []byte("="))
			switch string(key) {
			case "avg10":
				t.Avg10 = percent(value)
			case "avg60":
				t.Avg60 = percent(value)
			case "avg300":
				t.Avg300 = percent(value)
			case "total":
				t.TotalNanos = number(value) * 1000
			}
		}
	}
}

func percent(b []byte) float64 {
	v, err := strconv.ParseFloat(string(b), 64)
	if err != nil || v < 0 || v > 100 {
		return 0
	}
	return v
}

// processes counts the lines of cgroup.procs, without the groups below.
func (r *reader) processes(dir string) (n uint64) {
	fd, err := unix.Open(dir+"/cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		m, err := unix.Read(fd, r.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			return n
		}
		n += uint64(bytes.Count(r.buf[:m], []byte("\n")))
	}
}
