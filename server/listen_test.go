package server

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A daemon killed between making its socket and naming it leaves nothing that
// the next one does not take away.
func TestListenAfterKillInTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + ".new", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "s.sock.lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}
