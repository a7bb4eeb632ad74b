package filelock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestTake: a lock that is let go of soon is taken, one that is kept is not.
func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, second := open(t, path), open(t, path)
	if err := Take(first); err != nil {
		t.Fatal(err)
	}
	if err := Take(second); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatalf("a lock that another holds: %v", err)
	}
	// As if a child of a killed process came to its exec.
	time.AfterFunc(100*time.Millisecond, func() { _ = first.Close() })
	if err := Take(second); err != nil {
		t.Errorf("a lock that was let go of: %v", err)
	}
}
