package daemon

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/server/streaming"
)

// listenStreams listens for exec, attach and port-forward.
func (d *parts) listenStreams(c config.Config) (*streaming.Server, error) {
	klog.SetSlogLogger(slog.New(calm{d.log.Handler()}).With("from", "streaming library")) // it knows no other way
	return streaming.New(streaming.Options{
		Listen:      c.Server.StreamListen,
		TLS:         streaming.TLS{Cert: c.Server.StreamTLSCert, Key: c.Server.StreamTLSKey, ClientCA: c.Server.StreamTLSClientCA},
		IdleTimeout: time.Duration(c.Server.StreamIdleTimeout), Backend: d.manager, Log: d.log,
	})
}

// serveStreams serves until ctx is done or the returned function is called,
// which returns when nothing is served any more.
func (d *parts) serveStreams(ctx context.Context, s *streaming.Server) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx); err != nil {
			d.log.Error("exec, attach and port-forward are not served any more", "error", err)
		}
	}()
	return func() { cancel(); <-done }
}

// calm is a log handler for a library that calls every stream a client ends an
// error: the client was told already. What it recovers from is one.
type calm struct{ slog.Handler }

func (c calm) level(l slog.Level, message string) slog.Level {
	if strings.Contains(message, "panic") {
		return l
	}
	return min(l, slog.LevelDebug)
}

// Enabled implements slog.Handler; the message decides.
func (c calm) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level = c.level(r.Level, r.Message); !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (c calm) WithAttrs(a []slog.Attr) slog.Handler { return calm{c.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (c calm) WithGroup(name string) slog.Handler { return calm{c.Handler.WithGroup(name)} }
