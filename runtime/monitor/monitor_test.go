package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.podman.io/common/pkg/seccomp"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
)

const (
	busybox = "/bin/busybox"
	runc    = "/usr/sbin/runc"
)

// binaries builds the monitor and the embedded runtime once.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ocid-bin-")
	if err != nil {
		return "", err
	}
	for _, b := range []struct{ pkg, cgo, tags string }{
		{"ocid-monitor", "0", ""},
		{"ocid-runtime", "1", "seccomp"},
	} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", b.tags, "-ldflags", "-s -w",
			"-o", dir, "github.com/ocid-io/ocid/cmd/"+b.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo, "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binaries(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// pod is a monitor under test and what its containers need.
type pod struct {
	t        testing.TB
	ms       *Monitors
	m        lifecycle.Monitor
	pid      int
	id       runtime.PodID
	dir      string
	handler  string
	cgroup   string
	root     string
	stateDir string
}

func newPod(t testing.TB, handler string) *pod {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs busybox-static: " + err.Error())
	}
	if handler == "runc" {
		if _, err := os.Stat(runc); err != nil {
			t.Skip("needs runc: " + err.Error())
		}
	}
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	p := &pod{
		t: t, id: runtime.PodID("pod-" + filepath.Base(filepath.Dir(base))), handler: handler,
		dir: filepath.Join(base, strings.Repeat("long", 30)), cgroup: fmt.Sprintf("/ocid-test-%d-%d", os.Getpid(), time.Now().UnixNano()),
		root: filepath.Join(base, "rootfs"), stateDir: filepath.Join(base, "state"),
	}
	for _, d := range []string{p.dir, filepath.Join(p.root, "bin"), filepath.Join(p.root, "proc"), filepath.Join(p.root, "dev"), filepath.Join(p.root, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(p.root, "bin")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, a := range []string{"sh", "sleep", "cat", "echo", "yes", "head", "kill", "ps", "stty", "printf", "true", "seq"} {
		if err := os.Symlink("busybox", filepath.Join(p.root, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	p.ms, err = New(Options{
		MonitorPath: filepath.Join(bin, "ocid-monitor"), RuntimePath: filepath.Join(bin, "ocid-runtime"),
		Default: "ocid",
		Handlers: map[string]engine.Handler{
			"ocid": {Path: filepath.Join(bin, "ocid-runtime"), Root: p.stateDir, Embedded: true},
			"runc": {Path: runc, Root: p.stateDir},
			"stub": {Path: stub(t, base, filepath.Join(bin, "ocid-runtime")), Root: p.stateDir},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.m, p.pid, _, err = p.ms.Spawn(t.Context(), p.id, p.dir, handler, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

// stop ends the monitor and asserts that nothing is left.
func (p *pod) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	defer p.ms.Close()
	if st, err := p.m.State(ctx); err == nil {
		for _, c := range st {
			if err := p.m.Delete(ctx, c.ID); err != nil {
				p.t.Errorf("delete %s: %v", c.ID, err)
			}
		}
	}
	if err := p.m.Shutdown(ctx); err != nil {
		p.t.Errorf("shutdown: %v", err)
	}
	if cgroup.Exists(p.cgroup) {
		_ = cgroup.Kill(p.cgroup, time.Second)
		if err := cgroup.Remove(p.cgroup, time.Second); err != nil {
			p.t.Error(err)
		}
	}
	if e, _ := os.ReadDir(p.stateDir); len(e) > 0 {
		p.t.Errorf("runtime state is left: %v", e)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "monitor.log")); err == nil && len(b) > 0 {
		p.t.Errorf("monitor wrote: %s", b)
	}
}

func (p *pod) spec(cg string, tty bool, args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"}
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: p.root},
		Process: &specs.Process{
			Terminal: tty, Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cg,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
			},
		},
	}
	return s
}

// create makes a container that runs args.
func (p *pod) create(id string, change func(*specs.Spec, *lifecycle.CreateRequest), args ...string) (lifecycle.CreateRequest, error) {
	p.t.Helper()
	req := lifecycle.CreateRequest{
		ID: runtime.ContainerID(id), Bundle: filepath.Join(p.dir, id),
		LogPath: filepath.Join(p.dir, id+".log"), CgroupPath: p.cgroup + "/" + id,
	}
	s := p.spec(req.CgroupPath, false, args...)
	if change != nil {
		change(s, &req)
	}
	if err := os.MkdirAll(req.Bundle, 0o755); err != nil {
		p.t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(req.Bundle, "config.json"), b, 0o644); err != nil {
		p.t.Fatal(err)
	}
	_, err = p.m.Create(p.t.Context(), req)
	return req, err
}

// run creates and starts.
func (p *pod) run(id string, change func(*specs.Spec, *lifecycle.CreateRequest), args ...string) lifecycle.CreateRequest {
	p.t.Helper()
	req, err := p.create(id, change, args...)
	if err != nil {
		p.t.Fatalf("create: %v", err)
	}
	if err := p.m.Start(p.t.Context(), req.ID); err != nil {
		p.t.Fatalf("start: %v", err)
	}
	return req
}

func (p *pod) wait(id runtime.ContainerID) lifecycle.Exit {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	e, err := p.m.Wait(ctx, id)
	if err != nil {
		p.t.Fatalf("wait: %v", err)
	}
	return e
}

// entries returns "stream tag text" of each log line.
func entries(t testing.TB, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		ts, rest, _ := strings.Cut(l, " ")
		if _, err := time.Parse(time.RFC3339Nano, ts); err != nil {
			t.Fatalf("bad log line %q: %v", l, err)
		}
		all = append(all, rest)
	}
	return all
}

func each(t *testing.T, f func(t *testing.T, handler string)) {
	for _, h := range []string{"ocid", "runc"} {
		t.Run(h, func(t *testing.T) { f(t, h) })
	}
}

func TestLifecycle(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sh", "-c", "echo out; echo err >&2; printf tail; exit 7")
		if e := p.wait(r.ID); e.Code != 7 || e.FinishedAt == 0 || e.OOMKilled {
			t.Errorf("exit %+v", e)
		}
		got := strings.Join(entries(t, r.LogPath), "|")
		for _, want := range []string{"stdout F out", "stderr F err", "stdout F tail"} {
			if !strings.Contains(got, want) {
				t.Errorf("log %q lacks %q", got, want)
			}
		}
		if _, err := p.m.Create(t.Context(), r); err != nil {
			t.Errorf("a second create must tell the first's result: %v", err)
		}
		for range 2 {
			if err := p.m.Delete(t.Context(), r.ID); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if cgroup.Exists(r.CgroupPath) {
			t.Error("cgroup is left")
		}
		if _, err := p.m.Wait(t.Context(), r.ID); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("wait after delete: %v", err)
		}
	})
}

func TestSignals(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
		await(t, func() bool { b, _ := os.ReadFile(r.LogPath); return bytes.Contains(b, []byte("up")) })
		if err := p.m.Signal(t.Context(), r.ID, int(syscall.SIGTERM), false); err != nil {
			t.Fatal(err)
		}
		if e := p.wait(r.ID); e.Code != 3 {
			t.Errorf("exit %+v", e)
		}
		k := p.run("c2", nil, "sleep", "1000")
		if err := p.m.Signal(t.Context(), k.ID, int(syscall.SIGKILL), true); err != nil {
			t.Fatal(err)
		}
		if e := p.wait(k.ID); e.Code != 137 {
			t.Errorf("exit %+v", e)
		}
	})
}

