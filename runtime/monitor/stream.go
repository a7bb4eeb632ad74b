package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

const (
	// streamDrain is how long output may pause, once the process has ended,
	// before what it left behind is no longer waited for.
	streamDrain = 2 * time.Second
	pipeSize    = 1 << 20
	firstBuffer = 8 << 10
	maxBuffer   = 256 << 10
)

// CanStream implements lifecycle.Monitor.
func (c *Client) CanStream() error {
	if c.version < proto.StreamsVersion {
		return fmt.Errorf("%w: the pod was started by an older release of ocid, whose monitor has no streams: ExecSync works, or start the pod anew", runtime.ErrUnavailable)
	}
	return nil
}

// session is one exec or attach. The files that carry its bytes are shared with
// the container's process itself or with its monitor; the connection only says
// how it begins and ends, and its own end is how the monitor learns of ours.
type session struct {
	conn  *net.UnixConn
	files []int // received, not yet taken
	s     runtime.Streams

	send       []*os.File // to be handed over, closed then
	flags      int64
	stdin      *os.File // where the client's input goes, nil without
	stdout     *os.File // where output comes from
	stderr     *os.File
	tty        *os.File // for its size
	draining   atomic.Bool
	copies     sync.WaitGroup
	failedOnce sync.Once
	failed     chan struct{} // closed when the client no longer takes output
	failure    error
}

func (c *Client) newSession(ctx context.Context, s runtime.Streams) (*session, error) {
	if err := c.CanStream(); err != nil {
		return nil, err
	}
	conn, _, err := open(ctx, c.dir)
	if err != nil {
		return nil, c.execError(ctx, err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("%w: no unix socket", runtime.ErrUnavailable)
	}
	return &session{conn: u, s: s, failed: make(chan struct{})}, nil
}

// ExecStream implements lifecycle.Monitor.
func (c *Client) ExecStream(ctx context.Context, id runtime.ContainerID, p specs.Process, s runtime.Streams) (int, error) {
	p.Terminal = s.TTY
	b, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	x, err := c.newSession(ctx, s)
	if err != nil {
		return 0, err
	}
	defer x.close()
	if s.TTY {
		x.flags = proto.FlagTTY
	} else if err := x.pipes(); err != nil {
		return 0, err
	}
	m := proto.Msg{Type: proto.ExecFiles, ID: 1, Container: string(id), Data: b, Flags: x.flags}
	defer context.AfterFunc(ctx, func() { x.conn.Close() })()
	f, err := x.begin(&m)
	if err != nil {
		return 0, c.sessionError(ctx, x, err)
	}
	if s.TTY {
		if f == nil {
			return 0, errors.New("the monitor sent no terminal")
		}
		x.stdin, x.stdout, x.tty = f, f, f
	}
	code, err := x.run()
	return code, c.sessionError(ctx, x, err)
}

// Attach implements lifecycle.Monitor.
func (c *Client) Attach(ctx context.Context, id runtime.ContainerID, s runtime.Streams) error {
	x, err := c.newSession(ctx, s)
	if err != nil {
		return err
	}
	defer x.close()
	if s.Stdin != nil {
		x.flags = proto.FlagStdin
	}
	if err := x.outputs(s.Stdout != nil, s.Stderr != nil); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { x.conn.Close() })()
	f, err := x.begin(&proto.Msg{Type: proto.Attach, ID: 1, Container: string(id), Flags: x.flags})
	if err != nil {
		return c.sessionError(ctx, x, err)
	}
	switch {
	case f == nil:
	case s.TTY:
		x.tty, x.stdin = f, f
	case s.Stdin != nil:
		x.stdin = f
	default:
		f.Close()
	}
	_, err = x.run()
	return c.sessionError(ctx, x, err)
}

// sessionError says why a session ended: its caller, the client, the monitor or
// the runtime. A connection that broke is the least of reasons.
func (c *Client) sessionError(ctx context.Context, x *session, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-x.failed:
		return x.failure
	default:
	}
	var lost *lostError
	if errors.As(err, &lost) {
		return unavailable(lost.err)
	}
	return err
}

