package streaming

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLS names the files that a server shows itself with. They are looked at on
// each connection and read again when they have changed; files that cannot be
// used then leave those read before in force.
type TLS struct {
	Cert, Key string
	ClientCA  string // "" asks clients for no certificate
}

func (t TLS) config(log *slog.Logger) (*tls.Config, error) {
	if t.Cert == "" || t.Key == "" {
		return nil, errors.New("streams over TLS need a certificate and a key")
	}
	r := &reloader{t: t, log: log}
	if _, err := r.current(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return r.current()
		},
	}, nil
}

// reloader keeps what the files held when they were last read.
type reloader struct {
	t   TLS
	log *slog.Logger

	mu    sync.Mutex
	seen  [3]stamp
	ready *tls.Config // nil before the first time
}

// stamp changes when a file does.
type stamp struct {
	size int64
	at   time.Time
}

func (r *reloader) stamps() (s [3]stamp) {
	for i, f := range []string{r.t.Cert, r.t.Key, r.t.ClientCA} {
		if st, err := os.Stat(f); err == nil {
			s[i] = stamp{st.Size(), st.ModTime()}
		} else if !errors.Is(err, fs.ErrNotExist) {
			s[i] = r.seen[i]
		}
	}
	return s
}

func (r *reloader) current() (*tls.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.stamps()
	if r.ready != nil && now == r.seen {
		return r.ready, nil
	}
	c, err := r.t.load()
	switch {
	case err == nil:
		r.ready, r.seen = c, now
	case r.ready == nil:
		return nil, err
	default:
		// Half of a pair may be replaced already: looked at again next time.
		r.log.Warn("the streams' TLS files have changed and cannot be used; those read before stay in force", "error", err)
	}
	return r.ready, nil
}

func (t TLS) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate of the streams: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if t.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("client CA of the streams: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client CA of the streams: %s holds no certificate", t.ClientCA)
	}
	return c, nil
}