func await(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not come to pass")
		}
	}
}

func (p *pod) exec(ctx context.Context, id runtime.ContainerID, drain time.Duration, args ...string) (string, int, error) {
	var out bytes.Buffer
	code, err := p.m.Exec(ctx, id, lifecycle.ExecRequest{
		Process: specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}},
		Stdout:  &out, Stderr: &out, Drain: drain,
	})
	return out.String(), code, err
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sleep", "1000")
		out, code, err := p.exec(t.Context(), r.ID, time.Second, "sh", "-c", "echo hi; echo oops >&2; exit 5")
		if err != nil || code != 5 || !strings.Contains(out, "hi") || !strings.Contains(out, "oops") {
			t.Errorf("%q %d %v", out, code, err)
		}
		out, code, err = p.exec(t.Context(), r.ID, 5*time.Second, "seq", "1", "200000")
		if err != nil || code != 0 || strings.Count(out, "\n") != 200000 {
			t.Errorf("%d lines, %d %v", strings.Count(out, "\n"), code, err)
		}
		if _, _, err := p.exec(t.Context(), r.ID, time.Second, "/no/such"); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("missing program: %v", err)
		}
		// The grandchild keeps the pipes open beyond the drain.
		begin := time.Now()
		out, code, err = p.exec(t.Context(), r.ID, 100*time.Millisecond, "sh", "-c", "echo now; sleep 100 & exit 4")
		if err != nil || code != 4 || out != "now\n" || time.Since(begin) > 10*time.Second {
			t.Errorf("drain: %q %d %v after %v", out, code, err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, _, err := p.exec(ctx, r.ID, time.Second, "sleep", "777"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("timeout: %v", err)
		}
		await(t, func() bool { out, _ := exec.Command("pgrep", "-f", "^sleep 777$").Output(); return len(out) == 0 })
		var buf bytes.Buffer
		code, err = p.m.Exec(t.Context(), r.ID, lifecycle.ExecRequest{
			Process: specs.Process{Args: []string{"cat"}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Stdin:   strings.NewReader("through"), Stdout: &buf, Drain: time.Second,
		})
		if err != nil || code != 0 || buf.String() != "through" {
			t.Errorf("stdin: %q %d %v", buf.String(), code, err)
		}
	})
}

