package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/websocket"
)

// Channels of v5.channel.k8s.io, one byte before each message.
const (
	chanStdin  = 0
	chanStdout = 1
	chanStderr = 2
	chanError  = 3
	chanResize = 4
	chanClose  = 255
)

// Session is one exec or attach.
type Session struct {
	ws *websocket.Conn

	mu          sync.Mutex
	stdout, err bytes.Buffer
	changed     chan struct{} // closed and replaced at each output
	done        chan struct{}
	code        int
	failure     error
}

// StreamOptions of an exec or attach.
type StreamOptions struct {
	Stdin, TTY bool
	Command    []string
}

// Stream opens an exec, or an attach if there is no command, through the kubelet.
func (n *Node) Stream(ctx context.Context, pod, container string, o StreamOptions) (*Session, error) {
	kind, q := "attach", url.Values{"output": {"1"}}
	if len(o.Command) > 0 {
		kind, q["command"] = "exec", o.Command
	}
	if o.Stdin {
		q.Set("input", "1")
	}
	if o.TTY {
		q.Set("tty", "1")
	} else {
		q.Set("error", "1")
	}
	ws, err := n.dial(ctx, fmt.Sprintf("/%s/default/%s/%s?%s", kind, n.Static(pod), container, q.Encode()), "v5.channel.k8s.io")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	s := &Session{ws: ws, code: -1, changed: make(chan struct{}), done: make(chan struct{})}
	go s.read()
	return s, nil
}

func (n *Node) dial(ctx context.Context, path, protocol string) (*websocket.Conn, error) {
	c, err := websocket.NewConfig("wss"+strings.TrimPrefix(n.url(path), "https"), n.url("/"))
	if err != nil {
		return nil, err
	}
	c.Protocol, c.TlsConfig = []string{protocol}, insecure()
	ws, err := c.DialContext(ctx)
	if err != nil {
		// The answer says why, and the library keeps it to itself.
		if _, why := n.Get(ctx, path); why != nil {
			err = fmt.Errorf("%w (without an upgrade: %w)", err, why)
		}
		return nil, err
	}
	ws.PayloadType = websocket.BinaryFrame
	ws.MaxPayloadBytes = 64 << 20
	return ws, nil
}

func (s *Session) read() {
	defer close(s.done)
	for {
		var m []byte
		if err := websocket.Message.Receive(s.ws, &m); err != nil {
			s.mu.Lock()
			if s.failure == nil && s.code < 0 {
				s.failure = fmt.Errorf("the stream ended without a status: %w", err)
			}
			s.mu.Unlock()
			return
		}
		if len(m) < 2 {
			continue
		}
		s.mu.Lock()
		switch m[0] {
		case chanStdout:
			s.stdout.Write(m[1:])
		case chanStderr:
			s.err.Write(m[1:])
		case chanError:
			s.code, s.failure = status(m[1:])
			s.mu.Unlock()
			return
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}

// status understands the object that ends a stream.
func status(b []byte) (int, error) {
	var st struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return -1, fmt.Errorf("%q is no status: %w", b, err)
	}
	if st.Status == "Success" {
		return 0, nil
	}
	for _, c := range st.Details.Causes {
		if st.Reason == "NonZeroExitCode" && c.Reason == "ExitCode" {
			return strconv.Atoi(c.Message)
		}
	}
	return -1, errors.New(st.Message)
}

func (s *Session) send(channel byte, b []byte) error {
	return websocket.Message.Send(s.ws, append([]byte{channel}, b...))
}

// Write sends to the standard input.
func (s *Session) Write(b []byte) (int, error) { return len(b), s.send(chanStdin, b) }

// CloseStdin ends the standard input and nothing else.
func (s *Session) CloseStdin() error { return s.send(chanClose, []byte{chanStdin}) }

// Resize tells the terminal's size.
func (s *Session) Resize(width, height int) error {
	return s.send(chanResize, fmt.Appendf(nil, `{"Width":%d,"Height":%d}`, width, height))
}

// Close hangs up.
func (s *Session) Close() error { return s.ws.Close() }

// AwaitOutput waits until the standard output holds a text.
func (s *Session) AwaitOutput(ctx context.Context, text string) error {
	for {
		s.mu.Lock()
		got, changed := s.stdout.String(), s.changed
		s.mu.Unlock()
		if strings.Contains(got, text) {
			return nil
		}
		select {
		case <-changed:
		case <-s.done:
			return fmt.Errorf("the stream ended at %q, before %q", got, text)
		case <-ctx.Done():
			return fmt.Errorf("output %q, awaiting %q: %w", got, text, ctx.Err())
		}
	}
}

// Wait waits for the end and gives all output and the exit code.
func (s *Session) Wait(ctx context.Context) (stdout, stderr string, code int, err error) {
	select {
	case <-s.done:
	case <-ctx.Done():
		return "", "", -1, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stdout.String(), s.err.String(), s.code, s.failure
}

// Forward opens one connection to a port of a pod through the kubelet.
func (n *Node) Forward(ctx context.Context, pod string, port uint16) (io.ReadWriteCloser, error) {
	ws, err := n.dial(ctx, fmt.Sprintf("/portForward/default/%s?port=%d", n.Static(pod), port), "v4.channel.k8s.io")
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	return &forward{ws: ws, port: port}, nil
}

// forward carries channel 0 for data and 1 for errors; each begins with the port.
type forward struct {
	ws   *websocket.Conn
	port uint16
	seen [2]bool
	rest []byte
}

func (f *forward) Read(b []byte) (int, error) {
	for len(f.rest) == 0 {
		var m []byte
		if err := websocket.Message.Receive(f.ws, &m); err != nil {
			return 0, err
		}
		if len(m) == 0 || m[0] > 1 {
			return 0, fmt.Errorf("unexpected message %q", m)
		}
		c, m := m[0], m[1:]
		if !f.seen[c] {
			if len(m) != 2 || binary.LittleEndian.Uint16(m) != f.port {
				return 0, fmt.Errorf("channel %d begins with %v, not the port", c, m)
			}
			f.seen[c] = true
			continue
		}
		if c == 1 && len(m) > 0 {
			return 0, errors.New(string(m))
		}
		f.rest = m
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *forward) Write(b []byte) (int, error) {
	return len(b), websocket.Message.Send(f.ws, append([]byte{0}, b...))
}

func (f *forward) Close() error { return f.ws.Close() }
