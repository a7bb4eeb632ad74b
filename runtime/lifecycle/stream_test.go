package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// dialTo hands out one end of a connection and keeps the other.
type dialTo struct {
	netns chan string
	peer  chan *net.TCPConn
	err   error
}

func (d dialTo) Dial(_ context.Context, netns string, _ uint16) (net.Conn, error) {
	if d.err != nil {
		return nil, d.err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	p, err := l.Accept()
	if err != nil {
		return nil, err
	}
	d.netns <- netns
	d.peer <- p.(*net.TCPConn)
	return c, nil
}

// client is the other end of a stream.
type client struct {
	io.Reader
	io.Writer
	closed chan struct{}
}

func (c client) Close() error { close(c.closed); return nil }

func streamWorld(t *testing.T) (*world, *Manager, runtime.PodID, runtime.ContainerID) {
	t.Helper()
	w := newWorld(t)
	m := newManager(t, w)
	id, err := m.RunPod(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	cid, err := m.CreateContainer(t.Context(), id, containerConfig("c"))
	if err != nil {
		t.Fatal(err)
	}
	return w, m, id, cid
}

func TestExecStream(t *testing.T) {
	w, m, _, cid := streamWorld(t)
	if err := m.CanStream(t.Context(), cid); !errors.Is(err, runtime.ErrState) || !strings.Contains(err.Error(), "not running") {
		t.Errorf("before its start: %v", err)
	}
	if err := m.Attach(t.Context(), cid, runtime.Streams{}); !errors.Is(err, runtime.ErrState) {
		t.Errorf("before its start: %v", err)
	}
	if err := m.StartContainer(t.Context(), cid); err != nil {
		t.Fatal(err)
	}
	// The fake engine writes no bundle of its own.
	c, err := m.Container(string(cid))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.bundle(&c), "config.json"), []byte(`{"process":{"args":["main"],"cwd":"/"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code, err := m.Exec(t.Context(), cid, []string{"a", "b"}, runtime.Streams{Stdout: &out})
	if code != 7 || err != nil || out.String() != "a b" {
		t.Errorf("%d %v %q", code, err, out.String())
	}
	if _, err := m.Exec(t.Context(), cid, nil, runtime.Streams{}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("no command: %v", err)
	}
	if err := m.Attach(t.Context(), cid, runtime.Streams{}); err != nil || w.count("attach") != 1 {
		t.Errorf("%v", err)
	}
	w.set("can-stream", runtime.ErrUnavailable)
	if err := m.CanStream(t.Context(), cid); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("an older monitor: %v", err)
	}
	if err := m.CanStream(t.Context(), "nobody"); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("no container: %v", err)
	}
}

func TestPortForward(t *testing.T) {
	_, m, id, _ := streamWorld(t)
	d := dialTo{netns: make(chan string, 1), peer: make(chan *net.TCPConn, 1)}
	m.o.Dialer = d
	type end struct {
		c    client
		in   *io.PipeWriter
		out  *bytes.Buffer
		done chan error
	}
	forward := func() end {
		r, in := io.Pipe()
		var out bytes.Buffer
		e := end{client{r, &out, make(chan struct{})}, in, &out, make(chan error, 1)}
		go func() { e.done <- m.PortForward(t.Context(), id, 80, e.c) }()
		return e
	}
	e := forward()
	if ns := <-d.netns; ns != filepath.Join(m.nsDir(id), "net") {
		t.Errorf("namespace %s", ns)
	}
	peer := <-d.peer
	// The client has no more to say, and still hears.
	_, _ = io.WriteString(e.in, "question")
	e.in.Close()
	if b, err := io.ReadAll(peer); string(b) != "question" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	_, _ = io.WriteString(peer, "answer")
	peer.Close()
	if err := <-e.done; err != nil || e.out.String() != "answer" {
		t.Errorf("%v %q", err, e.out.String())
	}
	// The pod has no more to say, and still hears.
	e = forward()
	<-d.netns
	peer = <-d.peer
	if err := peer.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-e.c.closed
	_, _ = io.WriteString(e.in, "late")
	e.in.Close()
	if b, err := io.ReadAll(peer); string(b) != "late" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := <-e.done; err != nil {
		t.Error(err)
	}
	peer.Close()
	// Stopping the pod ends what is open and lets nothing more in.
	e = forward()
	<-d.netns
	peer = <-d.peer
	if err := m.StopPod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-e.done:
		if !errors.Is(err, errPodStopped) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream outlives its pod")
	}
	peer.Close()
	e.in.Close()
	if err := m.CanForward(id); !errors.Is(err, runtime.ErrState) {
		t.Errorf("%v", err)
	}
	if err := m.PortForward(t.Context(), id, 80, e.c); !errors.Is(err, runtime.ErrState) {
		t.Errorf("%v", err)
	}
	if n := len(m.forwards.of); n != 0 {
		t.Errorf("%d are remembered", n)
	}
}

func TestPortForwardRefused(t *testing.T) {
	_, m, id, _ := streamWorld(t)
	m.o.Dialer = dialTo{err: runtime.ErrUnavailable}
	err := m.PortForward(t.Context(), id, 80, client{closed: make(chan struct{})})
	if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "port 80") {
		t.Errorf("%v", err)
	}
}
