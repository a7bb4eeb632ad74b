// Package cgroup reads and empties control groups of cgroup v1, v2 and the
// hybrid of both.
//
// A path is relative to the root of each hierarchy, as in /proc/PID/cgroup.
// Invariants: no path leads out of its hierarchy; the root group is never
// changed; a group that is absent counts as empty and removed.
package cgroup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Mode says which generations of cgroup the host has mounted.
type Mode int

// Modes.
const (
	Legacy  Mode = iota + 1 // v1 only
	Hybrid                  // v1 controllers and a v2 hierarchy beside them
	Unified                 // v2 only
)

// String names the mode.
func (m Mode) String() string {
	return map[Mode]string{Legacy: "legacy", Hybrid: "hybrid", Unified: "unified"}[m]
}

// FS is the set of mounted hierarchies.
type FS struct {
	mode  Mode
	v1    map[string]string // controller, or name=X, -> mount point
	v2    string            // mount point, "" if none
	roots []string          // every hierarchy once
}

// Host returns the host's hierarchies, looked up once.
var Host = sync.OnceValues(detect)

func detect() (*FS, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parse(data)
}

// v1Names are the super options that are controllers.
var v1Names = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
	"hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc",
}

func parse(mountinfo []byte) (*FS, error) {
	fs := &FS{v1: map[string]string{}}
	for line := range bytes.Lines(mountinfo) {
		fields, tail, ok := strings.Cut(string(bytes.TrimSpace(line)), " - ")
		left, right := strings.Fields(fields), strings.Fields(tail)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		point := left[4]
		switch right[0] {
		case "cgroup2":
			if fs.v2 == "" {
				fs.v2 = point
				fs.roots = append(fs.roots, point)
			}
		case "cgroup":
			fs.addV1(point, strings.Split(right[2], ","))
		}
	}
	switch {
	case len(fs.v1) == 0 && fs.v2 == "":
		return nil, errors.New("no cgroup hierarchy is mounted")
	case len(fs.v1) == 0:
		fs.mode = Unified
	case fs.v2 == "":
		fs.mode = Legacy
	default:
		fs.mode = Hybrid
	}
	return fs, nil
}

func (fs *FS) addV1(point string, options []string) {
	added := false
	for _, o := range options {
		if slices.Contains(v1Names, o) || strings.HasPrefix(o, "name=") {
			if _, twice := fs.v1[o]; !twice {
				fs.v1[o] = point
				added = true
			}
		}
	}
	if added {
		fs.roots = append(fs.roots, point)
	}
}

// Parse finds the hierarchies in the text of a mountinfo file.
func Parse(mountinfo []byte) (*FS, error) { return parse(mountinfo) }

// Controllers lists what can be limited, in any hierarchy; root is where the
// mount points are found, "/" on the host itself.
func (fs *FS) Controllers(root string) []string {
	var out []string
	for name := range fs.v1 {
		if !strings.HasPrefix(name, "name=") {
			out = append(out, name)
		}
	}
	if fs.v2 != "" {
		if b, err := os.ReadFile(filepath.Join(root, fs.v2, "cgroup.controllers")); err == nil {
			out = append(out, strings.Fields(string(b))...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Mode tells what the host has.
func (fs *FS) Mode() Mode { return fs.mode }

// clean refuses what is not a group below the root.
func clean(path string) (string, error) {
	if slices.Contains(strings.Split(path, "/"), "..") || strings.IndexByte(path, 0) >= 0 || strings.Trim(path, "/.") == "" {
		return "", &os.PathError{Op: "cgroup", Path: path, Err: unix.EINVAL}
	}
	return filepath.Clean("/" + path), nil
}

// Create makes the group, and its parents, in every hierarchy, and on v2 makes
// the parents give their controllers on. Idempotent.
func (fs *FS) Create(path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	for _, root := range fs.roots {
		if err := fs.createIn(root, path); err != nil {
			return err
		}
	}
	return nil
}

func (fs *FS) createIn(root, path string) error {
	dir := root
	for _, part := range strings.Split(path[1:], "/") {
		if root == fs.v2 && fs.mode == Unified {
			if err := delegate(dir); err != nil {
				return err
			}
		}
		parent := dir
		dir = dir + "/" + part
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if root == fs.v1["cpuset"] {
			if err := inheritCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// Missing lists which of the group and its parents exist in no hierarchy, the
// outermost first; nothing for a path that is not below the root.
func (fs *FS) Missing(path string) []string {
	path, err := clean(path)
	if err != nil {
		return nil
	}
	var missing []string
	dir := ""
	for part := range strings.SplitSeq(path[1:], "/") {
		dir += "/" + part
		if !fs.exists(dir) {
			missing = append(missing, dir)
		}
	}
	return missing
}

func (fs *FS) exists(path string) bool {
	return slices.ContainsFunc(fs.roots, func(root string) bool {
		var st unix.Stat_t
		return unix.Lstat(root+path, &st) == nil
	})
}

// Empty tells whether the group has neither processes nor groups below it. A
// group that does not exist is empty.
func (fs *FS) Empty(path string) (bool, error) {
	path, err := clean(path)
	if err != nil {
		return false, err
	}
	for _, root := range fs.roots {
		subs, err := children(root + path)
		if err != nil || len(subs) > 0 {
			return false, err
		}
		pids, err := appendProcs(nil, root+path)
		if err != nil || len(pids) > 0 {
			return false, err
		}
	}
	return true, nil
}

// delegate gives on every controller that the group has.
func delegate(dir string) error {
	have, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	given, err := os.ReadFile(dir + "/cgroup.subtree_control")
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(strings.Fields(string(have)), func(c string) bool {
		return slices.Contains(strings.Fields(string(given)), c)
	})
	if len(missing) == 0 {
		return nil
	}
	return os.WriteFile(dir+"/cgroup.subtree_control", []byte("+"+strings.Join(missing, " +")), 0)
}

// inheritCpuset fills what a new v1 group has empty and so takes no process.
func inheritCpuset(parent, dir string) error {
	for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		own, err := os.ReadFile(dir + f)
		if err != nil || len(bytes.TrimSpace(own)) > 0 {
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			continue
		}
		value, err := os.ReadFile(parent + f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(dir+f, value, 0); err != nil {
			return err
		}
	}
	return nil
}
