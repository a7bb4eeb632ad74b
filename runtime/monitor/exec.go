package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// Exec implements lifecycle.Monitor. It takes a connection of its own: closing
// it is how the process is killed, and a slow writer slows only that process.
func (c *Client) Exec(ctx context.Context, id runtime.ContainerID, r lifecycle.ExecRequest) (int, error) {
	if r.Process.Terminal {
		return 0, fmt.Errorf("%w: exec with a terminal", runtime.ErrInvalid)
	}
	b, err := json.Marshal(r.Process)
	if err != nil {
		return 0, err
	}
	conn, _, err := open(ctx, c.dir)
	if err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, unavailable(err)
	}
	defer conn.Close()
	m := proto.Msg{Type: proto.Exec, ID: 1, Container: string(id), Data: b, Time: int64(r.Drain)}
	if r.Stdin != nil {
		m.Flags = proto.FlagStdin
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(proto.Append(nil, &m)); err != nil {
		return 0, c.execError(ctx, err)
	}
	if r.Stdin != nil {
		go feed(conn, r.Stdin)
	}
	return c.follow(ctx, conn, r)
}

func (c *Client) execError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return unavailable(err)
}

func (c *Client) follow(ctx context.Context, conn net.Conn, r lifecycle.ExecRequest) (int, error) {
	var buf []byte
	for {
		var m proto.Msg
		var err error
		if buf, err = proto.Read(conn, buf, &m); err != nil {
			return 0, c.execError(ctx, err)
		}
		var w io.Writer
		switch m.Type {
		case proto.Stdout:
			w = r.Stdout
		case proto.Stderr:
			w = r.Stderr
		case proto.ExecDone:
			return int(m.Code), nil
		case proto.Error:
			return 0, answerError(&m)
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(m.Data); err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

// feed sends the input until its end or that of the connection.
func feed(conn net.Conn, in io.Reader) {
	b := make([]byte, 8<<10)
	for {
		n, err := in.Read(b)
		if n > 0 {
			if _, werr := conn.Write(proto.Append(nil, &proto.Msg{Type: proto.Stdin, Data: b[:n]})); werr != nil {
				return
			}
		}
		if err != nil {
			_, _ = conn.Write(proto.Append(nil, &proto.Msg{Type: proto.StdinEOF}))
			return
		}
	}
}
