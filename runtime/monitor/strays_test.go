package monitor

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestEndRuntimes: what names the container ends, and has ended when the call
// returns; what names another one goes on.
func TestEndRuntimes(t *testing.T) {
	id, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	start := func(arg string) (*exec.Cmd, <-chan error) {
		c := exec.Command("sh", "-c", "while :; do read x; done", "runtime", arg)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Wait() }()
		t.Cleanup(func() { _ = in.Close(); _ = c.Process.Kill() })
		return c, done
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	mine, ended := start(id)
	_, lives := start(other)
	// A client that names the container runs another program.
	if err := endRuntimes("/bin/true", id, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("a process that is no runtime was ended: %v", err)
	case <-time.After(50 * time.Millisecond): // nothing tells that nothing happens
	}
	if err := endRuntimes(sh, id, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the process goes on")
	}
	if names(mine.Process.Pid, id) {
		t.Error("the process is still there")
	}
	select {
	case err := <-lives:
		t.Errorf("another container's process ended: %v", err)
	default:
	}
}
