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
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// output is a client's stdout that a test can wait on.
type output struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // gets a value when something was written
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.more <- struct{}{}:
	default:
	}
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) await(t *testing.T, want string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !strings.Contains(o.String(), want) {
		select {
		case <-o.more:
		case <-limit:
			t.Fatalf("%q lacks %q", o.String(), want)
		}
	}
}

// stuck is a client that takes nothing until it is closed.
type stuck struct {
	once    sync.Once
	offered chan struct{} // closed when there was something to take
	closed  chan struct{}
}

func (s *stuck) Write([]byte) (int, error) {
	s.once.Do(func() { close(s.offered) })
	<-s.closed
	return 0, io.ErrClosedPipe
}

func (p *pod) execStream(ctx context.Context, id runtime.ContainerID, s runtime.Streams, args ...string) (int, error) {
	return p.m.ExecStream(ctx, id, specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}, s)
}

func TestExecStream(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sleep", "1000")
		var out, errs bytes.Buffer
		code, err := p.execStream(t.Context(), r.ID, runtime.Streams{Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs},
			"sh", "-c", "cat; echo err >&2; exit 7")
		if code != 7 || err != nil || out.String() != "in" || errs.String() != "err\n" {
			t.Errorf("%d %v %q %q", code, err, out.String(), errs.String())
		}
		out.Reset()
		if code, err := p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &out}, "sh", "-c", "cat; echo lost >&2; echo kept"); code != 0 || err != nil || out.String() != "kept\n" {
			t.Errorf("stdout alone: %d %v %q", code, err, out.String())
		}
		out.Reset()
		if code, err := p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &out}, "sh", "-c", "kill -9 $$"); code != 137 || err != nil {
			t.Errorf("killed: %d %v", code, err)
		}
		_, err = p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &out, Stderr: &errs}, "/no/such/program")
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("a missing program: %v", err)
		}
		_, err = p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &out, TTY: true}, "/no/such/program")
		if err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("a missing program with a terminal: %v", err)
		}
		if _, err := p.execStream(t.Context(), "nobody", runtime.Streams{Stdout: &out}, "true"); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("no container: %v", err)
		}
		// What is left behind with the pipe in its hands is not waited for.
		start := time.Now()
		code, err = p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &out}, "sh", "-c", "sleep 1000 & exit 4")
		if took := time.Since(start); code != 4 || err != nil || took > streamDrain+5*time.Second {
			t.Errorf("with a child: %d %v after %v", code, err, took)
		}
	})
}

func TestExecStreamTTY(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sleep", "1000")
		out, sizes := newOutput(), make(chan runtime.TerminalSize, 1)
		inR, inW := io.Pipe()
		type end struct {
			code int
			err  error
		}
		done := make(chan end, 1)
		go func() {
			code, err := p.execStream(t.Context(), r.ID, runtime.Streams{Stdin: inR, Stdout: out, TTY: true, Resize: sizes},
				"sh", "-c", "trap 'stty size' WINCH; test -t 0 && test -t 1 && test -t 2 && echo ready; while ! read x; do :; done; echo got:$x; exit 9")
			done <- end{code, err}
		}()
		out.await(t, "ready")
		sizes <- runtime.TerminalSize{} // means nothing
		sizes <- runtime.TerminalSize{Width: 123, Height: 45}
		out.await(t, "45 123")
		_, _ = io.WriteString(inW, "hello\n")
		out.await(t, "got:hello")
		e := <-done
		if e.code != 9 || e.err != nil {
			t.Errorf("%+v", e)
		}
		inW.Close()
	})
}

// TestExecStreamGone: a client that leaves takes its session with it, and what
// was set free on purpose stays.
func TestExecStreamGone(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		for _, tty := range []bool{false, true} {
			p := newPod(t, h)
			r := p.run("c1", nil, "sleep", "1000")
			before := len(cgroup.Processes(r.CgroupPath))
			ctx, cancel := context.WithCancel(t.Context())
			out := newOutput()
			done := make(chan error, 1)
			go func() {
				_, err := p.execStream(ctx, r.ID, runtime.Streams{Stdin: stuckReader{ctx}, Stdout: out, TTY: tty},
					"sh", "-c", "set -m; sleep 2000 & sleep 3000 & echo up; wait")
				done <- err
			}()
			out.await(t, "up")
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("tty %v: %v", tty, err)
			}
			await(t, func() bool { return len(cgroup.Processes(r.CgroupPath)) == before })
		}
	})
}

