package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/filelock"
)

// ErrInUse: another process serves the socket.
var ErrInUse = errors.New("another process serves this socket")

// maxSocketPath is sun_path less its NUL.
const maxSocketPath = 107

// Listen listens on a unix socket given as "unix:///path" or "/path", mode
// 0660. The path's ".lock" file is held for as long as the listener is open,
// so that of two daemons only one can have the socket; a socket that nobody
// answers on is left over from a crash and replaced by a rename, so that a
// client sees the old one or the new one. Closing the listener removes the
// socket and leaves the lock file.
func Listen(address string) (net.Listener, error) { return listenMode(address, 0o660) }

// ListenPrivate is Listen with mode 0600.
func ListenPrivate(path string) (net.Listener, error) { return listenMode(path, 0o600) }

func listenMode(address string, mode fs.FileMode) (net.Listener, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, fmt.Errorf("listen on %q: want unix:// and an absolute, clean path", address)
	}
	// The socket is made under a name that only the holder of the lock uses, so
	// that the next one finds what a killed one left.
	tmp := path + ".new"
	if len(tmp) > maxSocketPath {
		return nil, fmt.Errorf("listen on %q: the path is longer than the %d bytes a socket can have", address, maxSocketPath-len(tmp)+len(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	l, err := takeOver(path, tmp, mode)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	return &listener{Listener: l, path: path, lock: lock}, nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := filelock.Take(f); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (%s is locked)", ErrInUse, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// takeOver makes a listening socket at path; the caller holds the lock.
func takeOver(path, tmp string, mode fs.FileMode) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is no socket: remove it or listen elsewhere", path)
	default:
		// Somebody who does not know of the lock may serve it all the same.
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = c.Close()
			return nil, ErrInUse
		}
		// Only a refusal proves that no one listens; a full queue, say, does not.
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("%w (cannot tell whether it is stale: %w)", ErrInUse, err)
		}
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	// The permissions are right before the name that clients use exists.
	if err = os.Chmod(tmp, mode); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(tmp)
		return nil, err
	}
	return l, nil
}

type listener struct {
	net.Listener
	path string
	lock *os.File
	once sync.Once
	err  error
}

// Addr is the name that clients use, not the one it was bound under.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close closes and removes the socket, then lets go of the lock: the path is
// ours until then.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.err = errors.Join(os.Remove(l.path), l.Listener.Close(), l.lock.Close())
	})
	return l.err
}

// Activated returns the sockets that systemd passed to this process, none if
// it passed none. Only unix sockets are taken: CRI has no authentication.
func Activated() ([]net.Listener, error) {
	ls, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	var out []net.Listener
	for _, l := range ls {
		if l == nil {
			continue
		}
		if l.Addr().Network() != "unix" {
			return nil, fmt.Errorf("socket activation: %s is no unix stream socket", l.Addr())
		}
		out = append(out, l)
	}
	return out, nil
}
