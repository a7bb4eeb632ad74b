package integration

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// notices receives what a service tells its manager (sd_notify(3)).
type notices struct{ *net.UnixConn }

func (n notices) next(t *testing.T) string {
	t.Helper()
	buf := make([]byte, 4096)
	check(t, n.SetReadDeadline(time.Now().Add(30*time.Second)))
	size, err := n.Read(buf)
	check(t, err)
	return string(buf[:size])
}

// The test is the parent that systemd would be: it makes the socket, hands it
// over as descriptor 3, and listens to the notices.
func TestSocketActivation(t *testing.T) {
	need(t)
	ctx := deadline(t, time.Minute)
	e, err := harness.New(ctx, harness.Options{})
	check(t, err)
	t.Cleanup(func() { check(t, e.Close()) })
	path := filepath.Join(e.Dir, "handed.sock")
	l := must[*net.UnixListener](t)(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))
	l.SetUnlinkOnClose(false)
	f := must[*os.File](t)(l.File())
	notify := filepath.Join(e.Dir, "notify.sock")
	n := notices{must[*net.UnixConn](t)(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"}))}
	defer n.Close()

	// A call that is made before there is a daemon waits in the socket.
	conn := must[*grpc.ClientConn](t)(grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()
	answer := make(chan error, 1)
	go func() {
		_, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
		answer <- err
	}()
	// LISTEN_PID must be the daemon's own pid, which only a shell that becomes it knows.
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, filepath.Join(e.Bin, "ocid")}, e.Args("serve")...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+notify)
	cmd.ExtraFiles = []*os.File{f}
	var log strings.Builder
	cmd.Stderr = &log
	check(t, cmd.Start())
	l.Close()
	f.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	if s := n.next(t); s != "READY=1" {
		t.Errorf("the first notice is %q", s)
	}
	if err := <-answer; err != nil {
		t.Errorf("the call that came first: %v", err)
	}
	if _, err := os.Stat(e.Socket); err == nil {
		t.Error("a socket of its own was made beside the one it was handed")
	}
	check(t, cmd.Process.Signal(unix.SIGHUP))
	if s := n.next(t); !strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("the notice of a reload is %q", s)
	}
	if s := n.next(t); s != "READY=1" {
		t.Errorf("the notice after a reload is %q", s)
	}
	check(t, cmd.Process.Signal(unix.SIGTERM))
	if s := n.next(t); s != "STOPPING=1" {
		t.Errorf("the last notice is %q", s)
	}
	if err := <-ended; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket belongs to the parent, and the daemon removed it: %v", err)
	}
}

func TestActivationRefusesTCP(t *testing.T) {
	need(t)
	ctx := deadline(t, time.Minute)
	e, err := harness.New(ctx, harness.Options{})
	check(t, err)
	t.Cleanup(func() { check(t, e.Close()) })
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	f := must[*os.File](t)(l.(*net.TCPListener).File())
	defer f.Close()
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, filepath.Join(e.Bin, "ocid")}, e.Args("serve")...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no unix stream socket") {
		t.Errorf("CRI over TCP has no authentication, and the daemon said %v\n%s", err, out)
	}
}