// lostError is a connection that broke.
type lostError struct{ err error }

func (e *lostError) Error() string { return e.err.Error() }

// newPipe makes a pipe whose one end, ours, goes through the poller, while the
// other blocks, as programs expect of their files.
func newPipe(oursReads bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	o, t := p[0], p[1]
	if !oursReads {
		o, t = t, o
	}
	// A bigger one spares wake-ups; beyond a user's share the kernel says no.
	_, _ = unix.FcntlInt(uintptr(o), unix.F_SETPIPE_SZ, pipeSize)
	if err := unix.SetNonblock(o, true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(o), unix.Close(t))
	}
	return os.NewFile(uintptr(o), "stream"), os.NewFile(uintptr(t), "stream"), nil
}

// pipes makes the files of a process without a terminal. It has a stderr even
// if the client wants none: the runtime's words come that way.
func (x *session) pipes() error {
	if x.s.Stdin != nil {
		ours, theirs, err := newPipe(false)
		if err != nil {
			return err
		}
		x.stdin = ours
		x.send = append(x.send, theirs)
		x.flags |= proto.FlagStdin
	}
	return x.outputs(x.s.Stdout != nil, true)
}

func (x *session) outputs(out, errs bool) error {
	for _, f := range []struct {
		on   bool
		flag int64
		to   **os.File
	}{{out, proto.FlagStdout, &x.stdout}, {errs, proto.FlagStderr, &x.stderr}} {
		if !f.on {
			continue
		}
		ours, theirs, err := newPipe(true)
		if err != nil {
			return err
		}
		*f.to = ours
		x.send = append(x.send, theirs)
		x.flags |= f.flag
	}
	return nil
}

// begin sends the request with its files and returns the file that the answer
// came with, if any.
func (x *session) begin(m *proto.Msg) (*os.File, error) {
	var rights []byte
	if len(x.send) > 0 {
		fds := make([]int, 0, proto.MaxFiles)
		for _, f := range x.send {
			fds = append(fds, int(f.Fd())) // blocking, as it has to be
		}
		rights = unix.UnixRights(fds...)
	}
	b := proto.Append(nil, m)
	n, _, err := x.conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = x.conn.Write(b[n:])
	}
	x.closeSent()
	if err != nil {
		return nil, &lostError{err}
	}
	r, err := x.read()
	if err != nil {
		return nil, err
	}
	if r.Type != proto.Opened {
		return nil, x.refusal(&r)
	}
	if len(x.files) == 0 {
		return nil, nil
	}
	fd := x.files[0]
	x.files = x.files[1:]
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "container"), nil
}

// refusal is the monitor's error, with what the runtime said.
func (x *session) refusal(r *proto.Msg) error {
	err := answerError(r)
	if err == nil {
		return fmt.Errorf("the monitor answered with message type %d", r.Type)
	}
	if r.Code != int64(proto.KindOther) || x.stderr == nil {
		return err
	}
	_ = x.stderr.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	words, _ := io.ReadAll(io.LimitReader(x.stderr, 4096))
	if words = bytes.TrimSpace(words); len(words) > 0 {
		return fmt.Errorf("%w: %s", err, words)
	}
	return err
}

// read returns the next frame; descriptors that come along are kept.
func (x *session) read() (proto.Msg, error) {
	var m proto.Msg
	if _, err := proto.Read(x, nil, &m); err != nil {
		return m, &lostError{err}
	}
	return m, nil
}