type stuckReader struct{ ctx context.Context }

func (s stuckReader) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, io.EOF
}

// TestExecStreamStuckInput: a process that reads nothing does not keep the end
// of its client from being noticed.
func TestExecStreamStuckInput(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	ctx, cancel := context.WithCancel(t.Context())
	out := newOutput()
	fed := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := p.execStream(ctx, r.ID, runtime.Streams{Stdin: &flood{after: 3 << 20, reached: fed}, Stdout: out}, "sh", "-c", "echo up; exec sleep 1000")
		done <- err
	}()
	out.await(t, "up")
	select {
	case <-fed:
		t.Error("somebody took 3 MiB that the process did not read")
	case <-time.After(300 * time.Millisecond): // nothing announces that a pipe is full
	}
	cancel()
	<-done
	await(t, func() bool { return len(cgroup.Processes(r.CgroupPath)) == 1 })
}

// flood is endless input.
type flood struct {
	n, after int
	reached  chan struct{}
}

func (f *flood) Read(p []byte) (int, error) {
	f.n += len(p)
	if f.n > f.after && f.reached != nil {
		close(f.reached)
		f.reached = nil
	}
	return len(p), nil
}

func TestExecStreamMuch(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	before := peak(t, p.pid)
	var n count
	start := time.Now()
	code, err := p.execStream(t.Context(), r.ID, runtime.Streams{Stdout: &n}, "busybox", "dd", "if=/dev/zero", "bs=1M", "count=1024")
	took := time.Since(start)
	if code != 0 || err != nil || n != 1<<30 {
		t.Errorf("%d %v, %d bytes", code, err, n)
	}
	after := peak(t, p.pid)
	t.Logf("%.0f MB/s; peak of the monitor %d KiB, was %d", float64(n)/1e6/took.Seconds(), after, before)
	if after > before+2048 {
		t.Errorf("the monitor grew from %d to %d KiB", before, after)
	}
}

type count int64

func (c *count) Write(p []byte) (int, error) {
	*c += count(len(p))
	return len(p), nil
}

// peak is the most memory that a process has had resident, in KiB.
func peak(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExecStreamSlots: sessions that stay open keep no other exec waiting.
func TestExecStreamSlots(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 34 { // more than run at once while they start
		out := newOutput()
		wg.Go(func() {
			_, _ = p.execStream(ctx, r.ID, runtime.Streams{Stdout: out}, "sh", "-c", "echo up; exec sleep 1000")
		})
		out.await(t, "up")
	}
	if _, code, err := p.exec(t.Context(), r.ID, time.Second, "true"); err != nil || code != 0 {
		t.Errorf("%d %v", code, err)
	}
	cancel()
	wg.Wait()
}

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", func(_ *specs.Spec, q *lifecycle.CreateRequest) { q.Stdin = true },
			"sh", "-c", "while read x; do echo out:$x; echo err:$x >&2; test $x = end && exit 3; done; echo eof")
		a, b, aErr := newOutput(), newOutput(), newOutput()
		aIn, aW := io.Pipe()
		bIn, bW := io.Pipe()
		ends := make(chan error, 2)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			ends <- p.m.Attach(ctx, r.ID, runtime.Streams{Stdin: aIn, Stdout: a, Stderr: aErr})
		}()
		_, _ = io.WriteString(aW, "one\n")
		a.await(t, "out:one\n")
		aErr.await(t, "err:one\n")
		go func() {
			ends <- p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdin: bIn, Stdout: b})
		}()
		_, _ = io.WriteString(bW, "two\n")
		a.await(t, "out:two\n")
		b.await(t, "out:two\n")
		// The first leaves, and the container goes on.
		leave()
		if err := <-ends; !errors.Is(err, context.Canceled) {
			t.Errorf("left: %v", err)
		}
		aW.Close()
		_, _ = io.WriteString(bW, "three\n")
		b.await(t, "out:three\n")
		_, _ = io.WriteString(bW, "end\n")
		if err := <-ends; err != nil {
			t.Errorf("ended: %v", err)
		}
		bW.Close()
		if got := b.String(); got != "out:two\nout:three\nout:end\n" {
			t.Errorf("%q", got)
		}
		if strings.Contains(a.String(), "three") {
			t.Error("who has left still gets output")
		}
		if e := p.wait(r.ID); e.Code != 3 {
			t.Errorf("%+v", e)
		}
		if err := p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdout: a}); !errors.Is(err, runtime.ErrState) {
			t.Errorf("after its exit: %v", err)
		}
		if got := len(entries(t, r.LogPath)); got != 8 {
			t.Errorf("the log has %d entries", got)
		}
	})
}

