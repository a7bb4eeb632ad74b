package agent

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const spawnerEnv = "OCID_TEST_SPAWNER"

// TestSpawner is the process that TestChildrenEndWithTheMonitor kills.
func TestSpawner(t *testing.T) {
	if os.Getenv(spawnerEnv) == "" {
		return // only there to be started by the test below
	}
	c, err := newReaper().spawn([]string{"/bin/sleep", "600"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("pid " + strconv.Itoa(c.pid) + "\n")
	select {}
}

// TestChildrenEndWithTheMonitor: what a monitor has begun ends when it is
// killed.
func TestChildrenEndWithTheMonitor(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSpawner$")
	cmd.Env = append(os.Environ(), spawnerEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	pid := 0
	for s := bufio.NewScanner(out); pid == 0 && s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), "pid "); ok {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("the child %d of the spawner: %v", pid, err)
	}
	t.Cleanup(func() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((5 * time.Second).Milliseconds()))
	if err != nil || n != 1 {
		t.Errorf("the child outlived its parent: %d %v", n, err)
	}
}
