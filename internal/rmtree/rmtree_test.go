package rmtree

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// nest makes depth directories in each other, with a file and a link in each.
func nest(t *testing.T, top string, depth int) {
	t.Helper()
	fd, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := errors.Join(unix.Mkdirat(fd, "d", 0o700), unix.Symlinkat("/", fd, "l"), unix.Mknodat(fd, "f", unix.S_IFREG|0o600, 0)); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
}

func TestRemove(t *testing.T) {
	outer := t.TempDir()
	top, outside := filepath.Join(outer, "top"), filepath.Join(outer, "outside")
	for _, d := range []string{top, outside, filepath.Join(top, "deep-1"), filepath.Join(top, "wide")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2*batch + 1 {
		if err := os.WriteFile(filepath.Join(top, "wide", strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(outside, "safe"), nil, 0o600), os.Symlink(outside, filepath.Join(top, "link"))); err != nil {
		t.Fatal(err)
	}
	nest(t, top, 3*maxOpen)
	// No more than a few descriptors, whatever else the process may have.
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open) + maxOpen + 8), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err = Remove(top)
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil || rerr != nil {
		t.Fatal(err, rerr)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "safe")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	for _, p := range []string{top, filepath.Join(outside, "safe"), filepath.Join(outer, "no", "such")} {
		if err := Remove(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestMountsAreNotEntered(t *testing.T) {
	top := t.TempDir()
	at := filepath.Join(top, "d", "m")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("t", at, "tmpfs", 0, ""); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
	safe := filepath.Join(at, "safe")
	if err := os.WriteFile(safe, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(top); err == nil {
		t.Error("a mount point was removed")
	}
	if _, err := os.Stat(safe); err != nil {
		t.Errorf("what is mounted was removed: %v", err)
	}
}