func TestConcurrentExecs(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			out, code, err := p.exec(t.Context(), r.ID, time.Second, "sh", "-c", "echo "+strconv.Itoa(i)+"; exit "+strconv.Itoa(i))
			if err != nil || code != i || out != strconv.Itoa(i)+"\n" {
				t.Errorf("exec %d: %q %d %v", i, out, code, err)
			}
		})
	}
	wg.Wait()
}

func TestLog(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sh", "-c", "head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo next; sleep 1000")
	await(t, func() bool { b, _ := os.ReadFile(r.LogPath); return bytes.Contains(b, []byte("next")) })
	e := entries(t, r.LogPath)
	var lens []int
	for _, l := range e {
		lens = append(lens, len(l)-len("stdout F "))
	}
	if len(e) != 4 || lens[0] != 16384 || lens[1] != 16384 || lens[2] != 40000-32768 ||
		!strings.HasPrefix(e[0], "stdout P ") || !strings.HasPrefix(e[2], "stdout F ") || e[3] != "stdout F next" {
		t.Errorf("%d entries of %v", len(e), lens)
	}
	if err := os.Rename(r.LogPath, r.LogPath+".old"); err != nil {
		t.Fatal(err)
	}
	if err := p.m.ReopenLog(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.LogPath); err != nil {
		t.Error(err)
	}
	full := p.run("c2", func(_ *specs.Spec, q *lifecycle.CreateRequest) { q.LogPath = "/dev/full" }, "sh", "-c", "seq 1 100000; exit 6")
	if x := p.wait(full.ID); x.Code != 6 {
		t.Errorf("with a full disk: %+v", x)
	}
}

func TestTTY(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", func(s *specs.Spec, q *lifecycle.CreateRequest) { s.Process.Terminal, q.TTY = true, true },
			"sh", "-c", "test -t 1 && echo terminal")
		if x := p.wait(r.ID); x.Code != 0 {
			t.Errorf("%+v", x)
		}
		if e := strings.Join(entries(t, r.LogPath), "|"); !strings.Contains(e, "stdout F terminal") {
			t.Errorf("log %q", e)
		}
	})
}

func TestUpdateAndOOM(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		limit := int64(32 << 20)
		r := p.run("c1", func(s *specs.Spec, _ *lifecycle.CreateRequest) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
		}, "sh", "-c", "sleep 0.5; x=$(busybox yes | head -c 200000000); echo survived")
		less := int64(16 << 20)
		if err := p.m.Update(t.Context(), r.ID, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &less}}); err != nil {
			t.Errorf("update: %v", err)
		}
		if x := p.wait(r.ID); !x.OOMKilled {
			t.Errorf("%+v", x)
		}
	})
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r, err := p.create("c1", nil, "/no/such/program")
		if err == nil { // some runtimes find it out at start
			err = p.m.Start(t.Context(), r.ID)
			if err == nil {
				if x := p.wait(r.ID); x.Code == 0 {
					t.Error("a missing program ran")
				}
			}
			_ = p.m.Delete(t.Context(), r.ID)
		} else if !strings.Contains(err.Error(), "no such file") {
			t.Errorf("error does not name the cause: %v", err)
		}
		if cgroup.Exists(r.CgroupPath) {
			t.Error("cgroup is left")
		}
		r = p.run("c1", nil, "true")
		if x := p.wait(r.ID); x.Code != 0 {
			t.Errorf("retry: %+v", x)
		}
	})
}

