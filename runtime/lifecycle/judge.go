package lifecycle

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/checkpoint"
	"github.com/ocid-io/ocid/runtime/spec"
)

// judge compares a checkpoint with the bundle that was made for the request:
// first what the archive says of itself, then what its images would do.
func (m *Manager) judge(c runtime.Container, img runtime.ImageConfig, content *checkpoint.Content) error {
	b, err := os.ReadFile(filepath.Join(m.bundle(&c), "config.json"))
	if err != nil {
		return err
	}
	var want specs.Spec
	if err := json.Unmarshal(b, &want); err != nil {
		return err
	}
	switch cfg := content.Config; {
	case cfg.Name != c.Config.Name.Name:
		return mismatch("name", cfg.Name, c.Config.Name.Name)
	case cfg.RootfsImage != img.ID:
		return mismatch("image", cfg.RootfsImage, img.ID)
	case cfg.TTY != c.Config.TTY || cfg.Stdin != c.Config.Stdin:
		return mismatch("terminal or input", "", "")
	}
	if err := sameSpec(&content.Spec, &want); err != nil {
		return err
	}
	root, err := os.OpenRoot(m.restoreDir(c.ID))
	if err != nil {
		return err
	}
	defer root.Close()
	return checkpoint.CheckImages(root, expectation(&want))
}

func mismatch(what string, have, want any) error {
	return fmt.Errorf("%w: the checkpoint's %s is %.200v, and the request's %.200v", runtime.ErrInvalid, what, have, want)
}

// sameSpec compares what a process cannot change once it runs.
func sameSpec(have, want *specs.Spec) error {
	if have.Process == nil || have.Linux == nil {
		return mismatch("spec", "incomplete", "not")
	}
	h, w := have.Process, want.Process
	for _, x := range []struct {
		what       string
		have, want any
	}{
		{"command", h.Args, w.Args},
		{"environment", h.Env, w.Env},
		{"working directory", h.Cwd, w.Cwd},
		{"terminal", h.Terminal, w.Terminal},
		{"user", []any{h.User.UID, h.User.GID, h.User.AdditionalGids}, []any{w.User.UID, w.User.GID, w.User.AdditionalGids}},
		{"capabilities", capsOf(h), capsOf(w)},
		{"no-new-privileges", h.NoNewPrivileges, w.NoNewPrivileges},
		{"AppArmor profile", h.ApparmorProfile, w.ApparmorProfile},
		{"SELinux label", h.SelinuxLabel, w.SelinuxLabel},
		{"namespaces", kinds(have), kinds(want)},
		{"mounts", points(have), points(want)},
		{"devices", devices(have), devices(want)},
		{"masked paths", sorted(have.Linux.MaskedPaths), sorted(want.Linux.MaskedPaths)},
		{"read-only paths", sorted(have.Linux.ReadonlyPaths), sorted(want.Linux.ReadonlyPaths)},
		{"seccomp profile", have.Linux.Seccomp, want.Linux.Seccomp},
	} {
		if !sameJSON(x.have, x.want) && !(empty(x.have) && empty(x.want)) {
			return mismatch(x.what, x.have, x.want)
		}
	}
	return nil
}

func empty(v any) bool {
	r := reflect.ValueOf(v)
	return !r.IsValid() || (r.Kind() == reflect.Slice || r.Kind() == reflect.Map) && r.Len() == 0
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func capsOf(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	return sorted(p.Capabilities.Bounding)
}

// kinds lists the namespaces and whether each is joined; the paths are those
// of one pod.
func kinds(s *specs.Spec) []string {
	var out []string
	for _, n := range s.Linux.Namespaces {
		out = append(out, fmt.Sprintf("%s joined=%t", n.Type, n.Path != ""))
	}
	return sorted(out)
}

// points lists where mounts are and of which kind; where binds come from is
// the node's affair.
func points(s *specs.Spec) []string {
	var out []string
	for _, m := range s.Mounts {
		out = append(out, fmt.Sprintf("%s %s ro=%t", m.Destination, m.Type, slices.Contains(m.Options, "ro")))
	}
	return sorted(out)
}

func devices(s *specs.Spec) []string {
	var out []string
	for _, d := range s.Linux.Devices {
		out = append(out, d.Path)
	}
	return sorted(out)
}

// expectation says what the processes of a container with this spec can be.
func expectation(s *specs.Spec) checkpoint.Expect {
	e := checkpoint.Expect{
		NoNewPrivileges: s.Process.NoNewPrivileges, UID: s.Process.User.UID, Seccomp: s.Linux.Seccomp != nil,
		GIDs:    append([]uint32{s.Process.User.GID}, s.Process.User.AdditionalGids...),
		Profile: s.Process.ApparmorProfile, MinOOMScore: math.MinInt32,
		// The root is where the daemon says, whatever an image calls it.
		Mounts: []checkpoint.Mount{{Point: "/", Types: []string{"", "overlay", "tmpfs", "bind"}}},
	}
	if o := s.Process.OOMScoreAdj; o != nil {
		e.MinOOMScore = int32(*o) //nolint:gosec // between -1000 and 1000
	}
	if e.Profile == "" {
		e.Profile = s.Process.SelinuxLabel
	}
	for i, n := range spec.KnownCapabilities() {
		if s.Process.Capabilities != nil && slices.Contains(s.Process.Capabilities.Bounding, n) {
			e.Bounding |= 1 << i
		}
	}
	masked := map[string]bool{}
	cover := func(paths []string, types ...string) {
		for _, p := range paths {
			if masked[p] {
				continue
			}
			masked[p] = true
			e.Mounts = append(e.Mounts, checkpoint.Mount{Point: p, Types: types, ReadOnly: types[0] != "bind"})
			if _, err := os.Lstat(p); err == nil && kernels(s, p) {
				e.Covered = append(e.Covered, p)
			}
		}
	}
	cover(s.Linux.MaskedPaths, "bind", "tmpfs")
	cover(s.Linux.ReadonlyPaths, "proc", "sysfs", "bind")
	for _, d := range s.Linux.Devices {
		e.Mounts = append(e.Mounts, checkpoint.Mount{Point: d.Path, Types: []string{"bind"}})
	}
	if s.Process.Terminal {
		e.Mounts = append(e.Mounts, checkpoint.Mount{Point: "/dev/console", Types: []string{"bind", "devpts"}})
	}
	for _, m := range s.Mounts {
		w := checkpoint.Mount{Point: filepath.Clean(m.Destination), Types: []string{m.Type}, ReadOnly: slices.Contains(m.Options, "ro")}
		switch m.Type {
		case "cgroup":
			// On v1, a tmpfs with one mount for each hierarchy.
			e.Mounts = append(e.Mounts, checkpoint.Mount{Point: w.Point, Types: []string{"tmpfs"}})
			w.Types, w.Below = []string{"cgroup", "bind"}, true
		case "bind":
			// A recursive bind brings the mounts below its source.
			w.Below = slices.Contains(m.Options, "rbind")
		}
		e.Mounts = append(e.Mounts, w)
	}
	return e
}

// kernels reports whether p shows the same in every container: it is in a
// proc or sysfs that the spec mounts.
func kernels(s *specs.Spec, p string) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		return (m.Type == "proc" || m.Type == "sysfs") && strings.HasPrefix(p, m.Destination+"/")
	})
}
