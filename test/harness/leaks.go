package harness

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshot is what exists at one moment, by kind; each list is sorted.
type Snapshot map[string][]string

// Snapshot looks at everything a pod could leave behind. As the namespaces are
// private, all mounts, links and processes in them count.
func (e *Env) Snapshot() (Snapshot, error) {
	s := Snapshot{}
	var err error
	if s["mount"], err = mounts(""); err != nil {
		return nil, err
	}
	s["cgroup"] = cgroups(e.CgroupDir)
	if s["link"], err = links(); err != nil {
		return nil, err
	}
	s["address"] = e.addresses()
	s["process"] = e.processes()
	s["rule"] = rules()
	for name, dir := range map[string]string{"root": e.Root, "run-root": e.RunRoot, "cni": filepath.Join(e.Dir, "cni", "cache")} {
		s["file in "+name] = files(dir)
	}
	for _, l := range s {
		sort.Strings(l)
	}
	return s, nil
}

// Leaks compares now with an earlier snapshot, and gives what is on its way
// out a few seconds to go. An empty answer means that nothing is left.
func (e *Env) Leaks(before Snapshot) ([]string, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		now, err := e.Snapshot()
		if err != nil {
			return nil, err
		}
		left := before.New(now)
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		time.Sleep(50 * time.Millisecond) // no event tells that the last trace has gone
	}
}

// New lists what later has and s has not.
func (s Snapshot) New(later Snapshot) []string {
	var out []string
	for kind, list := range later {
		had := map[string]int{}
		for _, x := range s[kind] {
			had[x]++
		}
		for _, x := range list {
			if had[x] > 0 {
				had[x]--
				continue
			}
			out = append(out, kind+": "+x)
		}
	}
	sort.Strings(out)
	return out
}

func mounts(below string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 10 {
			continue
		}
		if p := f[4]; below == "" || p == below || strings.HasPrefix(p, below+"/") {
			out = append(out, p)
		}
	}
	return out, nil
}

// UnmountBelow detaches every mount at a directory and below it.
func UnmountBelow(dir string) error {
	if dir == "" {
		return nil
	}
	list, err := mounts(dir)
	if err != nil {
		return err
	}
	// The newest and deepest first.
	for _, p := range slices.Backward(list) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

func links() ([]string, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, i := range ifs {
		// The bridge itself belongs to the network, not to a pod.
		if i.Name != "ocidbr0" {
			out = append(out, i.Name)
		}
	}
	return out, nil
}

// addresses lists those that host-local still holds as given out.
func (e *Env) addresses() []string {
	var out []string
	for _, f := range files(e.CNIState) {
		base := filepath.Base(f)
		if net.ParseIP(base) != nil {
			out = append(out, base)
		}
	}
	return out
}

// rules lists the per-pod chains of the portmap and bridge plugins.
func rules() []string {
	out, err := exec.Command("iptables-save").Output()
	if err != nil {
		return nil
	}
	var list []string
	for l := range strings.Lines(string(out)) {
		if strings.HasPrefix(l, ":CNI-") && !strings.HasPrefix(l, ":CNI-HOSTPORT") && !strings.HasPrefix(l, ":CNI-ADMIN") && !strings.HasPrefix(l, ":CNI-FORWARD") {
			list = append(list, strings.Fields(l)[0][1:])
		}
	}
	return list
}

// Process is one running program.
type Process struct {
	PID  int
	Exe  string
	Args string
}

// Processes lists all that run here, the test's own and the daemon's left out.
func (e *Env) Processes() []Process {
	var out []Process
	skip := map[int]bool{1: true, os.Getpid(): true, e.PID(): true}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || skip[pid] {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", d.Name(), "exe"))
		if err != nil {
			continue // a zombie, or gone
		}
		args, err := os.ReadFile(filepath.Join("/proc", d.Name(), "cmdline"))
		if err != nil {
			continue
		}
		out = append(out, Process{PID: pid, Exe: exe, Args: strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")})
	}
	return out
}

func (e *Env) processes() []string {
	var out []string
	for _, p := range e.Processes() {
		if strings.HasPrefix(filepath.Base(p.Exe), "iptables") || strings.HasPrefix(filepath.Base(p.Exe), "xtables") {
			continue
		}
		out = append(out, filepath.Base(p.Exe)+" "+p.Args)
	}
	return out
}

// killStrays ends whatever still runs out of dir or names it.
func killStrays(dir string) {
	if dir == "" || os.Getenv(stageVar) != "main" {
		return
	}
	for range 20 {
		found := false
		e := &Env{Dir: dir}
		for _, p := range e.Processes() {
			cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
			if strings.Contains(p.Args, dir) || strings.Contains(string(cg), "/ocid-test-") {
				found = true
				// It may have ended meanwhile.
				_ = unix.Kill(p.PID, unix.SIGKILL)
			}
		}
		if !found {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// files lists the paths below dir; the contents of layers and of mounted root
// file systems are left out, their directories are not.
func files(dir string) []string {
	var out []string
	// A file may vanish during the walk.
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, dir+"/")
		if err != nil || rel == p {
			return nil //nolint:nilerr // what has vanished is not left behind
		}
		// The storage library makes these once, for what is on its way out.
		if !strings.HasSuffix(rel, "overlay-layers/tmp") && !strings.HasSuffix(rel, "overlay/tempdirs") {
			out = append(out, rel)
		}
		// usage has a number for each layer, made when it is first asked for and
		// gone with the layer: the store's own tests look after it.
		if d.IsDir() && slices.Contains([]string{"diff", "merged", "upper", "work", "rootfs", "usage"}, d.Name()) {
			return fs.SkipDir
		}
		return nil
	})
	return out
}