// TestRuntimeKilledDuringCreate kills the runtime at varying moments.
func TestRuntimeKilledDuringCreate(t *testing.T) {
	p := newPod(t, "ocid")
	failed := 0
	for i := range 20 {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				kids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.pid, p.pid))
				tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
				for _, k := range tasks {
					b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", p.pid, k.Name()))
					kids = append(append(kids, ' '), b...)
				}
				for _, f := range strings.Fields(string(kids)) {
					pid, _ := strconv.Atoi(f)
					cmd, _ := os.ReadFile("/proc/" + f + "/cmdline")
					if pid > 1 && bytes.Contains(cmd, []byte("\x00create\x00")) {
						time.Sleep(time.Duration(i) * 2 * time.Millisecond)
						_ = syscall.Kill(pid, syscall.SIGKILL)
						return
					}
				}
			}
		})
		r, err := p.create("c1", nil, "sleep", "1000")
		close(stop)
		wg.Wait()
		if err != nil {
			failed++
			if cgroup.Exists(r.CgroupPath) {
				t.Errorf("attempt %d: cgroup is left", i)
			}
			if e, _ := os.ReadDir(p.stateDir); len(e) > 0 {
				t.Errorf("attempt %d: state is left: %v", i, e)
			}
			continue
		}
		if err := p.m.Delete(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
	}
	if failed == 0 {
		t.Error("the runtime was never hit")
	}
	r := p.run("c1", nil, "true")
	if x := p.wait(r.ID); x.Code != 0 {
		t.Errorf("retry: %+v", x)
	}
}

func TestMonitorSurvivesAndReconnects(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	if err := syscall.Kill(p.pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.m.(*Client).close(errors.New("test"))
	if _, err := p.m.State(t.Context()); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("on a closed connection: %v", err)
	}
	m, err := p.ms.Connect(t.Context(), p.id, p.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.m = m
	st, err := m.State(t.Context())
	if err != nil || len(st) != 1 || st[0].ID != r.ID || !st[0].Started || st[0].Exit != nil {
		t.Errorf("%+v %v", st, err)
	}
	if _, pid, _, err := p.ms.Spawn(t.Context(), p.id, p.dir, "ocid", ""); err != nil || pid != p.pid {
		t.Errorf("spawn beside a live monitor: pid %d, want %d: %v", pid, p.pid, err)
	}
	if err := m.Shutdown(t.Context()); !errors.Is(err, runtime.ErrState) {
		t.Errorf("shutdown with a container: %v", err)
	}
}

func TestOrphan(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		a := p.run("a", nil, "sh", "-c", "exit 9")
		p.wait(a.ID)
		b := p.run("b", nil, "sleep", "1000")
		waited := make(chan error, 1)
		go func() { _, err := p.m.Wait(context.Background(), b.ID); waited <- err }()
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-waited:
			if !errors.Is(err, runtime.ErrUnavailable) {
				t.Errorf("wait: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("a wait outlived the monitor")
		}
		for range 2 {
			exits, err := p.ms.Orphan(t.Context(), p.id, p.dir, h, []lifecycle.OrphanContainer{
				{ID: a.ID, CgroupPath: a.CgroupPath}, {ID: b.ID, CgroupPath: b.CgroupPath},
			})
			if err != nil || exits[a.ID].Code != 9 || len(exits) != 1 {
				t.Errorf("%+v %v", exits, err)
			}
		}
		if cgroup.Exists(a.CgroupPath) || cgroup.Exists(b.CgroupPath) {
			t.Error("cgroups are left")
		}
		if _, err := p.ms.Connect(t.Context(), p.id, p.dir); !errors.Is(err, runtime.ErrUnavailable) {
			t.Errorf("connect: %v", err)
		}
	})
}

func TestPIDNamespace(t *testing.T) {
	p := newPod(t, "ocid")
	pid, err := p.m.PIDNamespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.m.PIDNamespace(t.Context()); err != nil || again != pid {
		t.Errorf("%d, then %d: %v", pid, again, err)
	}
	harmless(t, pid)
	share := func(s *specs.Spec, _ *lifecycle.CreateRequest) {
		s.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	r := p.run("c1", share, "sh", "-c", "sleep 1000 & exit 0")
	if x := p.wait(r.ID); x.Code != 0 {
		t.Errorf("%+v", x)
	}
	if err := p.m.Delete(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if cgroup.Exists(r.CgroupPath) {
		t.Error("the leftover process kept the cgroup")
	}
}

// harmless checks the process that containers see as pid 1: whoever may trace it
// gets nothing of the host's by it.
func harmless(t *testing.T, pid int) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	if l, err := os.ReadDir(proc + "root"); err != nil || len(l) != 0 {
		t.Errorf("its root directory has %v, %v", l, err)
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "cgroup"} {
		its, err := os.Readlink(proc + "ns/" + ns)
		ours, oerr := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || oerr != nil || its == ours {
			t.Errorf("its %s namespace is %s, the host's %s: %v %v", ns, its, ours, err, oerr)
		}
	}
	tasks, err := os.ReadDir(proc + "task")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(proc + "task/" + task.Name() + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("thread %s has not %q", task.Name(), want)
			}
		}
	}
	b, err := os.ReadFile(proc + "mountinfo")
	if err != nil || strings.Count(string(b), "\n") != 1 {
		t.Errorf("its mounts are %q, %v", b, err)
	}
	fds, err := os.ReadDir(proc + "fd")
	for _, fd := range fds {
		to, _ := os.Readlink(proc + "fd/" + fd.Name())
		if !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:") && to != "/dev/null" {
			t.Errorf("it has %s open (%v)", to, err)
		}
	}
}

