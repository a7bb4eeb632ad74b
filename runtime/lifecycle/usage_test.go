package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// kernel is one that counts how often it is read.
type kernel struct {
	cpu, reads, looks, nets int
	absent                  bool
}

func (c *kernel) CPU(string) (uint64, error) {
	c.looks++
	return uint64(c.cpu), nil
}

func (c *kernel) Cgroup(path string, detail bool) (runtime.Usage, error) {
	c.reads++
	if c.absent {
		return runtime.Usage{}, os.ErrNotExist
	}
	u := runtime.Usage{CPUNanos: uint64(c.cpu), MemoryUsage: uint64(c.reads), Processes: 2, SwapLimit: uint64(len(path))}
	if detail {
		u.Detail = &runtime.UsageDetail{OOMKills: 1}
	}
	return u, nil
}

func (c *kernel) Interfaces(string) ([]runtime.InterfaceUsage, error) {
	c.nets++
	return []runtime.InterfaceUsage{{Name: "eth0", RxBytes: uint64(c.nets)}}, nil
}

func (c *kernel) FileSystem(_ string, d *runtime.UsageDetail) error {
	d.FSBytes = 7
	return nil
}

// A group in which nothing has run is not read again; one in which something
// has is.
func TestIdleReading(t *testing.T) {
	k := &kernel{cpu: 5}
	var r reading
	first, err := r.of(k, "/g", false)
	if err != nil {
		t.Fatal(err)
	}
	k.cpu++
	if again, err := r.of(k, "/g", false); err != nil || k.reads != 1 || k.looks != 0 || again.Timestamp != first.Timestamp {
		t.Errorf("in one breath: %d reads, %d looks, %+v, %v", k.reads, k.looks, again, err)
	}
	k.cpu--
	later := func() { r.look = r.look.Add(-lookAge) }
	later()
	second, err := r.of(k, "/g", false)
	if err != nil || k.reads != 1 || second.MemoryUsage != first.MemoryUsage || second.ReadAt != first.ReadAt || second.Timestamp <= first.Timestamp {
		t.Errorf("idle: %d reads, %+v then %+v, %v", k.reads, first, second, err)
	}
	if d, err := r.of(k, "/g", true); err != nil || d.Detail == nil || k.reads != 2 {
		t.Errorf("detail must be read: %+v, %v", d, err)
	}
	later()
	if u, _ := r.of(k, "/g", false); u.Detail != nil || k.reads != 2 {
		t.Errorf("detail is kept: %+v", u)
	}
	k.cpu++
	later()
	if u, _ := r.of(k, "/g", false); k.reads != 3 || u.CPUNanos != 6 {
		t.Errorf("after a run: %d reads, %+v", k.reads, u)
	}
	later()
	r.at = r.at.Add(-idleAge)
	if _, _ = r.of(k, "/g", false); k.reads != 4 {
		t.Errorf("an old reading stands: %d reads", k.reads)
	}
}

func TestPodUsage(t *testing.T) {
	w := newWorld(t)
	m := newManager(t, w)
	k := &kernel{cpu: 5}
	m.o.Usage = k
	upper := t.TempDir()
	m.o.UpperDir = func(string) string { return upper }
	cfg := podConfig("a")
	cfg.CgroupParent = "/kubepods/podu"
	own, err := m.RunPod(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := m.RunPod(t.Context(), podConfig("b"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range []runtime.PodID{own, shared} {
		for _, name := range []string{"c", "d"} {
			id, err := m.CreateContainer(t.Context(), pod, containerConfig(name))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.StartContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	u, err := m.PodDetail(t.Context(), own)
	if err != nil || u.Cgroup != "/kubepods/podu" || u.CPUNanos != 5 || u.Processes != 4 || u.Detail == nil || len(u.Network) != 1 {
		t.Errorf("own cgroup: %+v, %v", u, err)
	}
	u, err = m.PodUsage(t.Context(), shared)
	if err != nil || u.Cgroup != "" || u.CPUNanos != 10 || u.Processes != 4 || u.NetworkAt == 0 {
		t.Errorf("shared cgroup: %+v, %v", u, err)
	}
	c := m.Containers()[0]
	cu, err := m.ContainerDetail(t.Context(), c.ID)
	if err != nil || cu.Detail == nil || cu.Detail.FSBytes != 7 || cu.UpperMount != upper {
		t.Errorf("container: %+v, %v", cu, err)
	}
	for end := time.Now().Add(10 * time.Second); cu.UpperAt == 0 && time.Now().Before(end); {
		if cu, err = m.ContainerUsage(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	if cu.UpperAt == 0 || cu.UpperInodes != 1 {
		t.Errorf("the writable layer was not measured: %+v", cu)
	}
	if err := m.RemovePod(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	if _, kept := m.podReadings[own]; kept {
		t.Error("a removed pod's reading is kept")
	}
	if _, err := m.ContainerUsage(t.Context(), c.ID); !errors.Is(err, runtime.ErrNotFound) {
		t.Error(err)
	}
}

func TestOwnCgroup(t *testing.T) {
	p := runtime.Pod{Config: runtime.PodConfig{Name: runtime.PodName{UID: "1-2"}}}
	for dir, own := range map[string]bool{
		"/kubepods/besteffort/pod1-2": true, "/kubepods.slice/kubepods-pod1_2.slice": true,
		"/ocid": false, "/kubepods/pod11-2": false, "/kubepods/pod1-2/x": false,
	} {
		c := &runtime.Container{CgroupPath: dir + "/c"}
		if got := ownCgroup(p, []*runtime.Container{c}); (got == dir) != own {
			t.Errorf("%s: %q", dir, got)
		}
	}
}

func TestWalk(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	big := strings.Repeat("x", 64<<10)
	write := func(path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(big), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		write(filepath.Join(dir, "a", fmt.Sprint(i), "f"))
		write(filepath.Join(outside, fmt.Sprint(i)))
	}
	if err := os.Link(filepath.Join(dir, "a/0/f"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "soft")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	bytes, inodes := walk(dir, &stop)
	// The root, a, three directories, three files, one link.
	if inodes != 9 || bytes < 3*64<<10 || bytes > 4*64<<10 {
		t.Errorf("%d bytes in %d inodes", bytes, inodes)
	}
	stop.Store(true)
	if _, inodes := walk(dir, &stop); inodes != 1 {
		t.Errorf("a stopped walk went on to %d", inodes)
	}
	if bytes, inodes := walk(filepath.Join(dir, "soft"), new(atomic.Bool)); bytes+inodes != 0 {
		t.Error("a link was taken for the root")
	}
}

// A layer that does not change is not walked again, however often it is asked for.
func TestUpperIsMeasuredOnce(t *testing.T) {
	dir := t.TempDir()
	var w uppers
	var u upperUsage
	await := func() (inodes uint64, at int64) {
		for end := time.Now().Add(10 * time.Second); ; {
			u.mu.Lock()
			busy := u.queued
			u.mu.Unlock()
			if !busy || time.Now().After(end) {
				_, inodes, at = u.last()
				return inodes, at
			}
		}
	}
	w.want(&u, dir, 5)
	_, _ = await()
	if err := unix.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	u.mu.Lock()
	u.at = u.at.Add(-time.Hour)
	first := u.at.UnixNano()
	u.mu.Unlock()
	w.want(&u, dir, 5)
	if n, at := await(); n != 1 || at != first {
		t.Errorf("walked although nothing ran: %d inodes", n)
	}
	w.want(&u, dir, 6)
	if n, _ := await(); n != 2 {
		t.Errorf("not walked although something ran: %d inodes", n)
	}
}
