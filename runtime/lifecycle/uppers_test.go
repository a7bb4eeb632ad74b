package lifecycle

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWalkKeepsLittle: a container that makes many directories, deep down, does
// not fill the daemon's memory with their paths.
func TestWalkKeepsLittle(t *testing.T) {
	dir := t.TempDir()
	deep := strings.TrimSuffix(strings.Repeat(strings.Repeat("n", 250)+"/", 15), "/")
	if err := os.MkdirAll(filepath.Join(dir, deep), 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(root) }()
	at, err := unix.Open(filepath.Join(dir, deep), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(at) }()
	const many = walkNames/3000 + 100
	for i := range many {
		if err := unix.Mkdirat(at, strconv.Itoa(i), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := walker{root: root, stop: new(atomic.Bool), seen: map[uint64]struct{}{}, begin: time.Now()}
	w.list(path.Clean(deep))
	kept := 0
	for _, d := range w.dirs {
		kept += len(d)
	}
	if kept != w.names || kept > walkNames || len(w.dirs) == many || w.inodes != many {
		t.Errorf("%d paths of %d bytes (%d counted) are kept of %d, %d inodes", len(w.dirs), kept, w.names, many, w.inodes)
	}
}
