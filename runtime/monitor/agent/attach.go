package agent

import (
	"bytes"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

const (
	// firstStall is how long a client that does not read may hold a container
	// up; it earns a fiftieth of its time in addition.
	firstStall = 500 * time.Millisecond
	earn       = 50
	// ttyStall is how long a terminal's client may take nothing at all: output
	// to a terminal is paced by whoever looks at it.
	ttyStall = time.Second
)

// sink is one stream of an attached client: the end of a pipe, which is also
// the buffer that lets the client lag behind.
type sink struct {
	f     *os.File
	rc    syscall.RawConn
	tty   bool
	since time.Time
	spent time.Duration // how long it held the container up
	slow  func()        // called once when it held it up for too long
}

func newSink(fd int, tty bool, slow func()) (*sink, error) {
	_ = syscall.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "attached")
	rc, err := f.SyscallConn()
	return &sink{f: f, rc: rc, tty: tty, since: time.Now(), slow: slow}, err
}

// write reports whether the client goes on. One goroutine writes.
func (k *sink) write(b []byte) bool {
	var n int
	var werr error
	err := k.rc.Control(func(fd uintptr) {
		for {
			if n, werr = syscall.Write(int(fd), b); werr != syscall.EINTR {
				return
			}
		}
	})
	switch {
	case err != nil || werr != nil && werr != syscall.EAGAIN:
		return false // it has left
	case n == len(b):
		return true
	}
	return k.wait(b[max(n, 0):])
}

func (k *sink) wait(b []byte) bool {
	for {
		limit := ttyStall
		if !k.tty {
			limit = firstStall + time.Since(k.since)/earn - k.spent
		}
		start := time.Now()
		_ = k.f.SetWriteDeadline(start.Add(max(limit, 0)))
		n, err := k.f.Write(b)
		k.spent += time.Since(start)
		switch {
		case err == nil:
			return true
		case !os.IsTimeout(err):
			return false
		case k.tty && n > 0:
			b = b[n:]
		default:
			k.slow()
			return false
		}
	}
}

// sinks are the clients of one stream of a container.
type sinks struct {
	mu  sync.Mutex
	all []*sink // replaced, never changed
}

func (s *sinks) list() []*sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

func (s *sinks) write(b []byte) {
	for _, k := range s.list() {
		if !k.write(b) {
			s.remove(k)
		}
	}
}

func (s *sinks) add(k *sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(append([]*sink(nil), s.all...), k)
}

// remove ends a client's stream. Idempotent.
func (s *sinks) remove(k *sink) {
	s.mu.Lock()
	var rest []*sink
	for _, o := range s.all {
		if o != k {
			rest = append(rest, o)
		}
	}
	s.all = rest
	s.mu.Unlock()
	k.f.Close()
}

// attachment is one client attached to a container.
type attachment struct {
	c       *container
	conn    *conn
	input   bool // it feeds the container's stdin
	sinks   [2]*sink
	gone    chan struct{} // closed when the client has left
	slow    chan struct{} // closed when it held the container up for too long
	slowOne sync.Once
}

// attach couples a client with a container until either ends.
func (a *agent) attach(cn *conn, m *proto.Msg) {
	id := m.ID
	code, err := a.tryAttach(cn, m)
	if err != nil {
		cn.fail(id, err)
		return
	}
	cn.send(&proto.Msg{Type: proto.ExecDone, ID: id, Code: code})
}

func (a *agent) tryAttach(cn *conn, m *proto.Msg) (int64, error) {
	c, err := a.find(m.Container)
	if err != nil {
		return 0, err
	}
	if c.hasExited() {
		return 0, &failure{kind: kindState, text: "the container has exited"}
	}
	t := &attachment{c: c, conn: cn, gone: make(chan struct{}), slow: make(chan struct{})}
	t.input = m.Flags&proto.FlagStdin != 0
	defer t.leave()
	if err := t.join(m); err != nil {
		return 0, err
	}
	go t.listen()
	select {
	case <-c.ended:
		return c.exit.Code, nil
	case <-t.gone:
		return 0, &failure{text: "the client has left"}
	case <-t.slow:
		return 0, &failure{text: "detached: the client did not read the container's output fast enough; the log has all of it"}
	}
}

// join hands the container's input over and makes its output come.
func (t *attachment) join(m *proto.Msg) error {
	c, files := t.c, t.conn.files
	c.mu.Lock()
	in := c.tty
	if in == nil && t.input {
		in = c.stdin
	}
	if t.input && in == nil {
		c.mu.Unlock()
		return &failure{kind: kindState, text: "the container has no stdin, or no longer"}
	}
	if c.attached == nil {
		c.attached = map[*attachment]bool{}
	}
	c.attached[t] = true
	// With mu held, so that it is not closed meanwhile.
	err := t.conn.sendFile(&proto.Msg{Type: proto.Opened, ID: m.ID}, in)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	for i, flag := range [...]int64{proto.FlagStdout, proto.FlagStderr} {
		if m.Flags&flag == 0 {
			continue
		}
		if len(files) == 0 {
			return &failure{kind: kindInvalid, text: "attach: a descriptor is missing"}
		}
		k, err := newSink(files[0], c.tty != nil, func() { t.slowOne.Do(func() { close(t.slow) }) })
		files = files[1:]
		t.conn.files = files
		if err != nil {
			return err
		}
		t.sinks[i] = k
		c.copies[i].add(k)
	}
	return nil
}

