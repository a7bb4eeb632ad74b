package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// dialLimit bounds one attempt to connect: on loopback, who listens answers at
// once.
const dialLimit = 10 * time.Second

// Dialer implements lifecycle.Dialer. The zero value is ready.
type Dialer struct{}

// Dial connects to 127.0.0.1 or, if nobody listens there, to ::1. Only the
// socket is made in the namespace, to which it belongs for ever after.
func (Dialer) Dial(ctx context.Context, netns string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	var errs []error
	for _, to := range []unix.Sockaddr{
		&unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}},
		&unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}},
	} {
		conn, err := dial(ctx, netns, to)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if errors.Is(errs[0], unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: connection refused: nothing listens on 127.0.0.1:%d or [::1]:%d", runtime.ErrUnavailable, port, port)
	}
	return nil, fmt.Errorf("connect to 127.0.0.1:%d, then [::1]:%d: %w", port, port, errors.Join(errs...))
}

func dial(ctx context.Context, netns string, to unix.Sockaddr) (net.Conn, error) {
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := socketIn(netns, family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "port-forward")
	defer f.Close() // FileConn has a copy of its own
	if err := connect(ctx, f, fd, to); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// socketIn makes a non-blocking TCP socket in the network namespace at path.
func socketIn(path string, family int) (int, error) {
	const kind = unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	if path == "" {
		return unix.Socket(family, kind, 0)
	}
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer unix.Close(ns)
	fd := -1
	err = onSpareThread(func() error {
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the pod's network namespace: %w", err)
		}
		fd, err = unix.Socket(family, kind, 0)
		return err
	})
	return fd, err
}

// connect waits until the socket is connected, has failed to, or ctx ends.
func connect(ctx context.Context, f *os.File, fd int, to unix.Sockaddr) error {
	err := unix.Connect(fd, to)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) })()
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = rc.Write(func(uintptr) bool {
		state, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			serr = err
		case state != 0:
			serr = os.NewSyscallError("connect", unix.Errno(state))
		default:
			// Being writable can be what it was before: a peer is proof.
			_, err := unix.Getpeername(fd)
			return err == nil
		}
		return true
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	return serr
}
