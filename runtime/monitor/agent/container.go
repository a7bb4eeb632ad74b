package agent

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

const (
	// patience bounds one run of the OCI runtime, and the death of a process
	// that was sent SIGKILL.
	patience = 2 * time.Minute
	killWait = 10 * time.Second
	// settle is how long the end of output is awaited before an exit is told:
	// a grandchild may keep the pipe open for ever.
	settle = 500 * time.Millisecond
)

// container is one container of the pod. Its fields up to made are set before
// made is closed and never change; mu guards the rest.
type container struct {
	id     string
	bundle string
	cgroup string
	hooks  bool // has poststop hooks, which only the runtime can run
	log    *logFile
	tty    *os.File // master of its terminal, nil without one
	outs   []*os.File
	once   bool // stdin ends with the first client that was attached to it
	copies [2]sinks
	proc   *child
	err    error
	made   chan struct{} // closed when create ended
	filed  chan struct{} // closed when the exit file is written
	ended  chan struct{} // closed when exit may be told
	oom    *cgroup.OOMWatch
	eof    sync.WaitGroup

	mu       sync.Mutex
	started  bool
	starting chan struct{} // not nil while start runs
	exit     proto.Exit    // valid when ended is closed
	deleting bool
	stdin    *os.File // our end of the pipe; nil without one, and once closed
	attached map[*attachment]bool
}

