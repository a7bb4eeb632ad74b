package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/streamclient"
)

func openExec(t *testing.T, ctx context.Context, e *harness.Env, id string, w streamclient.Want, cmd ...string) *streamclient.Session {
	t.Helper()
	r, err := e.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: cmd, Stdin: w.Stdin, Stdout: w.Stdout, Stderr: w.Stderr, Tty: w.TTY})
	check(t, err)
	s := must[*streamclient.Session](t)(streamclient.Open(r.Url, w))
	t.Cleanup(func() { s.Close() })
	return s
}

func openAttach(t *testing.T, ctx context.Context, e *harness.Env, id string, w streamclient.Want) *streamclient.Session {
	t.Helper()
	r, err := e.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: w.Stdin, Stdout: w.Stdout, Stderr: w.Stderr, Tty: w.TTY})
	check(t, err)
	s := must[*streamclient.Session](t)(streamclient.Open(r.Url, w))
	t.Cleanup(func() { s.Close() })
	return s
}

// until reads r until want has come.
func until(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var got strings.Builder
	b := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		n, err := r.Read(b)
		got.Write(b[:n])
		if err != nil && !strings.Contains(got.String(), want) {
			t.Fatalf("%q lacks %q: %v", got.String(), want, err)
		}
	}
}

func TestExecStreams(t *testing.T) {
	e, ctx := env(t)
	for _, handler := range []string{"", "runc"} {
		podID, id, err := e.Up(ctx, e.Pod("exec-streams", true), handler, harness.Shell("main", harness.Forever))
		check(t, err)
		s := openExec(t, ctx, e, id, streamclient.Want{Stdin: true, Stdout: true, Stderr: true}, "sh", "-c", "cat; echo err >&2; exit 42")
		_, _ = io.WriteString(s.Stdin, "in")
		check(t, s.Stdin.Close())
		var out, errs []byte
		var wg sync.WaitGroup
		wg.Go(func() { errs, _ = io.ReadAll(s.Stderr) })
		out, _ = io.ReadAll(s.Stdout)
		wg.Wait()
		if r, err := s.Wait(); err != nil || r.Code != 42 || string(out) != "in" || string(errs) != "err\n" {
			t.Errorf("%q: %+v %v %q %q", handler, r, err, out, errs)
		}
		s = openExec(t, ctx, e, id, streamclient.Want{Stdout: true, Stderr: true}, "/no/such/program")
		if r, err := s.Wait(); err != nil || !strings.Contains(r.Failure, "no such file") {
			t.Errorf("%q: a missing program: %+v %v", handler, r, err)
		}
		tty := streamclient.Want{Stdin: true, Stdout: true, TTY: true}
		s = openExec(t, ctx, e, id, tty, "sh", "-c", "trap 'stty size' WINCH; tty; while ! read x; do :; done; exit 7")
		until(t, s.Stdout, "/dev/pts/")
		check(t, s.Resize(123, 45))
		until(t, s.Stdout, "45 123")
		_, _ = io.WriteString(s.Stdin, "go\n")
		if r, err := s.Wait(); err != nil || r.Code != 7 {
			t.Errorf("%q: a terminal: %+v %v", handler, r, err)
		}
		r, err := e.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		check(t, err)
		ws := must[*streamclient.WebSocket](t)(streamclient.OpenWebSocket(r.Url, "v5.channel.k8s.io"))
		check(t, ws.Send(remotecommand.StreamStdIn, []byte("over a web socket")))
		check(t, ws.CloseStdin())
		if out, _, end, err := ws.All(); out != "over a web socket" || end.Code != 0 || end.Failure != "" || err != nil {
			t.Errorf("%q: %q %+v %v", handler, out, end, err)
		}
		check(t, ws.Conn.Close())
		check(t, e.Down(ctx, podID))
	}
}