// TestAttachOnce: with StdinOnce the input ends with the first client's, for
// the others too.
func TestAttachOnce(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", func(_ *specs.Spec, q *lifecycle.CreateRequest) { q.Stdin, q.StdinOnce = true, true }, "cat")
	a, b := newOutput(), newOutput()
	bIn, bW := io.Pipe()
	defer bW.Close()
	ends := make(chan error, 1)
	go func() { ends <- p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdin: bIn, Stdout: b}) }()
	_, _ = io.WriteString(bW, "from b\n")
	b.await(t, "from b")
	if err := p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdin: strings.NewReader("from a"), Stdout: a}); err != nil {
		t.Error(err)
	}
	if err := <-ends; err != nil || a.String() != "from a" || b.String() != "from b\nfrom a" {
		t.Errorf("%v %q %q", err, a.String(), b.String())
	}
	if e := p.wait(r.ID); e.Code != 0 {
		t.Errorf("%+v", e)
	}
	// A client that vanishes ends the input as well.
	r = p.run("c2", func(_ *specs.Spec, q *lifecycle.CreateRequest) { q.Stdin, q.StdinOnce = true, true }, "sh", "-c", "cat; exit 5")
	ctx, leave := context.WithCancel(t.Context())
	c := newOutput()
	cIn, cW := io.Pipe()
	defer cW.Close()
	go func() { ends <- p.m.Attach(ctx, r.ID, runtime.Streams{Stdin: cIn, Stdout: c}) }()
	_, _ = io.WriteString(cW, "c\n")
	c.await(t, "c\n")
	leave()
	<-ends
	if e := p.wait(r.ID); e.Code != 5 {
		t.Errorf("%+v", e)
	}
	none := p.run("c3", nil, "sleep", "1000")
	err := p.m.Attach(t.Context(), none.ID, runtime.Streams{Stdin: strings.NewReader("x"), Stdout: a})
	if !errors.Is(err, runtime.ErrState) || !strings.Contains(err.Error(), "stdin") {
		t.Errorf("without a stdin: %v", err)
	}
}

func TestAttachTTY(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", func(s *specs.Spec, q *lifecycle.CreateRequest) { s.Process.Terminal, q.TTY, q.Stdin = true, true, true },
			"sh", "-c", "while read x; do stty size; echo got:$x; test $x = end && exit 6; done")
		out, sizes := newOutput(), make(chan runtime.TerminalSize)
		inR, inW := io.Pipe()
		defer inW.Close()
		done := make(chan error, 1)
		go func() {
			done <- p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdin: inR, Stdout: out, TTY: true, Resize: sizes})
		}()
		sizes <- runtime.TerminalSize{Width: 99, Height: 33}
		sizes <- runtime.TerminalSize{Width: 99, Height: 33} // the first is in force by now
		_, _ = io.WriteString(inW, "one\n")
		out.await(t, "33 99")
		out.await(t, "got:one")
		_, _ = io.WriteString(inW, "end\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if e := p.wait(r.ID); e.Code != 6 {
			t.Errorf("%+v", e)
		}
	})
}

// TestAttachStuck: a client that never reads holds up neither the container
// nor its log nor another client for long, and is told why it was detached.
func TestAttachStuck(t *testing.T) {
	for _, tty := range []bool{false, true} {
		p := newPod(t, "ocid")
		r := p.run("c1", func(s *specs.Spec, q *lifecycle.CreateRequest) {
			s.Process.Terminal, q.TTY, q.Stdin = tty, tty, true
		}, "sh", "-c", "while read x; do echo tick; test $x = go && break; done; seq 1 300000; echo the end")
		never, good := &stuck{offered: make(chan struct{}), closed: make(chan struct{})}, newOutput()
		stuckEnd, goodEnd := make(chan error, 1), make(chan error, 1)
		go func() {
			stuckEnd <- p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdout: never, TTY: tty})
		}()
		inR, inW := io.Pipe()
		go func() {
			goodEnd <- p.m.Attach(t.Context(), r.ID, runtime.Streams{Stdin: inR, Stdout: good, TTY: tty})
		}()
		await(t, func() bool {
			_, _ = io.WriteString(inW, "tick\n")
			select {
			case <-never.offered:
				return true
			default:
				return false
			}
		})
		_, _ = io.WriteString(inW, "go\n")
		if e := p.wait(r.ID); e.Code != 0 {
			t.Errorf("tty %v: %+v", tty, e)
		}
		if err := <-stuckEnd; err == nil || !strings.Contains(err.Error(), "did not read") {
			t.Errorf("tty %v: %v", tty, err)
		}
		if err := <-goodEnd; err != nil || !strings.Contains(good.String(), "the end") {
			t.Errorf("tty %v: the other client: %v, %d bytes", tty, err, len(good.String()))
		}
		close(never.closed)
		inW.Close()
		if n := len(entries(t, r.LogPath)); n < 300001 {
			t.Errorf("tty %v: the log has %d entries", tty, n)
		}
		if kib := peak(t, p.pid); kib > 16<<10 {
			t.Errorf("tty %v: the monitor took %d KiB", tty, kib)
		}
	}
}

