package streaming

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watchEvery is how often a connection is looked at whose data is stuck.
	watchEvery = 2 * time.Second
	// linger is how long a closed connection still takes what the client sends:
	// closed with something unread, it would be reset, and its last answer lost.
	linger = time.Second
)

// errGone is the cause of a context whose client has left.
var errGone = errors.New("the client has closed the connection")

// listener makes connections that know when their client is gone.
type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// conn ends a context with itself. The HTTP server lets go of a connection that
// a protocol has taken over, and no longer says that the client has left.
type conn struct {
	net.Conn
	cancel context.CancelCauseFunc // set before the first read
	taken  atomic.Bool             // by a protocol: it is no longer the HTTP server's
	once   sync.Once
}

type connKey struct{}

// under is the connection beneath TLS, if that is used.
func under(c net.Conn) *conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	t, _ := c.(*conn)
	return t
}

func connState(c net.Conn, state http.ConnState) {
	if t := under(c); t != nil && state == http.StateHijacked {
		t.taken.Store(true)
	}
}

func connContext(ctx context.Context, c net.Conn) context.Context {
	t := under(c)
	if t == nil {
		return ctx
	}
	ctx, t.cancel = context.WithCancelCause(ctx)
	// The server closes only the connections that nobody has taken over.
	context.AfterFunc(ctx, func() { t.Close() })
	return context.WithValue(ctx, connKey{}, t)
}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && c.cancel != nil {
		c.cancel(errGone)
	}
	return n, err
}

// Close ends the context and closes the connection, in the background. It is
// safe to call twice.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.cancel != nil {
			c.cancel(errGone)
		}
		w, ok := c.Conn.(interface{ CloseWrite() error })
		if !ok || w.CloseWrite() != nil {
			_ = c.Conn.Close()
			return
		}
		go func() {
			_ = c.SetReadDeadline(time.Now().Add(linger))
			_, _ = io.Copy(io.Discard, c.Conn)
			_ = c.Conn.Close()
		}()
	})
	return nil
}

// watch looks after a connection while nobody may be reading it, until the
// returned function is called.
func (c *conn) watch() (stop func()) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return func() {}
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(watchEvery)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			if hungUp(rc) && c.cancel != nil {
				c.cancel(errGone)
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

func hungUp(rc syscall.RawConn) bool {
	up := false
	err := rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		up = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return up || err != nil
}
