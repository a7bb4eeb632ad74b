package lifecycle

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/runtime"
)

func TestSliceDir(t *testing.T) {
	for in, want := range map[string]string{
		"kubepods.slice":                    "/kubepods.slice",
		"/test.slice":                       "/test.slice",
		"kubepods-besteffort-pod1_2.slice":  "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
		"/a.slice/a-b.slice":                "/a.slice/a-b.slice",
		"a\\x2db.slice":                     "/a\\x2db.slice",
		"":                                  "",
		"/kubepods/pod1":                    "",
		".slice":                            "",
		"-.slice":                           "",
		"-a.slice":                          "",
		"a--b.slice":                        "",
		"a-.slice":                          "",
		"a b.slice":                         "",
		"a\nb.slice":                        "",
		"x.service":                         "",
		strings.Repeat("a", 250) + ".slice": "",
		strings.Repeat("a", 249) + ".slice": "/" + strings.Repeat("a", 249) + ".slice",
	} {
		got, err := sliceDir(in)
		if got != want || (err == nil) == (want == "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
		if err != nil && !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%q: %v is not ErrInvalid", in, err)
		}
	}
}

func TestEngineCgroupAndBack(t *testing.T) {
	for host, engine := range map[string]string{
		"/kubepods.slice/kubepods-pod1.slice/ocid-abc.scope": "kubepods-pod1.slice:ocid:abc",
		"/ocid/abc": "/ocid/abc",
	} {
		if got := engineCgroup(host); got != engine {
			t.Errorf("%s: the runtime is told %q, want %q", host, got, engine)
		}
		if got := hostCgroup(engine); got != host {
			t.Errorf("%s: leads back to %q, want %q", engine, got, host)
		}
	}
	for _, bad := range []string{"x:ocid:a", "a.slice:ocid:../../b", "a.slice:../x:b", "../a.slice:/x:b"} {
		if got := hostCgroup(bad); got != "" {
			t.Errorf("%q of a damaged bundle leads to %q", bad, got)
		}
	}
}

// groups is a cgroup tree in memory.
type groups struct{ there map[string]bool }

func (g groups) Missing(path string) []string {
	var out []string
	dir := ""
	for part := range strings.SplitSeq(path[1:], "/") {
		if dir += "/" + part; !g.there[dir] {
			out = append(out, dir)
		}
	}
	return out
}

func (g groups) RemoveEmpty(_ context.Context, path string) error {
	for p := range g.there {
		if strings.HasPrefix(p, path+"/") {
			return nil
		}
	}
	delete(g.there, path)
	return nil
}

func TestCgroupsAbovePodsGoWithTheLast(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	g := groups{map[string]bool{"/kubepods": true}}
	m.o.Cgroups = g
	run := func(name, parent string) runtime.PodID {
		t.Helper()
		cfg := podConfig(name)
		cfg.CgroupParent = parent
		id, err := m.RunPod(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for dir := parent; dir != ""; dir = dir[:strings.LastIndexByte(dir, '/')] {
			g.there[dir] = true // what the runtime does at the first container
		}
		return id
	}
	a := run("a", "/kubepods/burst/one")
	b := run("b", "/kubepods/burst/one")
	c := run("c", "/kubepods/burst/two")
	for i, step := range []struct {
		id   runtime.PodID
		left []string
	}{
		{a, []string{"/kubepods", "/kubepods/burst", "/kubepods/burst/one", "/kubepods/burst/two"}},
		{c, []string{"/kubepods", "/kubepods/burst", "/kubepods/burst/one"}},
		{b, []string{"/kubepods"}},
	} {
		if err := m.RemovePod(t.Context(), step.id); err != nil {
			t.Fatal(err)
		}
		var left []string
		for p := range g.there {
			left = append(left, p)
		}
		slices.Sort(left)
		if !slices.Equal(left, step.left) {
			t.Errorf("after step %d there are %v, want %v", i, left, step.left)
		}
	}
}

func TestSystemdDriverRefusesWhatIsNoSlice(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	m.o.Systemd = true
	cfg := podConfig("a")
	cfg.CgroupParent = "/kubepods/pod1"
	if _, err := m.RunPod(t.Context(), cfg); !errors.Is(err, runtime.ErrInvalid) {
		t.Fatalf("got %v, want ErrInvalid", err)
	}
	if left := w.left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
