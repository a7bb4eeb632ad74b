// Package monitor is the daemon's side of the pods' monitors: it starts them,
// finds them again, speaks to them, and cleans up after one that died.
//
// Invariants:
//   - a monitor is no child that anything depends on: it has its own session,
//     survives the daemon and is found again by its socket;
//   - a monitor that cannot be reached is runtime.ErrUnavailable, at once, for
//     every call under way;
//   - the embedded runtime is copied once into sealed memory and inherited by
//     monitors, so that no start pays for protecting the binary from containers.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

const (
	socketName  = "monitor.sock"
	logName     = "monitor.log"
	answerWait  = 10 * time.Second // for a new monitor's first answer
	killWait    = 10 * time.Second
	runtimeFD   = "/proc/self/fd/4" // where a monitor finds the embedded runtime
	deleteLimit = time.Minute
)

// Options configure Monitors.
type Options struct {
	MonitorPath string // the ocid-monitor binary
	RuntimePath string // the ocid-runtime binary; "" if no handler is embedded
	Handlers    map[string]engine.Handler
	Default     string // name of the handler that "" stands for
	// Cgroup says where monitors live: "" beside the daemon, "pod" in a scope of
	// the pod's slice, or the name of a slice. Other than "" needs systemd.
	Cgroup string
	Log    *slog.Logger
}

// Monitors spawns and finds monitors; it is a lifecycle.Monitors.
type Monitors struct {
	opts    Options
	runtime *os.File // sealed copy of RuntimePath, nil without one

	mu      sync.Mutex
	active  map[string]engine.Handler // guarded by mu: for new pods
	retired map[string]engine.Handler // guarded by mu: gone from the configuration, pods may have them
	clients map[runtime.PodID]*Client
	busy    map[runtime.PodID]*podLock // one spawn or connect per pod at a time

	onLoss atomic.Pointer[func(runtime.PodID)]
}

var (
	_ lifecycle.Monitors = (*Monitors)(nil)
	_ lifecycle.Monitor  = (*Client)(nil)
)