func validID(id string) bool {
	if id == "" || len(id) > 255 || id[0] == '.' || id[0] == '-' {
		return false
	}
	for i := range len(id) {
		c := id[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-' || c == '+'
		if !ok {
			return false
		}
	}
	return true
}

// create makes a container, or joins the making of it.
func (a *agent) create(m *proto.Msg) (*container, error) {
	if !validID(m.Container) {
		return nil, &failure{kind: kindInvalid, text: "bad container id"}
	}
	a.mu.Lock()
	if a.closing {
		a.mu.Unlock()
		return nil, &failure{kind: kindState, text: "the monitor is shutting down"}
	}
	c := a.containers[m.Container]
	if c == nil {
		c = &container{
			id: m.Container, bundle: m.Bundle, cgroup: m.Cgroup,
			made: make(chan struct{}), filed: make(chan struct{}), ended: make(chan struct{}),
		}
		a.containers[c.id] = c
		go a.make(c, *m)
	}
	a.mu.Unlock()
	<-c.made
	return c, c.err
}

// make creates c and, when that fails, leaves nothing of it, so that the same
// id can be tried again.
func (a *agent) make(c *container, m proto.Msg) {
	done := a.reaper.expect()
	err := a.tryMake(c, &m)
	done()
	if err != nil {
		c.err = err
		a.mu.Lock()
		delete(a.containers, c.id)
		a.mu.Unlock()
	}
	close(c.made)
}

func (a *agent) tryMake(c *container, m *proto.Msg) (err error) {
	if c.log, err = newLog(m.LogPath); err != nil {
		return err
	}
	cfg, err := os.ReadFile(c.bundle + "/config.json")
	if err != nil {
		c.log.close()
		return &failure{kind: kindInvalid, text: err.Error()}
	}
	c.hooks = bytes.Contains(cfg, []byte(`"poststop"`))
	_ = proto.RemoveExit(a.dir, c.id)
	pidFile := a.dir + "/" + c.id + ".pid"
	defer os.Remove(pidFile)
	io, err := a.stdio(c, m.Flags)
	if err == nil {
		err = a.runCreate(c, io, pidFile, m)
		io.close()
	}
	if err != nil {
		c.closeFiles()
		a.scrub(c)
		return err
	}
	c.started = m.Type == proto.Restore
	a.watch(c, io)
	return nil
}

// stdio are the files of a container's first process.
type stdio struct {
	in, out, err  int // the process's ends
	outR, errR    *os.File
	console       int // listening socket, -1 without a terminal
	consoleAddr   string
	consoleDir    int
	consoleRemove string
}

func (s *stdio) close() {
	closeFDs(s.out, s.err)
	if s.in > 2 {
		closeFDs(s.in)
	}
	closeFDs(s.console, s.consoleDir)
	if s.consoleRemove != "" {
		_ = os.Remove(s.consoleRemove)
	}
}

func (a *agent) stdio(c *container, flags int64) (*stdio, error) {
	s := &stdio{in: -1, out: -1, err: -1, console: -1, consoleDir: -1}
	var err error
	if s.errR, s.err, err = pipe(true); err != nil {
		return nil, err
	}
	c.outs = append(c.outs, s.errR)
	if flags&proto.FlagTTY != 0 {
		if err := a.listenConsole(s, c.id); err != nil {
			s.close()
			return nil, err
		}
		return s, nil
	}
	if s.outR, s.out, err = pipe(true); err != nil {
		s.close()
		return nil, err
	}
	c.outs = append(c.outs, s.outR)
	if flags&proto.FlagStdin != 0 {
		if c.stdin, s.in, err = pipe(false); err != nil {
			s.close()
			return nil, err
		}
		c.once = flags&proto.FlagStdinOnce != 0
	}
	return s, nil
}

func (a *agent) runCreate(c *container, io *stdio, pidFile string, m *proto.Msg) error {
	argv := a.handler.Create(c.id, engine.CreateArgs{Bundle: c.bundle, PIDFile: pidFile, ConsoleSocket: io.consoleAddr})
	limit := patience
	in, out := a.null, a.null
	if io.in >= 0 {
		in = io.in
	}
	if io.out >= 0 {
		out = io.out
	}
	attr := a.attr(in, out, io.err)
	if m.Type == proto.Restore {
		argv, limit = a.restoration(c, io, pidFile, m, attr)
	}
	p, err := a.reaper.spawn(argv, attr)
	if err != nil {
		return err
	}
	closeFDs(io.err)
	io.err = -1
	if err := a.awaitFor(p, argv, io.errR, limit); err != nil {
		return errors2("create", err)
	}
	c.oom = cgroup.WatchOOM(c.cgroup)
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return errors2("create", err)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 {
		return &failure{text: "create: bad pid file"}
	}
	if c.proc, err = a.reaper.adopt(pid); err != nil {
		return err
	}
	if io.console >= 0 {
		master, err := receiveConsole(io.console)
		if err != nil {
			a.reaper.kill(c.proc, syscall.SIGKILL, false)
			return errors2("console", err)
		}
		io.outR = master
		c.outs = append(c.outs, master)
		c.tty = master
	}
	return nil
}

// watch logs the container's output and tells its end.
func (a *agent) watch(c *container, io *stdio) {
	if io.outR != nil {
		c.eof.Go(func() { (&stream{log: c.log, name: "stdout", copies: &c.copies[0]}).capture(io.outR) })
	}
	c.eof.Go(func() { (&stream{log: c.log, name: "stderr", copies: &c.copies[1]}).capture(io.errR) })
	go func() {
		<-c.proc.done
		e := proto.Exit{Code: c.proc.code(), Time: time.Now().UnixNano()}
		e.OOM = cgroup.OOMKilled(c.cgroup) || c.oom.Seen(e.Code == 128+int64(syscall.SIGKILL))
		c.oom.Close()
		_ = proto.WriteExit(a.dir, c.id, e)
		close(c.filed)
		eof := make(chan struct{})
		go func() { c.eof.Wait(); close(eof) }()
		t := time.NewTimer(settle)
		select {
		case <-eof:
		case <-t.C:
		}
		t.Stop()
		c.exit = e
		close(c.ended)
	}()
}

func (c *container) closeFiles() {
	for _, f := range c.outs {
		f.Close()
	}
	c.closeStdin()
	c.oom.Close()
	c.log.close()
}

// scrub removes whatever a failed create, or a deleted container, left.
func (a *agent) scrub(c *container) {
	if c.proc != nil {
		a.reaper.kill(c.proc, syscall.SIGKILL, false)
	}
	if cgroup.Exists(c.cgroup) {
		_ = cgroup.Kill(c.cgroup, killWait)
	}
	_ = a.runtime(a.handler.Delete(c.id), nil)
	_ = cgroup.Remove(c.cgroup, killWait)
}

// find returns a container that was made.
func (a *agent) find(id string) (*container, error) {
	a.mu.Lock()
	c := a.containers[id]
	a.mu.Unlock()
	if c == nil {
		return nil, &failure{kind: kindNotFound, text: "the monitor holds no container " + id}
	}
	<-c.made
	return c, c.err
}

// hasExited reports whether the first process is gone.
func (c *container) hasExited() bool {
	select {
	case <-c.proc.done:
		return true
	default:
		return false
	}
}

// start lets the first process run. Idempotent.
func (a *agent) start(c *container) error {
	c.mu.Lock()
	for c.starting != nil {
		ch := c.starting
		c.mu.Unlock()
		<-ch
		c.mu.Lock()
	}
	if c.started {
		c.mu.Unlock()
		return nil
	}
	if c.hasExited() {
		c.mu.Unlock()
		return &failure{kind: kindState, text: "the container has exited before it was started"}
	}
	ch := make(chan struct{})
	c.starting = ch
	c.mu.Unlock()
	var err error
	if a.handler.Embedded {
		err = a.openGate(c)
	} else {
		err = a.runtime(a.handler.Start(c.id), nil)
	}
	c.mu.Lock()
	c.started = err == nil
	c.starting = nil
	c.mu.Unlock()
	close(ch)
	if err != nil {
		return errors2("start", err)
	}
	return nil
}

// openGate does what the embedded runtime's start does, without a process: the
// waiting process opens a FIFO, writes a byte and executes the program.
func (a *agent) openGate(c *container) error {
	path := a.handler.Root + "/" + c.id + "/exec.fifo"
	// Read and write, so that the open does not wait for the other side.
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Before the process is watched: else it undoes what its end has set.
	_ = f.SetReadDeadline(time.Now().Add(patience))
	told := make(chan struct{})
	defer close(told)
	go func() {
		select {
		case <-c.proc.done:
			_ = f.SetReadDeadline(time.Now())
		case <-told:
		}
	}()
	var b [1]byte
	if _, err := f.Read(b[:]); err != nil && !waiting(f) {
		if c.hasExited() {
			return &failure{kind: kindState, text: "the container's process ended before it could run"}
		}
		return err
	}
	return os.Remove(path)
}

// waiting tells whether the byte is there all the same: a program that is over
// at once ends the wait for it, and a deadline that has passed wins over data.
func waiting(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _ = syscall.Read(int(fd), b[:]) // does not wait: see the open
	})
	return n == 1
}