// TestFootprint prints what a pod costs; nothing is asserted. Program text is
// shared, so a pod among others costs less than one alone.
func TestFootprint(t *testing.T) {
	const pods = 16
	var all []*pod
	for range pods {
		p := newPod(t, "ocid")
		p.run("c0", nil, "sleep", "1000")
		all = append(all, p)
	}
	t.Logf("%d pods of 1 container: %s each", pods, pss(all))
	p := all[0]
	for i := range 4 {
		p.run("c"+strconv.Itoa(i+1), nil, "sleep", "1000")
	}
	t.Logf("one of them with 5 containers: %s", pss(all[:1]))
}

// pss averages the proportional set sizes of monitors.
func pss(pods []*pod) string {
	sum := map[string]int{}
	for _, p := range pods {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
		for _, l := range strings.Split(string(b), "\n") {
			if f := strings.Fields(l); len(f) == 3 {
				n, _ := strconv.Atoi(f[1])
				sum[f[0]] += n
			}
		}
	}
	n := len(pods)
	return fmt.Sprintf("PSS %d kB (anonymous %d kB, file %d kB)", sum["Pss:"]/n, sum["Pss_Anon:"]/n, sum["Pss_File:"]/n)
}

func BenchmarkContainer(b *testing.B) {
	for _, v := range []struct{ name, handler, filter string }{
		{"embedded", "ocid", "default"},
		{"embedded-native-filter", "ocid", "native"},
		{"embedded-unconfined", "ocid", ""},
		{"runc", "runc", "default"},
	} {
		b.Run(v.name, func(b *testing.B) {
			h := v.handler
			p := newPod(b, h)
			var create, start, stop time.Duration
			var filterErr error
			n := 0
			for b.Loop() {
				n++
				id := "c" + strconv.Itoa(n)
				t0 := time.Now()
				r, err := p.create(id, func(s *specs.Spec, _ *lifecycle.CreateRequest) {
					if v.filter == "" {
						return
					}
					s.Linux.Seccomp, filterErr = seccomp.GetDefaultProfile(s)
					if v.filter == "native" {
						s.Linux.Seccomp.Architectures = nil
					}
				}, "sleep", "1000")
				if err != nil || filterErr != nil {
					b.Fatal(err, filterErr)
				}
				t1 := time.Now()
				if err := p.m.Start(b.Context(), r.ID); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				_ = p.m.Signal(b.Context(), r.ID, 9, false)
				p.wait(r.ID)
				if err := p.m.Delete(b.Context(), r.ID); err != nil {
					b.Fatal(err)
				}
				create, start, stop = create+t1.Sub(t0), start+t2.Sub(t1), stop+time.Since(t2)
			}
			b.ReportMetric(float64(create.Microseconds())/float64(n)/1000, "create-ms")
			b.ReportMetric(float64(start.Microseconds())/float64(n)/1000, "start-ms")
			b.ReportMetric(float64(stop.Microseconds())/float64(n)/1000, "down-ms")
		})
	}
}

func BenchmarkExec(b *testing.B) {
	p := newPod(b, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	for b.Loop() {
		if _, code, err := p.exec(b.Context(), r.ID, time.Second, "true"); err != nil || code != 0 {
			b.Fatal(code, err)
		}
	}
}

func BenchmarkSpawn(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		p := newPod(b, "ocid")
		p.stop()
		b.StartTimer()
		m, _, _, err := p.ms.Spawn(b.Context(), p.id, p.dir, "ocid", "")
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = m.Shutdown(b.Context())
		b.StartTimer()
	}
}

// TestBusyMonitorIsNotGone: whoever gives up waiting for an answer must not
// take the pod for one without a monitor, whose containers would be ended.
func TestBusyMonitorIsNotGone(t *testing.T) {
	dir := t.TempDir()
	l, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := &Monitors{clients: map[runtime.PodID]*Client{}, busy: map[runtime.PodID]*podLock{}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Connect(ctx, "p", dir); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("busy: %v", err)
	}
	l.Close()
	if _, err := m.Connect(t.Context(), "p", dir); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("gone: %v", err)
	}
}
