// Package streamclient opens the URLs of CRI's Exec, Attach and PortForward as
// the kubelet does: with SPDY, or with WebSocket. It is what tests and the
// benchmark use in place of a Kubernetes client.
package streamclient

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Want says which streams are opened; they must be those that the call named.
type Want struct {
	Stdin, Stdout, Stderr, TTY bool
	Config                     *tls.Config // nil: no TLS, or no check
}

// Result is how an exec or attach ended.
type Result struct {
	Code    int // valid with Failure ""
	Failure string
}

// Session is an exec or attach.
type Session struct {
	Raw    net.Conn // under everything: to cut it off
	Stdin  io.WriteCloser
	Stdout io.Reader
	Stderr io.Reader
	errs   io.Reader
	sizes  io.Writer
	conn   io.Closer
}

// dial opens the connection and upgrades it to SPDY.
func dial(address, protocol string, cfg *tls.Config) (httpstream.Connection, net.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	raw, err := net.DialTimeout("tcp", u.Host, 10*time.Second)
	if err != nil {
		return nil, nil, err
	}
	c := raw
	if u.Scheme == "https" {
		if cfg == nil {
			cfg = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the test's own server
		}
		c = tls.Client(raw, cfg)
	}
	conn, err := upgrade(c, u, protocol)
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return conn, raw, nil
}

func upgrade(c net.Conn, u *url.URL, protocol string) (httpstream.Connection, error) {
	req := &http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Header: http.Header{
		httpstream.HeaderConnection:      {httpstream.HeaderUpgrade},
		httpstream.HeaderUpgrade:         {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {protocol},
	}}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, req) //nolint:bodyclose // the connection is the stream from here on
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%s: %s", resp.Status, b)
	}
	if got := resp.Header.Get(httpstream.HeaderProtocolVersion); got != protocol {
		return nil, fmt.Errorf("the server chose %q", got)
	}
	return spdy.NewClientConnection(buffered{c, br})
}

// buffered is a connection some of whose bytes were read ahead.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// Open opens the streams of an exec or attach with SPDY.
func Open(address string, w Want) (*Session, error) {
	conn, raw, err := dial(address, remotecommand.StreamProtocolV4Name, w.Config)
	if err != nil {
		return nil, err
	}
	s := &Session{Raw: raw, conn: conn}
	for _, f := range []struct {
		kind string
		on   bool
		to   func(httpstream.Stream)
	}{
		{remotecommand.StreamTypeError, true, func(x httpstream.Stream) { s.errs = x }},
		{remotecommand.StreamTypeStdin, w.Stdin, func(x httpstream.Stream) { s.Stdin = x }},
		{remotecommand.StreamTypeStdout, w.Stdout, func(x httpstream.Stream) { s.Stdout = x }},
		{remotecommand.StreamTypeStderr, w.Stderr, func(x httpstream.Stream) { s.Stderr = x }},
		{remotecommand.StreamTypeResize, w.TTY, func(x httpstream.Stream) { s.sizes = x }},
	} {
		if !f.on {
			continue
		}
		x, err := conn.CreateStream(http.Header{remotecommand.StreamType: {f.kind}})
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("stream %s: %w", f.kind, err)
		}
		f.to(x)
	}
	return s, nil
}

// Resize sets the terminal's size.
func (s *Session) Resize(width, height uint16) error {
	return json.NewEncoder(s.sizes).Encode(remotecommand.TerminalSize{Width: width, Height: height})
}

// Close closes the connection.
func (s *Session) Close() error { return s.conn.Close() }

// Wait returns how it ended. Output must be read meanwhile.
func (s *Session) Wait() (Result, error) {
	b, err := io.ReadAll(s.errs)
	if err != nil {
		return Result{}, err
	}
	return parse(b)
}

func parse(b []byte) (Result, error) {
	if len(b) == 0 {
		return Result{}, io.ErrUnexpectedEOF
	}
	var st struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return Result{}, fmt.Errorf("%w: %q", err, b)
	}
	switch {
	case st.Status == "Success":
		return Result{}, nil
	case st.Reason == remotecommand.NonZeroExitCodeReason && len(st.Details.Causes) > 0:
		code, err := strconv.Atoi(st.Details.Causes[0].Message)
		return Result{Code: code}, err
	}
	return Result{Failure: st.Message}, nil
}

// Forward is a connection for port-forwards.
type Forward struct {
	Raw  net.Conn
	conn httpstream.Connection
	next atomic.Int64
}

// OpenForward opens a port-forward's URL.
func OpenForward(address string) (*Forward, error) {
	conn, raw, err := dial(address, portforward.ProtocolV1Name, nil)
	if err != nil {
		return nil, err
	}
	return &Forward{Raw: raw, conn: conn}, nil
}

// Dial connects to a port: data, and a stream that ends with "" or an error.
func (f *Forward) Dial(port int) (data httpstream.Stream, errs httpstream.Stream, err error) {
	h := http.Header{}
	h.Set(portforward.PortHeader, strconv.Itoa(port))
	h.Set(portforward.PortForwardRequestIDHeader, strconv.FormatInt(f.next.Add(1), 10))
	h.Set(portforward.StreamType, portforward.StreamTypeError)
	if errs, err = f.conn.CreateStream(h); err != nil {
		return nil, nil, err
	}
	// The client has nothing to say on it.
	if err := errs.Close(); err != nil {
		return nil, nil, err
	}
	h.Set(portforward.StreamType, portforward.StreamTypeData)
	data, err = f.conn.CreateStream(h)
	return data, errs, err
}

// Close closes the connection.
func (f *Forward) Close() error { return f.conn.Close() }