// New checks the options and seals the embedded runtime.
func New(o Options) (*Monitors, error) {
	if _, ok := o.Handlers[o.Default]; !ok {
		return nil, fmt.Errorf("%w: default handler %q is not configured", runtime.ErrInvalid, o.Default)
	}
	if _, err := os.Stat(o.MonitorPath); err != nil {
		return nil, fmt.Errorf("monitor binary: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	m := &Monitors{opts: o, active: o.Handlers, retired: map[string]engine.Handler{}, clients: map[runtime.PodID]*Client{}, busy: map[runtime.PodID]*podLock{}}
	for _, h := range o.Handlers {
		if h.Root == "" && h.Embedded {
			return nil, fmt.Errorf("%w: handler %q has no root", runtime.ErrInvalid, h.Name)
		}
		if h.Embedded && m.runtime == nil {
			f, err := seal(o.RuntimePath)
			if err != nil {
				return nil, fmt.Errorf("embedded runtime: %w", err)
			}
			m.runtime = f
		}
	}
	return m, nil
}

// Close lets go of all monitors; they go on.
func (m *Monitors) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.clients {
		c.close(errors.New("closed by the daemon"))
	}
	if m.runtime != nil {
		m.runtime.Close()
	}
}

// Handlers lists the configured handler names.
func (m *Monitors) Handlers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(m.active))
	for n := range m.active {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// SetHandlers replaces the handlers for new pods. The default stays, and so do
// those that are left out, for the pods that have them.
func (m *Monitors) SetHandlers(hs map[string]engine.Handler) error {
	if _, ok := hs[m.opts.Default]; !ok {
		return fmt.Errorf("%w: default handler %q is not configured", runtime.ErrInvalid, m.opts.Default)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for n, h := range m.active {
		if _, ok := hs[n]; !ok {
			m.retired[n] = h
		}
	}
	m.active = hs
	return nil
}

func (m *Monitors) handler(name string) (engine.Handler, error) {
	if name == "" {
		name = m.opts.Default
	}
	m.mu.Lock()
	h, ok := m.active[name]
	if !ok {
		h, ok = m.retired[name]
	}
	m.mu.Unlock()
	if !ok {
		return h, fmt.Errorf("%w: unknown runtime handler %q; configured are %s",
			runtime.ErrInvalid, name, strings.Join(m.Handlers(), ", "))
	}
	h.Name = name
	return h, nil
}

// podLock is held while the socket of one pod is made or connected to.
type podLock struct {
	sync.Mutex
	users int // holders and waiters; guarded by Monitors.mu
}

// lock serializes what concerns the socket of one pod.
func (m *Monitors) lock(id runtime.PodID) (unlock func()) {
	m.mu.Lock()
	l := m.busy[id]
	if l == nil {
		l = new(podLock)
		m.busy[id] = l
	}
	l.users++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		if l.users--; l.users == 0 {
			delete(m.busy, id)
		}
		m.mu.Unlock()
	}
}

func (m *Monitors) forget(id runtime.PodID, c *Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clients[id] == c {
		delete(m.clients, id)
	}
}

// OnLoss sets what hears of connections that ended.
func (m *Monitors) OnLoss(f func(id runtime.PodID)) { m.onLoss.Store(&f) }

// Connect finds a running monitor.
func (m *Monitors) Connect(ctx context.Context, id runtime.PodID, dir string) (lifecycle.Monitor, error) {
	defer m.lock(id)()
	c, err := m.connect(ctx, id, dir)
	if err != nil {
		return nil, err // not c: a nil *Client is no nil Monitor
	}
	return c, nil
}

func (m *Monitors) connect(ctx context.Context, id runtime.PodID, dir string) (*Client, error) {
	m.mu.Lock()
	c := m.clients[id]
	m.mu.Unlock()
	if c != nil && c.alive() {
		return c, nil
	}
	c, err := dial(ctx, dir)
	if err != nil && ctx.Err() != nil {
		// It may be there and busy: nobody is to clean up after it.
		return nil, fmt.Errorf("monitor of pod %s: no answer: %w", id, context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: monitor of pod %s: %w", runtime.ErrUnavailable, id, err)
	}
	c.onClose = func() {
		m.forget(id, c)
		if f := m.onLoss.Load(); f != nil {
			(*f)(id)
		}
	}
	m.mu.Lock()
	m.clients[id] = c
	m.mu.Unlock()
	go c.read()
	return c, nil
}

// Spawn starts a monitor, or finds the one that runs.
func (m *Monitors) Spawn(ctx context.Context, id runtime.PodID, dir, handler, cgroup string) (lifecycle.Monitor, int, uint64, error) {
	h, err := m.handler(handler)
	if err != nil {
		return nil, 0, 0, err
	}
	defer m.lock(id)()
	if c, err := m.connect(ctx, id, dir); err == nil {
		start, err := startTime(c.pid)
		return c, c.pid, start, err
	}
	pid, err := m.launch(dir, h, m.scope(id, cgroup))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("start a monitor for pod %s: %w", id, err)
	}
	start, err := startTime(pid)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%w: monitor of pod %s died: %w", runtime.ErrUnavailable, id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	c, err := m.connect(ctx, id, dir)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return nil, 0, 0, err
	}
	return c, pid, start, nil
}

// launch starts the process. Its socket listens before it runs, so that a
// client need not wait for it to appear.
// The words of scope, if any, come before the command.
func (m *Monitors) launch(dir string, h engine.Handler, scope []string) (pid int, err error) {
	if err := os.MkdirAll(filepath.Join(dir, proto.ExitDir), 0o700); err != nil {
		return 0, err
	}
	listener, err := listen(dir)
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	// Only a crash of the monitor writes here.
	errs, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer errs.Close()
	kind, path := "plain", h.Path
	files := []uintptr{null.Fd(), null.Fd(), errs.Fd(), listener.Fd()}
	switch {
	case h.Embedded:
		kind, path = "embedded", runtimeFD
		files = append(files, m.runtime.Fd())
	case h.VM:
		kind = "vm"
	}
	argv := append([]string{m.opts.MonitorPath, "run", dir, h.Name, path, h.Root, kind}, h.Args...)
	argv = append(scope, argv...)
	program := m.opts.MonitorPath
	if len(scope) > 0 {
		if program, err = exec.LookPath(scope[0]); err != nil {
			return 0, err
		}
	}
	pidfd := -1
	pid, err = syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOGC=25", "GOMAXPROCS=1", "GOTRACEBACK=single"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", program, err)
	}
	reap(pid, pidfd)
	return pid, nil
}

