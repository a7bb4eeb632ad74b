// Package cgroup kills and removes a container's control groups, and reads
// whether the kernel's OOM killer struck there, on cgroup v1, hybrid and v2.
//
// It is linked into every monitor: system calls and file names only. A path is
// relative to each hierarchy's root; the empty path and the root itself are
// never touched.
package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const mount = "/sys/fs/cgroup"

// ErrBusy: processes of the group did not go away.
var ErrBusy = errors.New("control group still has processes")

// roots lists the root directory of each hierarchy.
var roots = sync.OnceValue(func() []string {
	if _, err := os.Stat(mount + "/cgroup.controllers"); err == nil {
		return []string{mount}
	}
	ents, _ := os.ReadDir(mount)
	var r []string
	for _, e := range ents {
		// Symbolic links are second names of co-mounted controllers.
		if e.IsDir() {
			r = append(r, mount+"/"+e.Name())
		}
	}
	return r
})

// dirs returns the group's directories that exist.
func dirs(path string) []string {
	path = filepath.Clean("/" + path)
	if path == "/" {
		return nil
	}
	var d []string
	for _, r := range roots() {
		var st syscall.Stat_t
		if syscall.Lstat(r+path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			d = append(d, r+path)
		}
	}
	return d
}

// children calls f for each group directly below dir.
func children(dir string, f func(string)) {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if e.IsDir() {
			f(dir + "/" + e.Name())
		}
	}
}

// eachProcess calls f for every process of the group and of those below it.
func eachProcess(dir string, f func(pid int)) {
	b, _ := os.ReadFile(dir + "/cgroup.procs")
	for len(b) > 0 {
		line, rest, _ := strings.Cut(string(b), "\n")
		b = []byte(rest)
		// 0 stands for a process of another pid namespace: never kill(0).
		if pid, err := strconv.Atoi(line); err == nil && pid > 1 {
			f(pid)
		}
	}
	children(dir, func(c string) { eachProcess(c, f) })
}

func signalTree(dir string, sig syscall.Signal) (n int) {
	eachProcess(dir, func(pid int) {
		n++
		_ = syscall.Kill(pid, sig)
	})
	return n
}

// Processes lists the processes of the group and of those below it.
func Processes(path string) (pids []int) {
	for _, d := range dirs(path) {
		// Each hierarchy lists the same ones.
		if eachProcess(d, func(pid int) { pids = append(pids, pid) }); len(pids) > 0 {
			break
		}
	}
	return pids
}

// Signal sends sig to every process of the group and of those below it.
// It returns how many there were.
func Signal(path string, sig syscall.Signal) (n int) {
	for _, d := range dirs(path) {
		// Each hierarchy lists the same processes, unless a process was moved
		// in some of them only; the first that has any will do for a signal.
		if n = signalTree(d, sig); n > 0 && sig != syscall.SIGKILL {
			return n
		}
	}
	return n
}

// Kill kills every process of the group and returns when none is left.
func Kill(path string, patience time.Duration) error {
	ds := dirs(path)
	for _, d := range ds {
		thaw(d)
	}
	pause := time.Millisecond
	for end := time.Now().Add(patience); ; pause = min(2*pause, 50*time.Millisecond) {
		n := 0
		for _, d := range ds {
			if os.WriteFile(d+"/cgroup.kill", []byte("1"), 0) == nil {
				n += signalTree(d, 0)
				continue
			}
			n += signalTree(d, syscall.SIGKILL)
		}
		if n == 0 {
			return nil
		}
		if time.Now().After(end) {
			return ErrBusy
		}
		time.Sleep(pause)
	}
}

// thaw lets frozen processes run, for a frozen one does not die on v1.
func thaw(dir string) {
	if b, err := os.ReadFile(dir + "/freezer.state"); err == nil && !strings.HasPrefix(string(b), "THAWED") {
		_ = os.WriteFile(dir+"/freezer.state", []byte("THAWED"), 0)
	}
}

