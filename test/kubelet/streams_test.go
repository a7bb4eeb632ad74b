package kubelet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/kubelet/node"
)

func itoa(n int) string { return strconv.Itoa(n) }

// TestLogs: the kubelet finds a container's log, its tail, and what is yet to come.
func TestLogs(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "logs", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "for i in 1 2 3; do echo line $i; done; mkfifo /say; while read l; do echo $l; done </say >&2"]
    readinessProbe: {exec: {command: [test, -p, /say]}, periodSeconds: 1}
`)
	read := func(query string) string {
		r := must[io.ReadCloser](t)(n.Logs(ctx, "logs", "main", query))
		defer r.Close()
		return string(must[[]byte](t)(io.ReadAll(r)))
	}
	if got := read(""); got != "line 1\nline 2\nline 3\n" {
		t.Errorf("log: %q", got)
	}
	if got := read("tailLines=2"); got != "line 2\nline 3\n" {
		t.Errorf("its tail: %q", got)
	}
	r := must[io.ReadCloser](t)(n.Logs(ctx, "logs", "main", "follow=true&tailLines=0"))
	defer r.Close()
	shell(ctx, t, n, p, "main", "echo now >/say")
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || line != "now\n" {
		t.Errorf("followed: %q, %v", line, err)
	}
}

// TestLogRotation: the kubelet rotates a growing log, and nothing that the
// container wrote is lost between the files.
func TestLogRotation(t *testing.T) {
	n, ctx := beside(t)
	const lines = 9000
	p := up(ctx, t, n, "rotate", fmt.Sprintf(`
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; test $((i %% 20)) -gt 0 || usleep 20000; done; FOREVER"]
`, lines))
	log := cri(ctx, t, n, p.Container("main")).LogPath
	var all []int
	files := 0
	check(t, n.Await(ctx, "the end of the output, with nothing left to rotate", func() (bool, error) {
		var err error
		all, files, err = rotated(log)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // renamed at this moment
		}
		return err == nil && files >= 3 && len(all) > 0 && all[len(all)-1] == lines, err
	}))
	for i := 1; i < len(all); i++ {
		if all[i] != all[i-1]+1 {
			t.Fatalf("line %d follows %d over %d files", all[i], all[i-1], files)
		}
	}
}

// rotated reads the numbers that a container logged, from its rotated logs and
// the present one.
func rotated(log string) (numbers []int, files int, err error) {
	list, err := filepath.Glob(log + ".*") // names sort by age
	if err != nil {
		return nil, 0, err
	}
	for _, f := range append(list, log) {
		if strings.HasSuffix(f, ".tmp") {
			return nil, 0, fs.ErrNotExist // the kubelet is compressing
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, 0, err
		}
		if strings.HasSuffix(f, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, 0, err
			}
			if b, err = io.ReadAll(z); err != nil {
				return nil, 0, err
			}
		}
		for l := range strings.Lines(string(b)) {
			x := strings.Fields(l)
			if len(x) != 4 || !strings.HasSuffix(l, "\n") {
				return nil, 0, fmt.Errorf("%w: a line is being written", fs.ErrNotExist)
			}
			i, err := strconv.Atoi(x[3])
			if err != nil {
				return nil, 0, err
			}
			numbers = append(numbers, i)
		}
	}
	return numbers, len(list) + 1, nil
}

// streams skips where the daemon has none.
func streams(ctx context.Context, t *testing.T, n *node.Node) {
	t.Helper()
	_, err := n.Env.Runtime.Exec(ctx, &runtimeapi.ExecRequest{})
	if status.Code(err) == codes.Unimplemented {
		t.Skip("needs a daemon that serves streams")
	}
}

// TestExec: exec through the kubelet, with input, exit codes and a terminal.
func TestExec(t *testing.T) {
	n, ctx := beside(t)
	streams(ctx, t, n)
	up(ctx, t, n, "exec", `
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: BUSYBOX, command: [sh, -c, "FOREVER"]}]
`)
	if out := must[string](t)(n.Run(ctx, "exec", "main", "cat /etc/hostname")); !strings.HasPrefix(out, "exec-") {
		t.Errorf("run: %q", out)
	}
	s := must[*node.Session](t)(n.Stream(ctx, "exec", "main", node.StreamOptions{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}}))
	out, errOut, code, err := s.Wait(ctx)
	if out != "out\n" || errOut != "err\n" || code != 7 || err != nil {
		t.Errorf("exec: %q, %q, %d, %v", out, errOut, code, err)
	}
	s = must[*node.Session](t)(n.Stream(ctx, "exec", "main", node.StreamOptions{Stdin: true, Command: []string{"sh", "-c", "cat; echo end"}}))
	must[int](t)(s.Write([]byte("in\n")))
	check(t, s.CloseStdin())
	out, _, code, err = s.Wait(ctx)
	if out != "in\nend\n" || code != 0 || err != nil {
		t.Errorf("exec with input: %q, %d, %v", out, code, err)
	}
	s = must[*node.Session](t)(n.Stream(ctx, "exec", "main", node.StreamOptions{Stdin: true, TTY: true, Command: []string{"sh"}}))
	check(t, s.Resize(123, 45))
	must[int](t)(s.Write([]byte("while test \"$(stty size)\" != '45 123'; do usleep 1000; done; echo size is $(stty size)\n")))
	check(t, s.AwaitOutput(ctx, "size is 45 123"))
	must[int](t)(s.Write([]byte("exit 3\n")))
	if _, _, code, err = s.Wait(ctx); code != 3 || err != nil {
		t.Errorf("shell on a terminal: %d, %v", code, err)
	}
}

// TestAttach: attach through the kubelet reaches the container's own input and output.
func TestAttach(t *testing.T) {
	n, ctx := beside(t)
	streams(ctx, t, n)
	up(ctx, t, n, "attach", `
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: BUSYBOX, stdin: true, command: [sh, -c, "while read l; do echo got $l; done"]}]
`)
	s := must[*node.Session](t)(n.Stream(ctx, "attach", "main", node.StreamOptions{Stdin: true}))
	must[int](t)(s.Write([]byte("hello\n")))
	check(t, s.AwaitOutput(ctx, "got hello\n"))
	check(t, s.Close())
	s = must[*node.Session](t)(n.Stream(ctx, "attach", "main", node.StreamOptions{Stdin: true}))
	must[int](t)(s.Write([]byte("again\n")))
	check(t, s.AwaitOutput(ctx, "got again\n"))
	check(t, s.Close())
	p := must[*node.Pod](t)(n.Pod(ctx, "attach"))
	if c := p.Container("main"); c.RestartCount != 0 {
		t.Error("the container did not outlive its client")
	}
}

// TestPortForward: a port of the pod through the kubelet, and a closed one.
func TestPortForward(t *testing.T) {
	n, ctx := beside(t)
	streams(ctx, t, n)
	up(ctx, t, n, "forward", `
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: HTTPD, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]
`)
	c := must[io.ReadWriteCloser](t)(n.Forward(ctx, "forward", 80))
	defer c.Close()
	must[int](t)(io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	check(t, err)
	defer r.Body.Close()
	if b, err := io.ReadAll(r.Body); err != nil || !strings.Contains(string(b), "It works!") {
		t.Errorf("forwarded: %q, %v", b, err)
	}
	closed := must[io.ReadWriteCloser](t)(n.Forward(ctx, "forward", 81))
	defer closed.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := closed.Read(make([]byte, 1))
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a closed port: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("a closed port is never said to be closed")
	}
}