// scope is the command that makes a scope for a monitor and then becomes the
// monitor, in the same process; nothing where monitors stay with the daemon.
func (m *Monitors) scope(id runtime.PodID, cgroup string) []string {
	slice := m.opts.Cgroup
	switch slice {
	case "":
		return nil
	case "pod":
		slice = path.Base(cgroup)
	}
	return []string{
		"systemd-run", "--quiet", "--scope", "--collect", "--slice=" + slice,
		"--unit=ocid-monitor-" + string(id) + ".scope", "--",
	}
}

// reap waits for a monitor that this process is the parent of, at the cost of
// a goroutine rather than of a thread.
func reap(pid, pidfd int) {
	if pidfd < 0 {
		go func() { _, _ = syscall.Wait4(pid, nil, 0, nil) }()
		return
	}
	_ = syscall.SetNonblock(pidfd, true)
	f := os.NewFile(uintptr(pidfd), "pidfd")
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	go func() {
		defer f.Close()
		_ = rc.Read(func(uintptr) bool {
			got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			return got == pid || err == syscall.ECHILD
		})
	}()
}

// listen makes the monitor's socket, replacing one that nobody listens on.
func listen(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), socketName)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: address(d)}); err == nil {
		if err = os.Chmod(path, 0o600); err == nil {
			err = unix.Listen(fd, 128)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// address names the socket in d, whatever the length of d's own name.
func address(d *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + socketName
}

// startTime reads when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("malformed stat of process %d", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// seal copies the binary into memory that nobody can change any more.
func seal(path string) (*os.File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const mfdExec = 0x10 // Linux 6.3; older kernels make it executable anyway
	fd, err := unix.MemfdCreate("ocid-runtime", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("ocid-runtime", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	w := os.NewFile(uintptr(fd), "ocid-runtime")
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Chmod(0o511); err != nil {
		return nil, err
	}
	const sealExec = 0x20 // Linux 6.3
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealExec)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
		unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return nil, err
	}
	// A file that is open for writing cannot be executed.
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}

// Orphan cleans up after a monitor that died.
func (m *Monitors) Orphan(ctx context.Context, id runtime.PodID, dir, handler string, containers []lifecycle.OrphanContainer) (map[runtime.ContainerID]lifecycle.Exit, error) {
	h, err := m.handler(handler)
	if err != nil {
		return nil, err
	}
	defer m.lock(id)()
	exits := map[runtime.ContainerID]lifecycle.Exit{}
	var errs []error
	for _, c := range containers {
		e, err := proto.ReadExit(dir, string(c.ID))
		switch {
		case err == nil:
			exits[c.ID] = toExit(e)
		case !errors.Is(err, fs.ErrNotExist):
			m.opts.Log.WarnContext(ctx, "exit file is damaged", "pod", id, "container", c.ID, "error", err)
		}
		if err := m.clean(ctx, h, c); err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.ID, err))
		}
	}
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return exits, errors.Join(errs...)
}

// clean removes what is left of a container. A runtime that was killed with its
// monitor may have come a step further meanwhile, so that all of it is done
// again while the cgroup is in use.
func (m *Monitors) clean(ctx context.Context, h engine.Handler, c lifecycle.OrphanContainer) error {
	for end := time.Now().Add(killWait); ; {
		err := m.cleanOnce(ctx, h, c)
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

func (m *Monitors) cleanOnce(ctx context.Context, h engine.Handler, c lifecycle.OrphanContainer) error {
	if err := endRuntimes(h.Path, string(c.ID), killWait); err != nil {
		return err
	}
	if err := cgroup.Kill(c.CgroupPath, killWait); err != nil {
		return err
	}
	if h.Embedded {
		h.Path = "/proc/self/fd/" + strconv.Itoa(int(m.runtime.Fd()))
	}
	ctx, cancel := context.WithTimeout(ctx, deleteLimit)
	defer cancel()
	if err := run(ctx, h.Delete(string(c.ID))); err != nil {
		return err
	}
	return cgroup.Remove(c.CgroupPath, time.Second)
}

func toExit(e proto.Exit) lifecycle.Exit {
	return lifecycle.Exit{Code: int32(e.Code), FinishedAt: e.Time, OOMKilled: e.OOM}
}