func (a *agent) signal(c *container, sig syscall.Signal, all bool) error {
	switch {
	case a.handler.VM:
		if c.hasExited() {
			return nil
		}
		return a.runtime(a.handler.Kill(c.id, itoa(int(sig)), all), nil)
	case all:
		cgroup.Signal(c.cgroup, sig)
	}
	if !all || c.cgroup == "" {
		// Gone already is as good as signalled.
		a.reaper.kill(c.proc, sig, false)
	}
	return nil
}

// remove kills, deletes and forgets a container. Idempotent.
func (a *agent) remove(id string) error {
	c, err := a.find(id)
	if err != nil {
		var f *failure
		if errors.As(err, &f) && f.kind == kindNotFound {
			return proto.RemoveExit(a.dir, id)
		}
		return err
	}
	c.mu.Lock()
	if c.deleting {
		c.mu.Unlock()
		return &failure{kind: kindState, text: "the container is being deleted"}
	}
	c.deleting = true
	c.mu.Unlock()
	if err := a.destroy(c); err != nil {
		c.mu.Lock()
		c.deleting = false
		c.mu.Unlock()
		return errors2("delete", err)
	}
	c.closeFiles()
	a.mu.Lock()
	delete(a.containers, id)
	a.mu.Unlock()
	return proto.RemoveExit(a.dir, id)
}

func (a *agent) destroy(c *container) error {
	if !c.hasExited() {
		a.reaper.kill(c.proc, syscall.SIGKILL, false)
		t := time.NewTimer(killWait)
		defer t.Stop()
		select {
		case <-c.proc.done:
		case <-t.C:
			return &failure{kind: kindTimeout, text: "process " + itoa(c.proc.pid) + " does not end"}
		}
	}
	<-c.filed // it reads the cgroup
	if err := cgroup.Kill(c.cgroup, killWait); err != nil {
		return err
	}
	if a.handler.Embedded && !c.hooks {
		if err := cgroup.Remove(c.cgroup, killWait); err != nil {
			return err
		}
		return os.RemoveAll(a.handler.Root + "/" + c.id)
	}
	if err := a.runtime(a.handler.Delete(c.id), nil); err != nil {
		return err
	}
	return cgroup.Remove(c.cgroup, killWait)
}

func (a *agent) status(c *container) proto.Msg {
	m := proto.Msg{Container: c.id, PID: int64(c.proc.pid)}
	c.mu.Lock()
	if c.started {
		m.Flags |= proto.FlagStarted
	}
	c.mu.Unlock()
	select {
	case <-c.ended:
		setExit(&m, c.exit)
	default:
	}
	return m
}

func setExit(m *proto.Msg, e proto.Exit) {
	m.Flags |= proto.FlagExited
	m.Code, m.Time = e.Code, e.Time
	if e.OOM {
		m.Flags |= proto.FlagOOM
	}
}
