package layered_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDeepLayerGoes: a container that nests directories deeper than a process
// may have files open leaves nothing behind.
func TestDeepLayerGoes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for the store")
	}
	dir := t.TempDir()
	s := open(t, dir)
	trash := filepath.Join(options(dir).Root, "trash")
	top := filepath.Join(trash, "left")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 512, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }()
	fd, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
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
	begin := time.Now()
	if err := s.Collect(t.Context(), func(string) bool { return true }); err != nil {
		t.Fatalf("after %s: %.200s", time.Since(begin), err)
	}
	if l, err := os.ReadDir(trash); err != nil || len(l) != 0 {
		t.Errorf("left: %v %v", l, err)
	}
}