// Remove deletes the group in every hierarchy, with those below it. Processes
// must be gone, but their leaving may take the kernel a moment. Idempotent.
func Remove(path string, patience time.Duration) error {
	end := time.Now().Add(patience)
	for _, d := range dirs(path) {
		pause := time.Millisecond / 2
		for {
			err := removeTree(d)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				return err
			}
			time.Sleep(pause)
			pause = min(2*pause, 20*time.Millisecond)
		}
	}
	return nil
}

func removeTree(dir string) error {
	err := syscall.Rmdir(dir)
	if err == nil || err == syscall.ENOENT {
		return nil
	}
	children(dir, func(c string) { _ = removeTree(c) })
	if err = syscall.Rmdir(dir); err == nil || err == syscall.ENOENT {
		return nil
	}
	return &os.PathError{Op: "rmdir", Path: dir, Err: err}
}

// OOMKilled reports whether the OOM killer killed a process of the group.
func OOMKilled(path string) bool {
	for _, d := range dirs(path) {
		for _, f := range [...]string{"/memory.events", "/memory.oom_control"} {
			b, err := os.ReadFile(d + f)
			if err != nil {
				continue
			}
			if oomKills(string(b)) > 0 {
				return true
			}
		}
	}
	return false
}

// Exists reports whether any hierarchy still has the group.
func Exists(path string) bool { return len(dirs(path)) > 0 }

// freezer returns the directory with the group's freezer, "" without one, and
// whether it is one of cgroup v1, which is the one in use on a hybrid host.
func freezer(path string) (dir string, v1 bool) {
	ds := dirs(path)
	for _, d := range ds {
		if _, err := os.Stat(d + "/freezer.state"); err == nil {
			return d, true
		}
	}
	for _, d := range ds {
		if _, err := os.Stat(d + "/cgroup.freeze"); err == nil {
			return d, false
		}
	}
	return "", false
}

// Freeze stops every process of the group and returns when they stand.
func Freeze(path string, patience time.Duration) error {
	dir, v1 := freezer(path)
	if dir == "" {
		return errors.New("the control group has no freezer")
	}
	name, word := "/cgroup.freeze", "1"
	if v1 {
		name, word = "/freezer.state", "FROZEN"
	}
	pause, n := time.Millisecond, 0
	for end := time.Now().Add(patience); ; pause = min(2*pause, 20*time.Millisecond) {
		// Again each time, and on v1 with a thaw now and then: a process that
		// was just being made can keep the group in between for ever.
		if n++; v1 && n%8 == 0 {
			_ = os.WriteFile(dir+name, []byte("THAWED"), 0)
			time.Sleep(time.Millisecond)
		}
		if err := os.WriteFile(dir+name, []byte(word), 0); err != nil {
			return err
		}
		if frozen(dir, v1) {
			return nil
		}
		if time.Now().After(end) {
			Thaw(path)
			return errors.New("the processes of the control group do not come to a stop")
		}
		time.Sleep(pause)
	}
}

func frozen(dir string, v1 bool) bool {
	if v1 {
		b, err := os.ReadFile(dir + "/freezer.state")
		return err == nil && strings.HasPrefix(string(b), "FROZEN")
	}
	b, err := os.ReadFile(dir + "/cgroup.events")
	return err == nil && strings.Contains("\n"+string(b), "\nfrozen 1")
}

// Frozen reports whether every process of the group stands.
func Frozen(path string) bool {
	dir, v1 := freezer(path)
	return dir != "" && frozen(dir, v1)
}

// Thaw lets the group's processes run. Idempotent.
func Thaw(path string) {
	switch dir, v1 := freezer(path); {
	case dir == "":
	case v1:
		_ = os.WriteFile(dir+"/freezer.state", []byte("THAWED"), 0)
	default:
		_ = os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0)
	}
}
