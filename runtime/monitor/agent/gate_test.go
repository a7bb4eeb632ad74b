package agent

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime/engine"
)

// TestGateOfAShortProgram: the program ran and ended before its start was
// noticed; that is a start, not a failure.
func TestGateOfAShortProgram(t *testing.T) {
	root := t.TempDir()
	a := &agent{handler: engine.Handler{Root: root, Embedded: true}}
	for _, ran := range []bool{true, false} {
		for range 200 {
			c := &container{id: "c", proc: &child{done: make(chan struct{})}}
			fifo := filepath.Join(root, "c", "exec.fifo")
			if err := os.MkdirAll(filepath.Dir(fifo), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			w, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if ran {
					_, _ = w.Write([]byte("0"))
				}
				close(c.proc.done)
			}()
			begin := time.Now()
			if err := a.openGate(c); (err == nil) != ran {
				t.Fatalf("ran %v: %v", ran, err)
			}
			if time.Since(begin) > patience/2 {
				t.Fatal("the end of the process was not noticed")
			}
			_ = w.Close()
			if !ran {
				_ = os.Remove(fifo)
			}
		}
	}
}
