package kubelet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"golang.org/x/sys/unix"
)

// busAddress is where the shared kubelet looks for the system bus; there is one
// only while TestNodeShutdown runs.
const busAddress = "unix:path=/var/lib/bus"

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>` + busAddress + `</listen>
  <policy context="default">
    <allow send_destination="*"/> <allow eavesdrop="true"/> <allow own="*"/> <allow user="*"/>
  </policy>
</busconfig>
`

// logind stands in for the part of systemd-logind that the kubelet uses: it
// hands out an inhibitor and says when a shutdown begins.
type logind struct {
	conn *dbus.Conn

	mu     sync.Mutex
	locks  []*os.File // our ends of those given out
	ends   []*os.File // their read ends: end of file when the kubelet lets go
	locked chan struct{}
}

// Inhibit is org.freedesktop.login1.Manager's.
func (l *logind) Inhibit(_, _, _, _ string) (dbus.UnixFD, *dbus.Error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locks, l.ends = append(l.locks, w), append(l.ends, r)
	if len(l.locks) == 1 {
		close(l.locked)
	}
	return dbus.UnixFD(w.Fd()), nil //nolint:gosec // a file descriptor
}

// shutdown says that the machine goes down and waits until the kubelet has let go.
func (l *logind) shutdown() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.locks {
		f.Close()
	}
	if err := l.conn.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForShutdown", true); err != nil {
		return err
	}
	for _, f := range l.ends {
		if _, err := bufio.NewReader(f).ReadByte(); err == nil {
			return errors.New("the inhibitor was written to")
		}
	}
	return nil
}

func startLogind(t *testing.T, dir string) *logind {
	t.Helper()
	conf := filepath.Join(dir, "bus.conf")
	check(t, os.WriteFile(conf, []byte(busConfig), 0o644))
	daemon := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile", "--print-address=1")
	out := must[io.ReadCloser](t)(daemon.StdoutPipe())
	daemon.Stderr = os.Stderr
	check(t, daemon.Start())
	t.Cleanup(func() {
		// It may have ended; there is nothing to learn from its status.
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	must[string](t)(bufio.NewReader(out).ReadString('\n')) // it listens now
	conn := must[*dbus.Conn](t)(dbus.Connect(busAddress))
	t.Cleanup(func() { conn.Close() })
	l := &logind{conn: conn, locked: make(chan struct{})}
	check(t, conn.Export(l, "/org/freedesktop/login1", "org.freedesktop.login1.Manager"))
	must[*prop.Properties](t)(prop.Export(conn, "/org/freedesktop/login1", prop.Map{
		"org.freedesktop.login1.Manager": {"InhibitDelayMaxUSec": {Value: uint64(60e6)}},
	}))
	reply := must[dbus.RequestNameReply](t)(conn.RequestName("org.freedesktop.login1", dbus.NameFlagDoNotQueue))
	if reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("the name on the bus: %v", reply)
	}
	return l
}

// TestNodeShutdown: when the machine goes down the kubelet ends usual pods
// first and critical ones last, each with its grace, and then lets go.
func TestNodeShutdown(t *testing.T) {
	n, ctx := kubelet(t)
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("needs dbus-daemon")
	}
	dir := hostDir(t, n)
	l := startLogind(t, dir)
	check(t, restartKubelet(ctx, n, unix.SIGTERM, nil))
	select {
	case <-l.locked:
	case <-ctx.Done():
		t.Fatal("the kubelet takes no inhibitor")
	}
	const spec = `
  priority: %d
  terminationGracePeriodSeconds: 8
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "trap 'sleep %d; echo %s >>/host/order; exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
    volumeMounts: [{name: host, mountPath: /host}]
  volumes: [{name: host, hostPath: {path: %s}}]
`
	up(ctx, t, n, "critical", fmt.Sprintf(spec, 2000000000, 0, "critical", dir))
	up(ctx, t, n, "usual", fmt.Sprintf(spec, 0, 2, "usual", dir))
	check(t, l.shutdown())
	if got := string(must[[]byte](t)(os.ReadFile(filepath.Join(dir, "order")))); got != "usual\ncritical\n" {
		t.Errorf("order: %q", got)
	}
	if left := containers(ctx, t, n); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
	for _, name := range []string{"critical", "usual"} {
		check(t, n.Withdraw(name))
	}
	check(t, restartKubelet(ctx, n, unix.SIGTERM, nil))
}
