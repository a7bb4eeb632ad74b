package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// driverVar names the cgroup driver to use; unset, the daemon decides.
const driverVar = "OCID_TEST_CGROUP_DRIVER"

// handlerVar names the handler of pods that ask for none.
const handlerVar = "OCID_TEST_HANDLER"

// dropIn writes what the environment asks for.
func (e *Env) dropIn() error {
	text := ""
	for variable, key := range map[string]string{driverVar: "cgroup_driver", handlerVar: "default_handler"} {
		if v := os.Getenv(variable); v != "" {
			text += fmt.Sprintf("%s = %q\n", key, v)
		}
	}
	if text == "" {
		return nil
	}
	if err := os.Mkdir(e.Config+".d", 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.Config+".d", "10-test.toml"), []byte("[runtime]\n"+text), 0o644)
}

// Unified tells whether cgroup v2 alone is in use.
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// makeCgroup makes the parent of all pods: a slice where the daemon uses
// systemd's, else a group.
func (e *Env) makeCgroup(name string) error {
	_, err := os.Lstat("/run/systemd/system")
	driver := os.Getenv(driverVar)
	e.Systemd = driver == "systemd" || driver == "" && err == nil && Unified()
	if e.Systemd {
		e.CgroupParent = name + ".slice"
		// Each dash is a level: name is ocid-test-ID.
		e.CgroupDir = "/ocid.slice/ocid-test.slice/" + e.CgroupParent
		if out, err := exec.Command("systemctl", "start", e.CgroupParent).CombinedOutput(); err != nil {
			return fmt.Errorf("start %s: %w: %s", e.CgroupParent, err, out)
		}
		return nil
	}
	e.CgroupParent = "/" + name
	e.CgroupDir = e.CgroupParent
	for _, r := range CgroupRoots() {
		if err := os.Mkdir(filepath.Join(r, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// SubCgroup names a group below that of all pods, which is not made, and where
// it is in each hierarchy.
func (e *Env) SubCgroup(name string) (parent, dir string) {
	if e.Systemd {
		// A dash would be a level of its own; the kubelet writes it as here.
		parent = strings.TrimSuffix(e.CgroupParent, ".slice") + "-" + strings.ReplaceAll(name, "-", "_") + ".slice"
		return parent, e.CgroupDir + "/" + parent
	}
	return e.CgroupParent + "/" + name, e.CgroupDir + "/" + name
}

func (e *Env) removeCgroup() {
	removeCgroups(e.CgroupDir)
	if e.Systemd {
		// Nobody is told of a failure: the slice is empty and nobody's any more.
		_ = exec.Command("systemctl", "stop", e.CgroupParent).Run()
	}
}

// CgroupRoots lists the mounted hierarchies.
func CgroupRoots() []string {
	roots := []string{"/sys/fs/cgroup"}
	dirs, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return nil
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return roots
	}
	roots = nil
	for _, d := range dirs {
		if d.IsDir() {
			roots = append(roots, filepath.Join("/sys/fs/cgroup", d.Name()))
		}
	}
	return roots
}

// cgroups lists those below the parent, the parent itself left out: it belongs
// to the test.
func cgroups(parent string) []string {
	var out []string
	for _, r := range CgroupRoots() {
		top := filepath.Join(r, parent)
		// A cgroup may vanish during the walk; then it is not a leak.
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && p != top {
				out = append(out, p)
			}
			return nil
		})
	}
	return out
}

func removeCgroups(parent string) {
	list := cgroups(parent)
	sort.Strings(list)
	for _, p := range slices.Backward(list) {
		// A busy one stays and is seen by whoever looks at the machine.
		_ = unix.Rmdir(p)
	}
	for _, r := range CgroupRoots() {
		_ = unix.Rmdir(filepath.Join(r, parent))
	}
}
