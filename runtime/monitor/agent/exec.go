package agent

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// maxExecs bounds how many execs run at once; further ones wait their turn.
const maxExecs = 32

// session is one exec and its connection.
type session struct {
	a     *agent
	conn  *conn
	c     *container
	gone  chan struct{} // closed when the client has left
	stdin *os.File
	inEnd int
	outR  *os.File
	errR  *os.File
}

// exec runs a process in a container, its output going to the client as it
// comes. It returns when the client has been told the end, or has left.
func (a *agent) exec(cn *conn, m *proto.Msg) {
	id := m.ID
	code, err := a.tryExec(cn, m)
	if err != nil {
		cn.fail(id, err)
		return
	}
	cn.send(&proto.Msg{Type: proto.ExecDone, ID: id, Code: code})
}

func (a *agent) tryExec(cn *conn, m *proto.Msg) (int64, error) {
	c, err := a.find(m.Container)
	if err != nil {
		return 0, err
	}
	if c.hasExited() {
		return 0, &failure{kind: kindState, text: "the container has exited"}
	}
	s := &session{a: a, conn: cn, c: c, gone: make(chan struct{}), inEnd: -1}
	if m.Flags&proto.FlagStdin != 0 {
		if s.stdin, s.inEnd, err = pipe(false); err != nil {
			return 0, err
		}
		defer s.stdin.Close()
	}
	process := bytes.Clone(m.Data)
	drain := time.Duration(m.Time)
	go s.listen()
	select {
	case a.execs <- struct{}{}:
		defer func() { <-a.execs }()
	case <-s.gone:
		closeFDs(s.inEnd)
		return 0, &failure{text: "the client has left"}
	}
	p, err := s.begin(process)
	if err != nil {
		return 0, err
	}
	return s.follow(p, drain), nil
}

// listen takes the client's frames until it leaves.
func (s *session) listen() {
	defer close(s.gone)
	var buf []byte
	var m proto.Msg
	for {
		var err error
		if buf, err = proto.Read(s.conn, buf, &m); err != nil {
			return
		}
		if s.stdin == nil {
			continue
		}
		switch m.Type {
		case proto.Stdin:
			_, _ = s.stdin.Write(m.Data)
		case proto.StdinEOF:
			s.stdin.Close()
		}
	}
}

// begin runs the runtime's exec and returns the process it made.
func (s *session) begin(process []byte) (*child, error) {
	l := launch{c: s.c, process: process, in: s.a.null}
	if s.inEnd >= 0 {
		l.in = s.inEnd
		defer closeFDs(s.inEnd)
	}
	var err error
	if s.outR, l.out, err = pipe(true); err != nil {
		return nil, err
	}
	if s.errR, l.err, err = pipe(true); err != nil {
		closeFDs(l.out)
		s.outR.Close()
		return nil, err
	}
	p, err := s.a.launch(&l, s.errR)
	if err != nil {
		s.outR.Close()
		s.errR.Close()
		return nil, err
	}
	return p, nil
}

// launch is one run of the runtime's exec.
type launch struct {
	c       *container
	process []byte // as JSON
	in      int    // left open
	out     int    // closed with err once the process has them
	err     int
	console *stdio // not nil with a terminal
}

// launch makes the process. errR, if given, is where the runtime's words are
// found when that fails.
func (a *agent) launch(l *launch, errR *os.File) (*child, error) {
	n := itoa(int(a.serial.Add(1)))
	procFile, pidFile := a.dir+"/exec-"+n+".json", a.dir+"/exec-"+n+".pid"
	defer os.Remove(pidFile)
	defer os.Remove(procFile)
	args := engine.ExecArgs{ProcessFile: procFile, PIDFile: pidFile}
	err := os.WriteFile(procFile, l.process, 0o600)
	if err == nil && l.console != nil {
		err = a.listenConsole(l.console, "exec-"+n)
		args.ConsoleSocket = l.console.consoleAddr
	}
	if err != nil {
		a.closeAll(l.out, l.err)
		return nil, err
	}
	defer a.reaper.expect()()
	argv := a.handler.Exec(l.c.id, args)
	r, err := a.reaper.spawn(argv, a.attr(l.in, l.out, l.err))
	a.closeAll(l.out, l.err)
	if err == nil {
		err = a.await(r, argv, errR)
	}
	var p *child
	if err == nil {
		p, err = a.adoptFrom(pidFile)
	}
	if err != nil {
		return nil, errors2("exec", err)
	}
	return p, nil
}

// closeAll closes descriptors other than /dev/null.
func (a *agent) closeAll(fds ...int) {
	for _, fd := range fds {
		if fd != a.null {
			closeFDs(fd)
		}
	}
}

func (a *agent) adoptFrom(pidFile string) (*child, error) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || pid <= 1 {
		return nil, &failure{text: "bad pid file"}
	}
	return a.reaper.adopt(pid)
}

// follow streams p's output, and kills it when the client leaves.
func (s *session) follow(p *child, drain time.Duration) int64 {
	var wg sync.WaitGroup
	stream := func(f *os.File, t proto.Type) {
		wg.Go(func() {
			pump(f, func(data, out []byte) {
				// A write fails when the client has left; reading on lets the
				// process end in peace until it is killed.
				s.conn.sendData(t, data, out)
			})
		})
	}
	stream(s.outR, proto.Stdout)
	stream(s.errR, proto.Stderr)
	eof := make(chan struct{})
	go func() { wg.Wait(); close(eof) }()
	select {
	case <-p.done:
	case <-s.gone:
		s.a.reaper.kill(p, syscall.SIGKILL, true)
		<-p.done
	}
	t := time.NewTimer(drain)
	select {
	case <-eof:
	case <-s.gone:
	case <-t.C:
	}
	t.Stop()
	s.outR.Close()
	s.errR.Close()
	<-eof
	return p.code()
}
