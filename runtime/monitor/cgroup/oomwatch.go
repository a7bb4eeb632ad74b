package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// OOMWatch remembers that the OOM killer struck in a group that somebody else
// removes as soon as it is empty, as systemd does with a scope: when the exit is
// handled, its files may be gone. A nil OOMWatch has seen nothing.
//
// The kernel tells of events at most once in 10 ms, so the kill that follows
// upon hitting the limit can go untold before the group is gone. For that case
// the count of the group above is kept from each time: it outlives the group.
type OOMWatch struct {
	file  *os.File // memory.events of the group
	above string   // memory.events of the group above
	seen  atomic.Bool
	base  atomic.Uint64 // kills in the group above, when last looked at
}

// WatchOOM watches the group if it is a scope and the kernel tells of its events.
func WatchOOM(path string) *OOMWatch {
	if !strings.HasSuffix(path, ".scope") {
		return nil
	}
	for _, d := range dirs(path) {
		f, err := os.Open(d + "/memory.events")
		if err != nil {
			continue
		}
		rc, err := f.SyscallConn()
		if err != nil {
			_ = f.Close()
			return nil
		}
		w := &OOMWatch{file: f, above: filepath.Dir(d) + "/memory.events"}
		w.look()
		go w.run(rc)
		return w
	}
	return nil
}

// run reads whenever the kernel says that the events have changed, which it
// does before the victim is killed. It holds no thread while it waits.
func (w *OOMWatch) run(rc syscall.RawConn) {
	buf := make([]byte, 256)
	_ = rc.Read(func(fd uintptr) bool {
		n, err := syscall.Pread(int(fd), buf, 0)
		if err != nil {
			return true
		}
		if oomKills(string(buf[:n])) > 0 {
			w.seen.Store(true)
			return true
		}
		w.look()
		return false
	})
}

func (w *OOMWatch) look() {
	if b, err := os.ReadFile(w.above); err == nil {
		w.base.Store(oomKills(string(b)))
	}
}

// Seen reports whether the OOM killer struck. killed says that the group's
// first process ended by SIGKILL, as it does at the OOM killer's hands.
func (w *OOMWatch) Seen(killed bool) bool {
	if w == nil {
		return false
	}
	if w.seen.Load() {
		return true
	}
	var b [256]byte
	if n, err := w.file.ReadAt(b[:], 0); n > 0 || err == nil {
		return oomKills(string(b[:n])) > 0
	}
	base := w.base.Load()
	w.look()
	return killed && w.base.Load() > base
}

// Close ends the watch. Idempotent.
func (w *OOMWatch) Close() {
	if w != nil {
		_ = w.file.Close()
	}
}

// oomKills reads the count in memory.events or memory.oom_control.
func oomKills(s string) uint64 {
	for s != "" {
		var line string
		line, s, _ = strings.Cut(s, "\n")
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}
