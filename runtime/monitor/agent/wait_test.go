package agent

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// TestWaitEndsWithItsClient: daemons come and go while a container runs, and
// nothing of them stays in the monitor.
func TestWaitEndsWithItsClient(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := &container{id: "c", made: make(chan struct{}), ended: make(chan struct{})}
	close(c.made)
	a := &agent{containers: map[string]*container{"c": c}}
	cn := &conn{f: w, gone: make(chan struct{})}
	over := make(chan struct{})
	go func() { a.wait(cn, 1, "c"); close(over) }()
	close(cn.gone)
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits on, for nobody")
	}
	w.Close()
	if b, _ := io.ReadAll(r); len(b) != 0 {
		t.Errorf("it answered %q", b)
	}
}

// TestConnectionEndsItsWaits: the end of the connection is noticed.
func TestConnectionEndsItsWaits(t *testing.T) {
	ours, theirs, err := pipe(false)
	if err != nil {
		t.Fatal(err)
	}
	cn, err := newConn(os.NewFile(uintptr(theirs), "client"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Write(proto.Append(nil, &proto.Msg{Type: proto.Hello, Min: proto.MinVersion, Max: proto.MaxVersion}))
	ours.Close()
	(&agent{}).serve(cn)
	select {
	case <-cn.gone:
	default:
		t.Error("the connection is over and nobody was told")
	}
}