func TestAttachStreams(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("attach-streams", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	c := harness.Shell("main", "while read x; do echo out:$x; test $x = end && exit 3; done; echo eof; exit 4")
	c.Stdin = true
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	both := streamclient.Want{Stdin: true, Stdout: true, Stderr: true}
	a, b := openAttach(t, ctx, e, id, both), openAttach(t, ctx, e, id, streamclient.Want{Stdout: true})
	_, _ = io.WriteString(a.Stdin, "one\n")
	until(t, a.Stdout, "out:one")
	_, _ = io.WriteString(a.Stdin, "two\n")
	until(t, b.Stdout, "out:two")
	check(t, a.Raw.Close()) // without a word
	again := openAttach(t, ctx, e, id, both)
	_, _ = io.WriteString(again.Stdin, "end\n")
	until(t, again.Stdout, "out:end")
	if r, err := again.Wait(); err != nil || r.Failure != "" {
		t.Errorf("%+v %v", r, err)
	}
	if st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id)); st.ExitCode != 3 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	_, err := e.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
	wantError(t, err, "not running", codes.FailedPrecondition)

	c = harness.Shell("once", "cat; exit 5")
	c.Stdin, c.StdinOnce = true, true
	id = must[string](t)(e.RunContainer(ctx, podID, pod, c))
	once := openAttach(t, ctx, e, id, both)
	_, _ = io.WriteString(once.Stdin, "once")
	check(t, once.Stdin.Close())
	out, _ := io.ReadAll(once.Stdout)
	if st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id)); st.ExitCode != 5 || string(out) != "once" {
		t.Errorf("exit code %d, %q", st.ExitCode, out)
	}

	c = harness.Shell("tty", "while read x; do stty size; test $x = end && exit 6; done")
	c.Stdin, c.Tty = true, true
	id = must[string](t)(e.RunContainer(ctx, podID, pod, c))
	tty := openAttach(t, ctx, e, id, streamclient.Want{Stdin: true, Stdout: true, TTY: true})
	check(t, tty.Resize(90, 30))
	// Sizes and input come by different ways: asked again until it is there.
	for seen := ""; !strings.Contains(seen, "30 90"); {
		_, _ = io.WriteString(tty.Stdin, "size\n")
		b := make([]byte, 4096)
		n, err := tty.Stdout.Read(b)
		check(t, err)
		seen += string(b[:n])
	}
	_, _ = io.WriteString(tty.Stdin, "end\n")
	if st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id)); st.ExitCode != 6 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	check(t, e.Down(ctx, podID))
}

// TestStreamClientGone: what an exec left running dies with its client.
func TestStreamClientGone(t *testing.T) {
	e, ctx := env(t)
	podID, id, err := e.Up(ctx, e.Pod("gone", true), "", harness.Shell("main", harness.Forever))
	check(t, err)
	count := func() string {
		r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "ps -o args | grep -c '^sleep 400'"))
		return strings.TrimSpace(string(r.Stdout))
	}
	for _, tty := range []bool{false, true} {
		s := openExec(t, ctx, e, id, streamclient.Want{Stdin: true, Stdout: true, TTY: tty}, "sh", "-c", "set -m; sleep 4001 & sleep 4002 & echo up; wait")
		until(t, s.Stdout, "up")
		if n := count(); n != "2" {
			t.Errorf("tty %v: %s run", tty, n)
		}
		check(t, s.Raw.Close())
		for count() != "0" {
			check(t, ctx.Err())
		}
	}
	check(t, e.Down(ctx, podID))
}