// listen takes the client's frames until it leaves.
func (t *attachment) listen() {
	defer close(t.gone)
	var buf []byte
	var m proto.Msg
	for {
		var err error
		if buf, err = proto.Read(t.conn.f, buf, &m); err != nil {
			return
		}
		if m.Type == proto.StdinEOF && t.input && t.c.once {
			t.c.closeStdin()
		}
	}
}

func (t *attachment) leave() {
	c := t.c
	c.mu.Lock()
	delete(c.attached, t)
	c.mu.Unlock()
	for i, k := range t.sinks {
		if k != nil {
			c.copies[i].remove(k)
		}
	}
	if t.input && c.once {
		c.closeStdin()
	}
}

// closeStdin closes the container's input and tells all who hold it to do the
// same. A terminal stays as it is. Idempotent.
func (c *container) closeStdin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin == nil {
		return
	}
	c.stdin.Close()
	c.stdin = nil
	for t := range c.attached {
		if t.input {
			go t.conn.send(&proto.Msg{Type: proto.StdinEOF})
		}
	}
}

// execFiles runs a process in a container whose files are the client's own, so
// that nothing is copied here.
func (a *agent) execFiles(cn *conn, m *proto.Msg) {
	id := m.ID
	code, err := a.tryExecFiles(cn, m)
	if err != nil {
		cn.fail(id, err)
		return
	}
	cn.send(&proto.Msg{Type: proto.ExecDone, ID: id, Code: code})
}

func (a *agent) tryExecFiles(cn *conn, m *proto.Msg) (int64, error) {
	c, err := a.find(m.Container)
	if err != nil {
		return 0, err
	}
	if c.hasExited() {
		return 0, &failure{kind: kindState, text: "the container has exited"}
	}
	id, process := m.ID, bytes.Clone(m.Data)
	files := cn.files
	cn.files = nil
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var b [256]byte
		for {
			if _, err := cn.f.Read(b[:]); err != nil {
				return
			}
		}
	}()
	// The turn is for the runtime's work only: a session may last for days.
	select {
	case a.execs <- struct{}{}:
	case <-gone:
		closeFDs(files...)
		return 0, &failure{text: "the client has left"}
	}
	p, tty, err := a.beginFiles(c, m.Flags, process, files)
	<-a.execs
	if err != nil {
		return 0, err
	}
	err = cn.sendFile(&proto.Msg{Type: proto.Opened, ID: id}, tty)
	if tty != nil {
		// Open until the session is over: else a client that leaves hangs the
		// terminal up, the first process dies of that, and the rest of the
		// session, which is found through it, would stay.
		defer tty.Close()
	}
	if err != nil {
		cn.f.Close() // the client cannot follow: as if it had left
	}
	select {
	case <-p.done:
	case <-gone:
		a.killSession(c, p)
		<-p.done
	}
	return p.code(), nil
}

// beginFiles makes the process and returns its terminal, if it has one.
func (a *agent) beginFiles(c *container, flags int64, process []byte, files []int) (*child, *os.File, error) {
	l := launch{c: c, process: process, in: a.null, out: a.null, err: a.null}
	if flags&proto.FlagTTY != 0 {
		closeFDs(files...)
		return a.beginTTY(&l)
	}
	for _, f := range [...]struct {
		flag int64
		to   *int
	}{{proto.FlagStdin, &l.in}, {proto.FlagStdout, &l.out}, {proto.FlagStderr, &l.err}} {
		if flags&f.flag == 0 {
			continue
		}
		if len(files) == 0 {
			a.closeAll(l.in, l.out, l.err)
			return nil, nil, &failure{kind: kindInvalid, text: "exec: a descriptor is missing"}
		}
		*f.to, files = files[0], files[1:]
	}
	closeFDs(files...)
	defer a.closeAll(l.in)
	p, err := a.launch(&l, nil)
	return p, nil, err
}

func (a *agent) beginTTY(l *launch) (*child, *os.File, error) {
	errR, errW, err := pipe(true)
	if err != nil {
		return nil, nil, err
	}
	defer errR.Close()
	l.err = errW
	l.console = &stdio{in: -1, out: -1, err: -1, console: -1, consoleDir: -1}
	defer l.console.close()
	p, err := a.launch(l, errR)
	if err != nil {
		return nil, nil, err
	}
	tty, err := receiveConsole(l.console.console)
	if err != nil {
		a.reaper.kill(p, syscall.SIGKILL, true)
		return nil, nil, errors2("console", err)
	}
	return p, tty, nil
}