// TestOlderMonitor speaks version 1, as the release before streams did.
func TestOlderMonitor(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var m proto.Msg
			if _, err := proto.Read(c, nil, &m); err != nil || m.Type != proto.Hello || m.Min > 1 {
				t.Errorf("%+v %v", m, err)
			}
			_, _ = c.Write(proto.Append(nil, &proto.Msg{Type: proto.HelloOK, Max: 1, PID: 1}))
		}
	}()
	c, err := dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close(errors.New("test"))
	_, execErr := c.ExecStream(t.Context(), "c", specs.Process{}, runtime.Streams{})
	for _, err := range []error{c.CanStream(), execErr, c.Attach(t.Context(), "c", runtime.Streams{})} {
		if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "older release") {
			t.Errorf("%v", err)
		}
	}
}

// TestOlderDaemon speaks version 1 to the monitor of today.
func TestOlderDaemon(t *testing.T) {
	p := newPod(t, "ocid")
	r := p.run("c1", nil, "sleep", "1000")
	dir, err := os.Open(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	conn, err := net.Dial("unix", address(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range []struct{ ask, want proto.Msg }{
		{proto.Msg{Type: proto.Hello, Min: 1, Max: 1}, proto.Msg{Type: proto.HelloOK, Max: 1}},
		{proto.Msg{Type: proto.State, ID: 2}, proto.Msg{Type: proto.OK}},
		{proto.Msg{Type: proto.Signal, ID: 3, Container: string(r.ID), Code: 9}, proto.Msg{Type: proto.OK}},
		{proto.Msg{Type: proto.Wait, ID: 4, Container: string(r.ID)}, proto.Msg{Type: proto.OK, Code: 137}},
	} {
		if _, err := conn.Write(proto.Append(nil, &c.ask)); err != nil {
			t.Fatal(err)
		}
		var m proto.Msg
		if _, err := proto.Read(conn, nil, &m); err != nil {
			t.Fatal(err)
		}
		if m.Type != c.want.Type || m.Max != c.want.Max || m.Code != c.want.Code || m.ID != c.ask.ID {
			t.Errorf("%+v, want %+v", m, c.want)
		}
	}
}

// TestExecStreamGoneTTYFirst: a client's terminal may close before its
// connection does. The session is there until the connection ends, and then
// goes as a whole.
func TestExecStreamGoneTTYFirst(t *testing.T) {
	each(t, func(t *testing.T, h string) {
		p := newPod(t, h)
		r := p.run("c1", nil, "sleep", "1000")
		before := len(cgroup.Processes(r.CgroupPath))
		c, ok := p.m.(*Client)
		if !ok {
			t.Fatalf("%T", p.m)
		}
		x, err := c.newSession(t.Context(), runtime.Streams{TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		b, err := json.Marshal(specs.Process{
			Args: []string{"sh", "-c", "set -m; sleep 2000 & sleep 3000 & echo up; wait"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		tty, err := x.begin(&proto.Msg{Type: proto.ExecFiles, ID: 1, Container: string(r.ID), Data: b, Flags: proto.FlagTTY})
		if err != nil {
			t.Fatal(err)
		}
		out := newOutput()
		read := make(chan struct{})
		go func() { _, _ = io.Copy(out, tty); close(read) }()
		out.await(t, "up")
		tty.Close()
		<-read
		_ = x.conn.SetReadDeadline(time.Now().Add(time.Second))
		if m, err := x.read(); err == nil {
			t.Errorf("the session ended with the terminal: %+v", m)
		}
		x.conn.Close()
		await(t, func() bool { return len(cgroup.Processes(r.CgroupPath)) == before })
	})
}
