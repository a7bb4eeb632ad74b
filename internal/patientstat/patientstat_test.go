package patientstat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/deadfs"
)

// TestMain also is the helper.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "stat":
		c := exec.Command("/proc/self/exe", "stat-now", os.Args[2])
		c.Stdout = os.Stdout
		if c.Start() != nil {
			os.Exit(1)
		}
	case len(os.Args) == 3 && os.Args[1] == "stat-now":
		_, _ = os.Stdout.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		var e syscall.Errno
		_ = errors.As(syscall.Stat(os.Args[2], new(syscall.Stat_t)), &e)
		_, _ = os.Stdout.WriteString(strconv.Itoa(int(e)) + "\n")
	default:
		// Under the race detector the helper would sleep for a second at its exit.
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
		os.Exit(m.Run())
	}
}

func prober(t *testing.T) *Prober {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Prober{Helper: []string{self, "stat"}}
}

func dead(t *testing.T, killable bool) (dir string, end func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE")
	}
	dir = t.TempDir()
	f, err := deadfs.Mount(dir, killable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return dir, f.Close
}

func TestDead(t *testing.T) {
	for _, killable := range []bool{true, false} {
		dir, end := dead(t, killable)
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(filepath.Join(dir, "deep"), link); err != nil {
			t.Fatal(err)
		}
		p := prober(t)
		for _, path := range []string{dir, dir + "/a/../b", link} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			begin := time.Now()
			err := p.Stat(ctx, path)
			cancel()
			if !errors.Is(err, ErrNoAnswer) {
				t.Errorf("killable %t, %s: %v", killable, path, err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("killable %t, %s took %v", killable, path, took)
			}
		}
		if !killable {
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			err := p.Stat(ctx, dir)
			cancel()
			if !errors.Is(err, ErrNoAnswer) || time.Since(begin) > 5*time.Second {
				t.Errorf("a path that hangs already: %v after %v", err, time.Since(begin))
			}
			if n := children(t); n != 0 {
				t.Errorf("%d children are left", n)
			}
		}
		end()
		deadline := time.Now().Add(10 * time.Second)
		for p.Stat(t.Context(), dir) != nil && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond) // until the kernel has ended who hung
		}
		if err := p.Stat(t.Context(), dir); err != nil {
			t.Errorf("killable %t: when the server is gone: %v", killable, err)
		}
	}
}

// children counts this process's, zombies too.
func children(t *testing.T) int {
	t.Helper()
	n := 0
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err == nil {
			n += len(strings.Fields(string(b)))
		}
	}
	return n
}

func TestAnswers(t *testing.T) {
	_, _ = dead(t, true) // so that the list of mounts counts
	p := prober(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		file: nil, dir: nil, "/proc/self/status": nil, "/sys": nil,
		filepath.Join(dir, "none"): fs.ErrNotExist, filepath.Join(file, "x"): syscall.ENOTDIR,
		filepath.Join(dir, "loop"): syscall.ELOOP, "relative": syscall.EINVAL,
	} {
		if err := p.Stat(t.Context(), path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if errors.Is(want, syscall.EINVAL) {
			continue
		}
		// The helper gives the same answers.
		if err := p.ask(t.Context(), path); !errors.Is(err, want) {
			t.Errorf("%s through the helper: %v, want %v", path, err, want)
		}
	}
}
