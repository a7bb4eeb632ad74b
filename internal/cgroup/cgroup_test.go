package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

func TestParseModes(t *testing.T) {
	const v1 = "35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n40 31 0:37 / /sys/fs/cgroup/systemd rw shared:3 - cgroup cgroup rw,name=systemd\n"
	const v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	for in, want := range map[string]Mode{v1: Legacy, v1 + v2: Hybrid, v2: Unified} {
		fs, err := parse([]byte(in))
		if err != nil || fs.Mode() != want {
			t.Errorf("%v, %v; want %v", fs, err, want)
		}
	}
	if fs, _ := parse([]byte(v1)); len(fs.roots) != 2 {
		t.Errorf("roots %v: two controllers on one mount are one hierarchy", fs.roots)
	}
	if _, err := parse(nil); err == nil {
		t.Error("no hierarchy must be an error")
	}
}

func TestPathsStayInside(t *testing.T) {
	for _, p := range []string{"", "/", "/..", "a/../..", "//.", "a\x00"} {
		if _, err := clean(p); err == nil {
			t.Errorf("clean(%q) must be refused", p)
		}
	}
}

func TestCoreNanos(t *testing.T) {
	a, b := Stats{Timestamp: 0, CPUNanos: 100}, Stats{Timestamp: 1e9, CPUNanos: 100 + 5e8}
	if got := CoreNanos(a, b); got != 5e8 {
		t.Error(got)
	}
	if got := CoreNanos(b, a); got != 0 {
		t.Error(got)
	}
}

func TestHostGroup(t *testing.T) {
	fs, err := Host()
	if err != nil || os.Getuid() != 0 {
		t.Skipf("needs root and a cgroup hierarchy: %v", err)
	}
	path := "/ocid-cgroup-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() { _ = fs.Remove(path) })
	if err := fs.Create(path + "/inner"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "read x; sleep 1000 & sleep 1000; :")
	in, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, root := range fs.roots {
		if err := os.WriteFile(root+path+"/inner/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = in.Write([]byte("\n"))
	for end := time.Now().Add(5 * time.Second); ; {
		if pids, err := fs.Procs(path); err != nil || len(pids) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the children never showed")
		}
		time.Sleep(time.Millisecond)
	}
	st, err := fs.Stats(path)
	if err != nil || st.Pids != 3 || st.CPUNanos == 0 || st.MemoryUsage == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	t.Logf("%+v", st)
	go func() { _ = cmd.Wait() }()
	if err := fs.KillAll(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := fs.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, root := range fs.roots {
		if _, err := os.Stat(root + path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left: %s", root+path)
		}
	}
}

func BenchmarkStats(b *testing.B) {
	fs, err := Host()
	if err != nil || os.Getuid() != 0 {
		b.Skip("needs root and a cgroup hierarchy")
	}
	path := "/ocid-cgroup-bench-" + strconv.Itoa(os.Getpid())
	if err := fs.Create(path); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = fs.Remove(path) }()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fs.Stats(path); err != nil {
			b.Fatal(err)
		}
	}
}
