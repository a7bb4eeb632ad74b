package daemon

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/server/streaming"
)

// listenStreams listens for exec, attach and port-forward.
func (d *parts) listenStreams(c config.Config) (*streaming.Server, error) {
	klog.SetSlogLogger(d.log.With("from", "streaming library")) // it knows no other way
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