// TestStreamMuch: a gigabyte passes, and the daemon does not grow with it.
func TestStreamMuch(t *testing.T) {
	e, ctx := env(t)
	podID, id, err := e.Up(ctx, e.Pod("much", true), "", harness.Shell("main", harness.Forever))
	check(t, err)
	const gib = 1 << 30
	check(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", e.PID()), []byte("5"), 0o200)) // peak anew
	before := peakRSS(t, e.PID())
	s := openExec(t, ctx, e, id, streamclient.Want{Stdout: true}, "dd", "if=/dev/zero", "bs=1M", "count=1024")
	start := time.Now()
	n, err := io.Copy(io.Discard, s.Stdout)
	check(t, err)
	t.Logf("%.0f MB/s", float64(n)/1e6/time.Since(start).Seconds())
	if r, err := s.Wait(); err != nil || r.Code != 0 || n != gib {
		t.Errorf("%+v %v, %d bytes", r, err, n)
	}
	after := peakRSS(t, e.PID())
	t.Logf("the daemon's peak: %d KiB before, %d after", before, after)
	if after > before+32<<10 {
		t.Errorf("the daemon grew from %d to %d KiB", before, after)
	}
	// The same over ExecSync is cut off, and says so.
	sync := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null; exit 3"))
	if sync.ExitCode != 3 || len(sync.Stdout) > 16<<20 || !strings.Contains(string(sync.Stderr), "discarded") {
		t.Errorf("ExecSync: %d, %d bytes, %q", sync.ExitCode, len(sync.Stdout), sync.Stderr)
	}
	check(t, e.Down(ctx, podID))
}

func peakRSS(t *testing.T, pid int) int {
	t.Helper()
	b := must[[]byte](t)(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	return must[int](t)(strconv.Atoi(strings.Fields(rest)[0]))
}

// TestAttachNeverReading: such a client is cut off, and the container goes on.
func TestAttachNeverReading(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("never", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	c := harness.Shell("main", "read x; dd if=/dev/zero bs=1M count=64 2>/dev/null | tr '\\0' x; echo the end; exit 9")
	c.Stdin = true
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	s := openAttach(t, ctx, e, id, streamclient.Want{Stdin: true, Stdout: true})
	_, _ = io.WriteString(s.Stdin, "go\n")
	if st := must[*runtimeapi.ContainerStatus](t)(e.AwaitExit(ctx, id)); st.ExitCode != 9 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	check(t, e.Down(ctx, podID))
}

// serveUpper starts a server in the container that reads to the end and answers
// in upper case: it needs both half-closes.
const serveUpper = "while :; do nc -l -p 7000 -e sh -c 'tr a-z A-Z'; done & nc -l -s ::1 -p 7006 -e sh -c 'echo six'; "

func TestPortForward(t *testing.T) {
	e, ctx := env(t)
	for _, host := range []bool{false, true} {
		podID, id, err := e.Up(ctx, e.Pod("forward", host), "", harness.Shell("main", "("+serveUpper+") & "+harness.Forever))
		check(t, err)
		for { // nothing announces that a port is open
			r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "netstat -ltn | grep -c ':700[06] '"))
			if strings.TrimSpace(string(r.Stdout)) == "2" {
				break
			}
			check(t, ctx.Err())
		}
		r, err := e.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{7000}})
		check(t, err)
		f := must[*streamclient.Forward](t)(streamclient.OpenForward(r.Url))
		for _, c := range []struct {
			port     int
			say, get string
			errs     string
		}{{7000, "hello", "HELLO", ""}, {7006, "", "six\n", ""}, {7999, "", "", "nothing listens on 127.0.0.1:7999"}} {
			data, errs, err := f.Dial(c.port)
			check(t, err)
			_, _ = io.WriteString(data, c.say)
			_ = data.Close()
			got, _ := io.ReadAll(data)
			words, _ := io.ReadAll(errs)
			if string(got) != c.get || !strings.Contains(string(words), c.errs) || c.errs == "" && len(words) > 0 {
				t.Errorf("host %v, port %d: %q %q", host, c.port, got, words)
			}
		}
		if host {
			if c, err := net.Dial("tcp", "[::1]:7006"); err == nil {
				c.Close() // it served one client and has ended
			}
		}
		check(t, f.Close())
		check(t, e.Down(ctx, podID))
	}
}

// TestPortForwardPodStops: a stream does not outlive its pod, whose network
// would not go away before it.
func TestPortForwardPodStops(t *testing.T) {
	e, ctx := env(t)
	podID, id, err := e.Up(ctx, e.Pod("stops", false), "", harness.Shell("main", "nc -l -p 7000 -e sh -c 'echo up; exec sleep 1000' & "+harness.Forever))
	check(t, err)
	for {
		r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "netstat -ltn | grep -c ':7000 '"))
		if strings.TrimSpace(string(r.Stdout)) == "1" {
			break
		}
		check(t, ctx.Err())
	}
	r, err := e.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID})
	check(t, err)
	f := must[*streamclient.Forward](t)(streamclient.OpenForward(r.Url))
	defer f.Close()
	data, _, err := f.Dial(7000)
	check(t, err)
	until(t, data, "up")
	check(t, e.StopPod(ctx, podID))
	_, _ = io.ReadAll(data) // ends
	_, err = e.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID})
	wantError(t, err, "not ready", codes.FailedPrecondition)
	check(t, e.RemovePod(ctx, podID))
	_, err = e.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID})
	wantError(t, err, podID, codes.NotFound)
}

