// Package textpages gives back the pages of a program's own binary that only
// its start needed.
//
// A daemon touches most of its binary once: package initialisation, the
// configuration, the first reconcile pass. The kernel keeps those pages mapped,
// and so counted as the daemon's (proportional set size), for as long as memory
// is plentiful. Dropping the mappings' pages costs nothing that cannot be had
// back: they are clean and stay in the page cache, and the next touch is a minor
// fault (madvise(2), MADV_DONTNEED on a private file mapping that was never
// written to).
package textpages

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Drop drops the pages of every mapping of the running binary that cannot be
// written to. Private copies are never touched, so that it is always safe.
func Drop() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	s := bufio.NewScanner(f)
	for s.Scan() {
		start, length, ok := readOnlyOf(s.Text(), self)
		if !ok {
			continue
		}
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, start, length, unix.MADV_DONTNEED); e != 0 {
			errs = append(errs, fmt.Errorf("madvise %#x: %w", start, e))
		}
	}
	return errors.Join(append(errs, s.Err())...)
}

// readOnlyOf parses a line of /proc/PID/maps (proc(5)) and returns the range
// if it maps file without the right to write.
func readOnlyOf(line, file string) (start, length uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || strings.Join(f[5:], " ") != file || len(f[1]) < 2 || f[1][1] == 'w' {
		return 0, 0, false
	}
	lo, hi, _ := strings.Cut(f[0], "-")
	a, err1 := strconv.ParseUint(lo, 16, 64)
	b, err2 := strconv.ParseUint(hi, 16, 64)
	if err1 != nil || err2 != nil || b <= a {
		return 0, 0, false
	}
	return uintptr(a), uintptr(b - a), true
}
