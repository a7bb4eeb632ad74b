// Package streaming serves the byte streams of CRI's Exec, Attach and
// PortForward: their calls hand out a URL, and the client opens it with SPDY or
// WebSocket. The protocols are those of k8s.io/cri-streaming.
//
// Invariants:
//   - a URL is a secret that works once and for a minute; there is no other
//     authentication, unless a client CA is configured, and the server listens
//     on loopback by default;
//   - a stream's context ends when its client is gone, even while the client's
//     own data is stuck: what runs for it is then ended. With so much of it
//     stuck that the sockets are full, the kernel takes two minutes to tell;
//   - a client that does not read blocks its own stream only, and cannot keep
//     one that has failed alive.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/ocid-io/ocid/runtime"
)

const (
	createTimeout = 30 * time.Second // for a client to open its streams
	headerTimeout = 10 * time.Second
	// lastWords is how long a client may take to accept why its stream failed.
	lastWords = 10 * time.Second
	// confirmTime is enough for the library to tell a client that its streams
	// are there.
	confirmTime = 100 * time.Millisecond
)

// Backend runs what the streams are for. A process that ended with a code
// other than 0 has not failed.
type Backend interface {
	Exec(ctx context.Context, id runtime.ContainerID, cmd []string, s runtime.Streams) (exitCode int32, err error)
	Attach(ctx context.Context, id runtime.ContainerID, s runtime.Streams) error
	PortForward(ctx context.Context, id runtime.PodID, port uint16, stream io.ReadWriteCloser) error
}

// Options is what a Server is made of. Backend is required.
type Options struct {
	Listen      string // host:port; "" is a free port of 127.0.0.1
	TLS         TLS    // the zero value serves without
	IdleTimeout time.Duration
	Backend     Backend
	Log         *slog.Logger
}

// Server serves streams and makes their URLs.
type Server struct {
	o      Options
	log    *slog.Logger
	l      net.Listener
	base   url.URL
	tokens tokens
}

// New listens; Serve serves.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s := &Server{o: o, log: o.Log, tokens: tokens{of: map[string]*request{}}}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s.base = url.URL{Scheme: "http", Host: reachable(l.Addr())}
	s.l = listener{l}
	if o.TLS != (TLS{}) {
		cfg, err := o.TLS.config(o.Log)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		s.base.Scheme = "https"
		s.l = tls.NewListener(s.l, cfg)
	}
	return s, nil
}

// reachable is where a client on this machine finds an address.
func reachable(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return a.String()
	}
	host := "127.0.0.1"
	if t.IP.To4() == nil {
		host = "::1"
	}
	return net.JoinHostPort(host, fmt.Sprint(t.Port))
}

// Base is the URL that all streams' begin with.
func (s *Server) Base() string { return s.base.String() }

// Serve serves until ctx is done; streams that are open then end.
func (s *Server) Serve(ctx context.Context) error {
	mux := http.NewServeMux()
	for path, h := range map[string]func(http.ResponseWriter, *http.Request, *request){
		"exec": s.exec, "attach": s.attach, "portforward": s.portForward,
	} {
		// SPDY clients ask with POST, WebSocket clients with GET.
		for _, method := range []string{"GET", "POST"} {
			mux.HandleFunc(method+" /"+path+"/{token}", func(w http.ResponseWriter, r *http.Request) {
				s.serve(w, r, path, h)
			})
		}
	}
	hs := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: connContext, ConnState: connState,
		// HTTP/2 has no upgrades.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog:     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { hs.Close() })
	defer stop()
	if err := hs.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}

// Close ends a server that was never served.
func (s *Server) Close() error { return s.l.Close() }

func (s *Server) serve(w http.ResponseWriter, r *http.Request, kind string, h func(http.ResponseWriter, *http.Request, *request)) {
	req := s.tokens.take(r.PathValue("token"), kind)
	if req == nil {
		http.Error(w, "no such stream: a URL works once and for a minute", http.StatusNotFound)
		return
	}
	c := connOf(r.Context())
	if c == nil {
		http.Error(w, "no connection", http.StatusInternalServerError)
		return
	}
	begin := time.Now()
	defer c.watch()()
	// The libraries leave a connection open when their set-up fails half-way.
	defer func() {
		if c.taken.Load() {
			c.Close()
		}
	}()
	h(w, r, req)
	s.log.Debug("stream ended", "kind", kind, "container", string(req.container), "pod", string(req.pod), "duration", time.Since(begin))
}

