package agent

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
)

// child is a process that this one is, or will be, the parent of.
type child struct {
	pid    int
	done   chan struct{} // closed when it was reaped
	status syscall.WaitStatus
}

// code is the exit code as a shell tells it. Valid when done is closed.
func (c *child) code() int64 {
	if c.status.Signaled() {
		return 128 + int64(c.status.Signal())
	}
	return int64(c.status.ExitStatus())
}

// reaper is the only one that waits for children. A pid in live has not been
// reaped, so a signal sent with mu held cannot hit a stranger.
type reaper struct {
	mu   sync.Mutex
	live map[int]*child
	// lost holds the end of children nobody has asked for yet, while adopters
	// says that somebody may: the first process of a container can end before
	// the runtime that made it has told its pid.
	lost     map[int]syscall.WaitStatus
	adopters int
}

func newReaper() *reaper {
	return &reaper{live: map[int]*child{}, lost: map[int]syscall.WaitStatus{}}
}

// run reaps for ever. Handled signals are reset in children by exec, while
// ignored ones would stay ignored there: so SIGTERM is caught and dropped.
func (r *reaper) run() {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	go func() {
		for s := range ch {
			if s == syscall.SIGCHLD {
				r.reap()
			}
		}
	}()
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.live[pid]; c != nil {
			c.status = ws
			delete(r.live, pid)
			close(c.done)
		} else if r.adopters > 0 {
			r.lost[pid] = ws
		}
	}
}

// spawn starts a process.
func (r *reaper) spawn(argv []string, attr *syscall.ProcAttr) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if attr.Sys == nil {
		attr.Sys = &syscall.SysProcAttr{}
	}
	// What a monitor has begun ends with it: a runtime that went on by itself
	// would make what the clean-up has just removed. No thread of the monitor
	// ends before the monitor does, as none is ever locked to a goroutine.
	attr.Sys.Pdeathsig = syscall.SIGKILL
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return nil, errors2("run "+argv[0], err)
	}
	c := &child{pid: pid, done: make(chan struct{})}
	r.live[pid] = c
	return c, nil
}

// expect announces an adoption; what ends from now on is kept. The caller
// must call the returned function when it has adopted, or will not.
func (r *reaper) expect() (done func()) {
	r.mu.Lock()
	r.adopters++
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		if r.adopters--; r.adopters == 0 {
			clear(r.lost)
		}
		r.mu.Unlock()
	}
}

// adopt takes over a process that was reparented to this one.
func (r *reaper) adopt(pid int) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &child{pid: pid, done: make(chan struct{})}
	if ws, ok := r.lost[pid]; ok {
		delete(r.lost, pid)
		c.status = ws
		close(c.done)
		return c, nil
	}
	if stat(pid, statParent) != os.Getpid() {
		return nil, &failure{text: "process " + strconv.Itoa(pid) + " is not a child of the monitor"}
	}
	r.live[pid] = c
	return c, nil
}

// kill signals c, and its process group if group is set. False if it is gone.
func (r *reaper) kill(c *child, sig syscall.Signal, group bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[c.pid] != c {
		return false
	}
	if group {
		_ = syscall.Kill(-c.pid, sig)
	}
	_ = syscall.Kill(c.pid, sig)
	return true
}

// killSession kills c, the leader of a session, and those of pids that are in
// that session. As c is not reaped meanwhile, its number is nobody else's.
func (r *reaper) killSession(c *child, pids []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[c.pid] != c {
		return
	}
	for _, pid := range pids {
		if pid != c.pid && stat(pid, statSession) == c.pid {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = syscall.Kill(-c.pid, syscall.SIGKILL)
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
}

// killSession kills what an exec left in its session, then the exec itself.
func (a *agent) killSession(c *container, p *child) {
	a.reaper.killSession(p, cgroup.Processes(c.cgroup))
}

// Fields of /proc/PID/stat, counted from the one after the command.
const (
	statParent  = 1
	statSession = 3
)

// stat reads a number of a process's status, 0 if it is gone.
func stat(pid, field int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The command, in parentheses, may hold anything.
	i := bytes.LastIndexByte(b, ')') + 1
	f := bytes.Fields(b[i:])
	if len(f) <= field {
		return 0
	}
	n, _ := strconv.Atoi(string(f[field]))
	return n
}
