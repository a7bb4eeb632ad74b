package network

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

// TestDial reaches a port that is open in a namespace and not outside of it.
func TestDial(t *testing.T) {
	needRoot(t)
	dir := pinNet(t)
	ns := filepath.Join(dir, "net")
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := listenIn(t, ns, address)
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			c.Close()
		}()
		c, err := (Dialer{}).Dial(t.Context(), ns, port)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		_, _ = io.WriteString(c, "hello")
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
			t.Errorf("%s: %q %v", address, b, err)
		}
		c.Close()
		if c, err := (Dialer{}).Dial(t.Context(), "", port); err == nil {
			c.Close()
			t.Errorf("%s: the port answers outside of the namespace", address)
		}
		l.Close()
		if _, err := (Dialer{}).Dial(t.Context(), ns, port); !errors.Is(err, runtime.ErrUnavailable) {
			t.Errorf("%s closed: %v", address, err)
		}
	}
	if _, err := (Dialer{}).Dial(t.Context(), filepath.Join(dir, "gone"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no namespace: %v", err)
	}
}

func listenIn(t *testing.T, ns, address string) net.Listener {
	t.Helper()
	var l net.Listener
	err := onSpareThread(func() error {
		fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestDialGivesUp ends with its context while nobody answers: the listener's
// queue is full.
func TestDialGivesUp(t *testing.T) {
	needRoot(t)
	ns := filepath.Join(pinNet(t), "net")
	fd, err := socketIn(ns, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		c, err := (Dialer{}).Dial(ctx, ns, port)
		cancel()
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			return
		}
		defer c.Close()
	}
	t.Error("no queue is that long")
}

func pinNet(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := (Namespaces{}).Pin(t.Context(), lifecycle.PinRequest{Dir: dir, Want: []string{"net"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := (Namespaces{}).Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