// adapter is one request's view of the backend, in the library's terms.
type adapter struct {
	s   *Server
	req *request
	ctx context.Context // ends with the client's connection
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, req *request) {
	a := adapter{s, req, r.Context()}
	if wsstream.IsWebSocketRequest(r) {
		s.webSocket(w, r, req, a.runExec)
		return
	}
	remotecommand.ServeExec(w, r, a, "", "", "", nil, req.options(), s.o.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, req *request) {
	a := adapter{s, req, r.Context()}
	if wsstream.IsWebSocketRequest(r) {
		s.webSocket(w, r, req, a.runAttach)
		return
	}
	remotecommand.ServeAttach(w, r, a, "", "", "", req.options(), s.o.IdleTimeout, createTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request, req *request) {
	portforward.ServePortForward(w, r, adapter{s, req, r.Context()}, "", "", &portforward.V4Options{Ports: req.ports},
		s.o.IdleTimeout, createTimeout, portforward.SupportedProtocols)
}

// finish gives a client that does not read a limit once its stream has failed.
func (a adapter) finish(err error) error {
	if err != nil && !isExit(err) {
		if c := connOf(a.ctx); c != nil {
			_ = c.SetWriteDeadline(time.Now().Add(lastWords))
		}
	}
	return err
}

func isExit(err error) bool {
	var exit utilexec.ExitError
	return errors.As(err, &exit)
}

func (a adapter) runExec(st runtime.Streams) error {
	code, err := a.s.o.Backend.Exec(a.ctx, a.req.container, a.req.cmd, st)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return a.finish(err)
}

func (a adapter) runAttach(st runtime.Streams) error {
	return a.finish(a.s.o.Backend.Attach(a.ctx, a.req.container, st))
}

// ExecInContainer implements remotecommand.Executor.
func (a adapter) ExecInContainer(_ context.Context, _, _, _ string, _ []string, in io.Reader, out, errw io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	st, stop := a.streams(in, out, errw, resize)
	defer stop()
	return a.runExec(st)
}

// AttachContainer implements remotecommand.Attacher.
func (a adapter) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, errw io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	st, stop := a.streams(in, out, errw, resize)
	defer stop()
	return a.runAttach(st)
}

// PortForward implements portforward.PortForwarder. The library's context has
// nothing to do with the client.
func (a adapter) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("%w: port %d", runtime.ErrInvalid, port)
	}
	begin := time.Now()
	err := a.s.o.Backend.PortForward(a.ctx, a.req.pod, uint16(port), stream) //nolint:contextcheck // see above
	if err == nil {
		return nil
	}
	// A failure resets the streams. The library confirms them to the client
	// only after it has begun this call, and says not when: a client that sees
	// the reset first never learns the reason.
	pause := time.NewTimer(time.Until(begin.Add(confirmTime)))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-a.ctx.Done():
		return nil // nobody is there to be told
	}
	return err
}

// streams keeps what the client asked for: an interface that holds a nil
// pointer, or a stream nobody announced, is none.
func (a adapter) streams(in io.Reader, out, errw io.Writer, resize <-chan remotecommand.TerminalSize) (st runtime.Streams, stop func()) {
	st.TTY = a.req.tty
	if a.req.stdin {
		st.Stdin = in
	}
	if a.req.stdout {
		st.Stdout = out
	}
	if a.req.stderr {
		st.Stderr = errw
	}
	if resize == nil {
		return st, func() {}
	}
	sizes, done := make(chan runtime.TerminalSize), make(chan struct{})
	go func() {
		defer close(sizes)
		for z := range resize {
			select {
			case sizes <- runtime.TerminalSize{Width: z.Width, Height: z.Height}:
			case <-done:
				return
			}
		}
	}()
	st.Resize = sizes
	return st, func() { close(done) }
}
