package monitor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

var _ lifecycle.Checkpointer = (*Client)(nil)

// runtimePath is where a monitor, and so the runtime that it runs, looks for criu.
const runtimePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// haveCriu says how to get criu where there is none. What the runtime would
// say of it later is not for operators.
func haveCriu() error {
	for dir := range strings.SplitSeq(runtimePath, ":") {
		if st, err := os.Stat(filepath.Join(dir, "criu")); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: checkpoint and restore need criu, and there is none in %s: install criu, 3.15 or newer (Debian: apt-get install criu)",
		runtime.ErrState, runtimePath)
}

// begin opens a connection to a monitor that knows checkpoints.
func (c *Client) begin(ctx context.Context) (net.Conn, error) {
	if err := haveCriu(); err != nil {
		return nil, err
	}
	conn, hello, err := open(ctx, c.dir)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, unavailable(err)
	}
	if hello.Max < proto.CheckpointVersion {
		conn.Close()
		return nil, fmt.Errorf("%w: the pod's monitor is of a release without checkpoint and restore: run the pod anew", runtime.ErrState)
	}
	return conn, nil
}

// ask sends m and reads one answer.
func (c *Client) ask(ctx context.Context, conn net.Conn, m proto.Msg) (proto.Msg, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var r proto.Msg
	_, err := conn.Write(proto.Append(nil, &m))
	if err == nil {
		_, err = proto.Read(conn, nil, &r)
	}
	if err != nil {
		return r, c.execError(ctx, err)
	}
	return r, answerError(&r)
}

func flagTCP(on bool) int64 {
	if on {
		return proto.FlagTCP
	}
	return 0
}

// Checkpoint implements lifecycle.Checkpointer. The connection is the hold on
// the containers: when it ends, however it ends, the monitor lets them run.
func (c *Client) Checkpoint(ctx context.Context, r lifecycle.CheckpointRequest) (lifecycle.Thaw, error) {
	conn, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	m := proto.Msg{Type: proto.Checkpoint, ID: 1, Time: int64(r.Limit), Flags: flagTCP(r.TCPEstablished)}
	for _, d := range r.Containers {
		m.Items = append(m.Items, proto.Msg{Container: string(d.ID), Bundle: d.Images, LogPath: d.Work})
	}
	if _, err := c.ask(ctx, conn, m); err != nil {
		// The monitor answers with an error after the thaw, never before.
		conn.Close()
		return nil, err
	}
	var once sync.Once
	thaw := func() (err error) {
		once.Do(func() {
			defer conn.Close()
			// Not the caller's context: its end is no reason to leave unthawed.
			wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawWait)
			defer cancel()
			_, err = c.ask(wait, conn, proto.Msg{Type: proto.Thaw, ID: 2})
		})
		return err
	}
	return thaw, nil
}

const thawWait = 10 * time.Second

// Restore implements lifecycle.Checkpointer.
func (c *Client) Restore(ctx context.Context, r lifecycle.RestoreRequest) (int, error) {
	conn, err := c.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	m := createMsg(proto.Restore, r.CreateRequest)
	m.ID = 1
	m.Flags |= flagTCP(r.TCPEstablished)
	m.Time = int64(r.Limit)
	m.Items = []proto.Msg{{Bundle: r.Images, LogPath: r.Work}}
	a, err := c.ask(ctx, conn, m)
	return int(a.PID), err
}
