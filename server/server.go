// Package server is the gRPC face of the daemon: it owns the life of the gRPC
// server, its interceptors, its listening socket and the table that turns the
// errors of the layers below into gRPC statuses. The CRI services themselves
// are in runtimesvc and imagesvc.
//
// Invariants:
//   - a panic in a call ends that call with Internal and is logged with its
//     stack; the daemon goes on;
//   - no message larger than MaxMessage is read or sent;
//   - an error that leaves the server always has a gRPC status;
//   - the socket is never taken from a daemon that still serves it.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/internal/stages"
)

// MaxMessage is the largest message that is read or sent, the same as the
// kubelet's own limit.
const MaxMessage = 16 << 20

// stopTime bounds how long calls in flight may go on once the server stops.
const stopTime = 10 * time.Second

// Options is what a Server is made of. Only Listeners is required.
type Options struct {
	Listeners []net.Listener
	Log       *slog.Logger
	Stages    *stages.Recorder // nil records nothing
	StopTime  time.Duration    // for calls in flight at a stop; 0 is ten seconds
	// OnReload is called for each signal on Reload, one at a time.
	Reload   <-chan os.Signal
	OnReload func()
}

// Server is a gRPC server. It implements grpc.ServiceRegistrar: register all
// services before Serve.
type Server struct {
	*grpc.Server
	o Options
}

// New returns a Server that does not listen yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.StopTime == 0 {
		o.StopTime = stopTime
	}
	s := &Server{o: o}
	s.Server = grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: 5 * time.Second, PermitWithoutStream: true,
		}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	return s
}

// Serve serves all listeners until ctx is done, then stops gracefully: no new
// calls, those in flight may end within StopTime. It tells systemd when it is
// ready and when it stops. Call it once.
func (s *Server) Serve(ctx context.Context) error {
	if len(s.o.Listeners) == 0 {
		return errors.New("no listener to serve on")
	}
	failed := make(chan error, len(s.o.Listeners))
	var wg sync.WaitGroup
	for _, l := range s.o.Listeners {
		wg.Go(func() {
			if err := s.Server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
		})
	}
	s.notify(daemon.SdNotifyReady)
	var err error
	for serving := true; serving; {
		select {
		case <-ctx.Done():
			serving = false
		case err = <-failed:
			serving = false
		case <-s.o.Reload:
			s.reload()
		}
	}
	s.notify(daemon.SdNotifyStopping)
	s.stop()
	wg.Wait()
	return err
}

func (s *Server) stop() {
	force := time.AfterFunc(s.o.StopTime, func() {
		s.o.Log.Warn("calls still run after the stop time; cutting them off", "time", s.o.StopTime)
		s.Stop()
	})
	defer force.Stop()
	s.GracefulStop()
}

// reload reads the configuration anew between the two notices that systemd's
// Type=notify-reload waits for.
func (s *Server) reload() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		s.o.Log.Warn("cannot read the clock", "error", err)
	}
	s.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
	if s.o.OnReload != nil {
		s.o.OnReload()
	}
	s.notify(daemon.SdNotifyReady)
}

func (s *Server) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.o.Log.Warn("cannot notify systemd", "state", state, "error", err)
	}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
	name := method(info.FullMethod)
	var about []stages.Attr
	if !quiet(name) {
		about = subject(req)
	}
	ctx, end := s.o.Stages.Begin(ctx, name, about...)
	begin := time.Now()
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(name, p)
		}
		end(err)
		if err != nil && about == nil {
			about = subject(req)
		} else if err == nil && !quiet(name) {
			about = append(about, subject(resp)...)
		}
		s.log(ctx, name, time.Since(begin), about, err)
	}()
	resp, err = h(ctx, req)
	return resp, Status(err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	name := method(info.FullMethod)
	ctx, end := s.o.Stages.Begin(ss.Context(), name)
	begin := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(name, p)
		}
		end(err)
		s.log(ctx, name, time.Since(begin), nil, err)
	}()
	return Status(h(srv, &stream{ss, ctx}))
}

// stream carries the call's stages in its context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *stream) Context() context.Context { return s.ctx }

func (s *Server) panicked(name string, p any) error {
	s.o.Log.Error("a call panicked", "method", name, "panic", p, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s: internal error: %v", name, p)
}

func (s *Server) log(ctx context.Context, name string, d time.Duration, about []stages.Attr, err error) {
	level := slog.LevelInfo
	if quiet(name) {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{slog.String("method", name), slog.Duration("duration", d)}
	for _, a := range about {
		attrs = append(attrs, slog.String(a.Key, a.Value))
	}
	if err != nil {
		switch status.Code(err) {
		case codes.NotFound, codes.Unimplemented, codes.Canceled:
		default:
			level = slog.LevelWarn
		}
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.Any("error", err))
	}
	s.o.Log.LogAttrs(ctx, level, "call", attrs...)
}

// quiet reports whether a method is called so often (relists, probes, stats)
// that its success is worth a line only to somebody who debugs.
func quiet(name string) bool {
	switch name {
	case "Version", "ImageFsInfo", "RuntimeConfig", "ExecSync":
		return true
	}
	return strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Stream") || strings.HasSuffix(name, "Status") || strings.HasSuffix(name, "Stats")
}

// method cuts the service off "/runtime.v1.RuntimeService/Version".
func method(full string) string {
	return full[strings.LastIndexByte(full, '/')+1:]
}