// Read implements io.Reader for proto.Read.
func (x *session) Read(b []byte) (int, error) {
	var oob [64]byte
	n, oobn, _, _, err := x.conn.ReadMsgUnix(b, oob[:])
	if oobn > 0 {
		msgs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range msgs {
			fds, ferr := unix.ParseUnixRights(&msgs[i])
			x.files = append(x.files, fds...)
			perr = errors.Join(perr, ferr)
		}
		err = errors.Join(err, perr)
	}
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

// run copies until the process, or the container, has ended and its output is
// with the client.
func (x *session) run() (int, error) {
	x.output(x.stdout, x.s.Stdout)
	x.output(x.stderr, x.s.Stderr)
	go x.input()
	if x.tty != nil && x.s.Resize != nil {
		go x.resize()
	}
	m, err := x.await()
	if err != nil {
		return 0, err
	}
	// The process is gone. Output goes on as long as it comes without a pause:
	// what is in the pipe is not cut off because the client is slow.
	x.draining.Store(true)
	for _, f := range []*os.File{x.stdout, x.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(streamDrain))
		}
	}
	x.copies.Wait()
	select {
	case <-x.failed:
		return 0, x.failure
	default:
	}
	return int(m.Code), nil
}

// await returns the frame that ends the session.
func (x *session) await() (proto.Msg, error) {
	for {
		m, err := x.read()
		if err != nil {
			return m, err
		}
		switch m.Type {
		case proto.ExecDone:
			return m, nil
		case proto.Error:
			return m, answerError(&m)
		case proto.StdinEOF:
			if x.stdin != nil && x.stdin != x.tty {
				x.stdin.Close()
			}
		}
	}
}

// output copies from the process to the client, or to nowhere if the client
// does not want it.
func (x *session) output(f *os.File, w io.Writer) {
	if f == nil {
		return
	}
	if w == nil {
		w = io.Discard
	}
	x.copies.Go(func() {
		if err := x.copyOut(w, f); err != nil {
			x.failedOnce.Do(func() {
				x.failure = fmt.Errorf("write output: %w", err)
				close(x.failed)
				x.conn.Close()
			})
		}
	})
}

// copyOut returns an error of w only: a read that fails is the end, be it
// that of the pipe, a terminal that was hung up, or the time to drain.
func (x *session) copyOut(w io.Writer, f *os.File) error {
	buf := make([]byte, firstBuffer)
	for {
		if x.draining.Load() {
			_ = f.SetReadDeadline(time.Now().Add(streamDrain))
		}
		n, end := f.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if end != nil {
			return nil //nolint:nilerr // see above
		}
		if n == len(buf) && n < maxBuffer {
			buf = make([]byte, min(8*n, maxBuffer))
		}
	}
}

// input copies from the client to the process. It ends with the client's
// stream, which outlives the session for a moment.
func (x *session) input() {
	if x.stdin == nil || x.s.Stdin == nil {
		return
	}
	_, err := io.CopyBuffer(onlyWriter{x.stdin}, onlyReader{x.s.Stdin}, make([]byte, 64<<10))
	if x.stdin == x.tty {
		return
	}
	x.stdin.Close()
	x.tell(proto.StdinEOF)
	if err != nil {
		// The process takes no more; what the client still sends must not
		// hold up the connection that its other streams share.
		_, _ = io.Copy(io.Discard, x.s.Stdin)
	}
}

// onlyReader and onlyWriter hide the short cuts of io.Copy.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func (x *session) tell(t proto.Type) {
	_, _ = x.conn.Write(proto.Append(nil, &proto.Msg{Type: t}))
}

func (x *session) resize() {
	rc, err := x.tty.SyscallConn()
	if err != nil {
		return
	}
	for size := range x.s.Resize {
		if size.Width == 0 || size.Height == 0 {
			continue
		}
		err := rc.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		})
		if err != nil {
			return // the session has ended
		}
	}
}

func (x *session) closeSent() {
	for _, f := range x.send {
		f.Close()
	}
	x.send = nil
}

// close ends the session; the monitor kills what is left of an exec. It does
// not wait for a copy that a client, which does not read, holds up.
func (x *session) close() {
	x.conn.Close()
	x.closeSent()
	for _, f := range []*os.File{x.stdin, x.stdout, x.stderr, x.tty} {
		if f != nil {
			f.Close()
		}
	}
	for _, fd := range x.files {
		_ = unix.Close(fd)
	}
}
