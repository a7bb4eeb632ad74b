package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// conn is one client's connection. One goroutine reads.
type conn struct {
	f     *os.File
	rc    syscall.RawConn
	files []int         // descriptors that came with what was read
	gone  chan struct{} // closed when nobody reads from it any more
	mu    sync.Mutex    // orders frames
}

func newConn(f *os.File) (*conn, error) {
	rc, err := f.SyscallConn()
	return &conn{f: f, rc: rc, gone: make(chan struct{})}, err
}

// Read implements io.Reader and keeps the descriptors that come along.
func (c *conn) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	var oob [64]byte
	var oobn int
	var rerr error
	err = c.rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, rerr = syscall.Recvmsg(int(fd), b, oob[:], syscall.MSG_CMSG_CLOEXEC)
			if rerr != syscall.EINTR {
				return rerr != syscall.EAGAIN
			}
		}
	})
	if err == nil {
		err = rerr
	}
	if err != nil {
		return 0, err
	}
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *conn) keep(oob []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if len(c.files) < proto.MaxFiles {
				c.files = append(c.files, fd)
			} else {
				closeFDs(fd)
			}
		}
	}
}

// sendFile sends a frame with a descriptor, or without one if file is nil.
func (c *conn) sendFile(m *proto.Msg, file *os.File) error {
	if file == nil {
		c.send(m)
		return nil
	}
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	m.Flags |= proto.FlagFile
	b := proto.Append(make([]byte, 0, 64), m)
	c.mu.Lock()
	defer c.mu.Unlock()
	var serr error
	err = rc.Control(func(fd uintptr) {
		werr := c.rc.Write(func(s uintptr) bool {
			// A few bytes on a socket that nothing waits in go as a whole.
			for {
				serr = syscall.Sendmsg(int(s), b, syscall.UnixRights(int(fd)), nil, 0)
				if !errors.Is(serr, syscall.EINTR) {
					return !errors.Is(serr, syscall.EAGAIN)
				}
			}
		})
		if serr == nil {
			serr = werr
		}
	})
	if err != nil {
		return err
	}
	return serr
}

func (c *conn) send(m *proto.Msg) {
	b := proto.Append(make([]byte, 0, 128), m)
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.f.SetWriteDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.f.Write(b); err != nil {
		// A client that does not read is as good as gone, and half a frame
		// leaves nothing to go on with.
		c.f.Close()
	}
}

// sendData sends output. There is no deadline: a slow client slows the process.
func (c *conn) sendData(t proto.Type, data, scratch []byte) {
	b := proto.Append(scratch[:0], &proto.Msg{Type: t, Data: data})
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.f.SetWriteDeadline(time.Time{})
	_, _ = c.f.Write(b)
}

func (c *conn) fail(id uint32, err error) {
	m := proto.Msg{Type: proto.Error, ID: id, Text: err.Error()}
	var f *failure
	if errors.As(err, &f) {
		m.Code = int64(f.kind)
	}
	c.send(&m)
}

// accept serves connections until the listener is closed.
func (a *agent) accept() error {
	rc, err := a.listener.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var fd int
		var aerr error
		err := rc.Read(func(l uintptr) bool {
			fd, _, aerr = syscall.Accept4(int(l), syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
			return aerr != syscall.EAGAIN
		})
		if err != nil {
			return err
		}
		if aerr != nil {
			// Out of files, or a client that left at once.
			if aerr != syscall.EINTR && aerr != syscall.ECONNABORTED {
				time.Sleep(10 * time.Millisecond)
			}
			continue
		}
		cn, err := newConn(os.NewFile(uintptr(fd), "client"))
		if err != nil {
			return err
		}
		go a.serve(cn)
	}
}

// serve answers one client: a Hello, then requests.
func (a *agent) serve(cn *conn) {
	defer cn.f.Close()
	defer close(cn.gone)
	defer func() { closeFDs(cn.files...) }()
	var buf []byte
	var m proto.Msg
	buf, err := proto.Read(cn, buf, &m)
	if err != nil || m.Type != proto.Hello {
		return
	}
	v := proto.Negotiate(m.Min, m.Max)
	if v == 0 {
		cn.fail(m.ID, &failure{kind: kindInvalid, text: "no common protocol version; the monitor speaks " + itoa(proto.MinVersion) + " to " + itoa(proto.MaxVersion)})
		return
	}
	cn.send(&proto.Msg{Type: proto.HelloOK, ID: m.ID, Max: v, PID: int64(os.Getpid())})
	for {
		if buf, err = proto.Read(cn, buf, &m); err != nil {
			return
		}
		switch m.Type {
		case proto.Exec:
			a.exec(cn, &m)
			return
		case proto.ExecFiles:
			a.execFiles(cn, &m)
			return
		case proto.Attach:
			a.attach(cn, &m)
			return
		case proto.Checkpoint:
			a.checkpoint(cn, m)
			return
		case proto.Wait:
			go a.wait(cn, m.ID, m.Container)
		default:
			m := m
			m.Data = append([]byte(nil), m.Data...) // buf is reused
			go a.answer(cn, &m)
		}
	}
}

func (a *agent) wait(cn *conn, id uint32, container string) {
	c, err := a.find(container)
	if err != nil {
		cn.fail(id, err)
		return
	}
	select {
	case <-c.ended:
	case <-cn.gone: // the daemon has restarted, and asks anew
		return
	}
	r := proto.Msg{Type: proto.OK, ID: id}
	setExit(&r, c.exit)
	cn.send(&r)
}

func (a *agent) answer(cn *conn, m *proto.Msg) {
	r := proto.Msg{Type: proto.OK, ID: m.ID}
	if err := a.do(m, &r); err != nil {
		cn.fail(m.ID, err)
		return
	}
	cn.send(&r)
	if m.Type == proto.Shutdown {
		a.exit()
	}
}

func (a *agent) do(m, r *proto.Msg) error {
	switch m.Type {
	case proto.Create, proto.Restore:
		c, err := a.create(m)
		if err == nil {
			r.PID = int64(c.proc.pid)
		}
		return err
	case proto.Delete:
		return a.remove(m.Container)
	case proto.State:
		r.Items = a.state()
		return nil
	case proto.PIDNS:
		pid, err := a.pidNamespace()
		r.PID = int64(pid)
		return err
	case proto.PodNS:
		attr, err := podNamespaces(m)
		if err != nil {
			return err
		}
		pid, err := a.hold(attr)
		r.PID = int64(pid)
		return err
	case proto.Shutdown:
		return a.shutdown()
	}
	c, err := a.find(m.Container)
	if err != nil {
		return err
	}
	switch m.Type {
	case proto.Start:
		return a.start(c)
	case proto.Signal:
		if m.Code < 0 || m.Code > 64 {
			return &failure{kind: kindInvalid, text: "bad signal number"}
		}
		return a.signal(c, syscall.Signal(m.Code), m.Flags&proto.FlagAll != 0)
	case proto.Reopen:
		return c.log.reopen()
	case proto.Update:
		return a.runtime(a.handler.Update(c.id), m.Data)
	}
	return &failure{kind: kindInvalid, text: "the monitor does not know request type " + itoa(int(m.Type))}
}