func TestBadStreams(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("bad-streams", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	id := must[string](t)(e.CreateContainer(ctx, podID, pod, harness.Shell("main", harness.Forever)))
	try := func(id string) error {
		_, err := e.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
		return err
	}
	wantError(t, try(id), "not running", codes.FailedPrecondition)
	check(t, e.StartContainer(ctx, id))
	check(t, try(id))
	s := openExec(t, ctx, e, id, streamclient.Want{Stdout: true}, "sh", "-c", "echo up; exec sleep 1000")
	until(t, s.Stdout, "up")
	check(t, e.StopContainer(ctx, id, 0))
	if r, err := s.Wait(); err != nil || r.Code != 137 {
		t.Errorf("an exec of a container that was stopped: %+v %v", r, err)
	}
	wantError(t, try(id), "not running", codes.FailedPrecondition)
	wantError(t, try(strings.Repeat("a", 64)), "not found", codes.NotFound)
	_, err := e.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stderr: true, Tty: true})
	wantError(t, err, "tty", codes.InvalidArgument)
	_, err = e.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{70000}})
	wantError(t, err, "65535", codes.InvalidArgument)
	check(t, e.Down(ctx, podID))
}

// TestCrictlStreams drives a client that nobody here wrote.
func TestCrictlStreams(t *testing.T) {
	cache := must[string](t)(harness.CacheDir())
	bin := filepath.Join(cache, "bin", "crictl")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("needs crictl (hack/tools crictl)")
	}
	e, ctx := env(t)
	c := harness.Shell("main", "(while :; do nc -l -p 7000 -e sh -c 'echo from the pod'; done) & while read x; do echo got:$x; done; "+harness.Forever)
	c.Stdin = true
	podID, id, err := e.Up(ctx, e.Pod("crictl-streams", false), "", c)
	check(t, err)
	crictl := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, bin, append([]string{"--runtime-endpoint", "unix://" + e.Socket}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	for _, transport := range []string{"spdy", "websocket"} {
		if out, err := crictl("", "exec", "--transport", transport, id, "echo", "hello"); err != nil || !strings.Contains(out, "hello") {
			t.Errorf("exec over %s: %v %q", transport, err, out)
		}
	}
	if out, err := crictl("in", "exec", "-i", id, "cat"); err != nil || !strings.Contains(out, "in") {
		t.Errorf("exec -i: %v %q", err, out)
	}
	if out, err := crictl("", "exec", id, "sh", "-c", "exit 5"); err == nil || !strings.Contains(out, "5") {
		t.Errorf("exit 5: %v %q", err, out)
	}
	attach, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(attach, bin, "--runtime-endpoint", "unix://"+e.Socket, "attach", "-i", id)
	in := must[io.WriteCloser](t)(cmd.StdinPipe())
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	check(t, cmd.Start())
	_, _ = io.WriteString(in, "attached\n")
	until(t, out, "got:attached")
	cancel()
	_ = cmd.Wait() // it was killed
	_, port, err := net.SplitHostPort(freePort(t))
	check(t, err)
	forward := exec.CommandContext(ctx, bin, "--runtime-endpoint", "unix://"+e.Socket, "port-forward", podID, port+":7000")
	said := must[io.ReadCloser](t)(forward.StdoutPipe())
	check(t, forward.Start())
	until(t, said, "Forwarding from")
	conn := must[net.Conn](t)(net.Dial("tcp", "127.0.0.1:"+port))
	got, _ := io.ReadAll(conn)
	if string(got) != "from the pod\n" {
		t.Errorf("port-forward: %q", got)
	}
	conn.Close()
	check(t, forward.Process.Signal(unix.SIGTERM))
	_ = forward.Wait()
	check(t, e.Down(ctx, podID))
}
