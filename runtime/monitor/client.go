package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// Client is the connection to one monitor. Requests share a connection and are
// told apart by number; each exec has a connection of its own.
type Client struct {
	conn    net.Conn
	dir     string
	pid     int
	version int64 // of the protocol, as agreed upon
	onClose func()
	writeMu sync.Mutex // orders frames

	mu    sync.Mutex
	next  uint32
	calls map[uint32]chan proto.Msg // buffered for one answer
	waits map[runtime.ContainerID]*wait
	dead  error         // why the connection ended
	done  chan struct{} // closed with dead set
}

// wait is one Wait request that all callers for a container share.
type wait struct {
	done chan struct{}
	exit lifecycle.Exit
	err  error
}

// open connects and agrees on a version.
func open(ctx context.Context, dir string) (net.Conn, proto.Msg, error) {
	var m proto.Msg
	d, err := os.Open(dir)
	if err != nil {
		return nil, m, err
	}
	defer d.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address(d))
	if err != nil {
		return nil, m, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	_, err = conn.Write(proto.Append(nil, &proto.Msg{Type: proto.Hello, Min: proto.MinVersion, Max: proto.MaxVersion}))
	if err == nil {
		_, err = proto.Read(conn, nil, &m)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && m.Type != proto.HelloOK {
		err = errors.New(m.Text)
	}
	if err != nil {
		conn.Close()
		return nil, m, err
	}
	return conn, m, nil
}

func dial(ctx context.Context, dir string) (*Client, error) {
	conn, hello, err := open(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &Client{
		conn: conn, dir: dir, pid: int(hello.PID), version: hello.Max, done: make(chan struct{}),
		calls: map[uint32]chan proto.Msg{}, waits: map[runtime.ContainerID]*wait{},
	}, nil
}

func (c *Client) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// read hands out answers until the connection ends.
func (c *Client) read() {
	buf := make([]byte, 256)
	for {
		var m proto.Msg
		var err error
		if buf, err = proto.Read(c.conn, buf, &m); err != nil {
			c.close(err)
			return
		}
		c.mu.Lock()
		ch := c.calls[m.ID]
		delete(c.calls, m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m
		}
	}
}

func (c *Client) close(err error) {
	c.mu.Lock()
	first := c.dead == nil
	if first {
		c.dead = err
		close(c.done)
	}
	c.mu.Unlock()
	if !first {
		return
	}
	c.conn.Close()
	if c.onClose != nil {
		go c.onClose()
	}
}

func unavailable(err error) error {
	return fmt.Errorf("%w: the monitor has gone: %w", runtime.ErrUnavailable, err)
}

// call sends a request and waits for its answer. When ctx ends first, the
// monitor goes on with the work.
func (c *Client) call(ctx context.Context, m proto.Msg) (proto.Msg, error) {
	ch := make(chan proto.Msg, 1)
	c.mu.Lock()
	if c.dead != nil {
		defer c.mu.Unlock()
		return proto.Msg{}, unavailable(c.dead)
	}
	c.next++
	m.ID = c.next
	c.calls[m.ID] = ch
	c.mu.Unlock()
	b := proto.Append(nil, &m)
	c.writeMu.Lock()
	_, err := c.conn.Write(b)
	c.writeMu.Unlock()
	if err != nil {
		c.close(err)
	}
	select {
	case r := <-ch:
		return r, answerError(&r)
	case <-c.done:
		select {
		case r := <-ch: // it came just before the end
			return r, answerError(&r)
		default:
		}
		return proto.Msg{}, unavailable(c.dead)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, m.ID)
		c.mu.Unlock()
		return proto.Msg{}, context.Cause(ctx)
	}
}

func answerError(m *proto.Msg) error {
	if m.Type != proto.Error {
		return nil
	}
	for k, e := range map[proto.Kind]error{
		proto.KindNotFound: runtime.ErrNotFound, proto.KindInvalid: runtime.ErrInvalid,
		proto.KindState: runtime.ErrState, proto.KindTimeout: runtime.ErrTimeout,
		proto.KindUnavailable: runtime.ErrUnavailable,
	} {
		if m.Code == int64(k) {
			return fmt.Errorf("%w: %s", e, m.Text)
		}
	}
	return errors.New(m.Text)
}

// Create implements lifecycle.Monitor.
func (c *Client) Create(ctx context.Context, r lifecycle.CreateRequest) (int, error) {
	a, err := c.call(ctx, createMsg(proto.Create, r))
	return int(a.PID), err
}

func createMsg(t proto.Type, r lifecycle.CreateRequest) proto.Msg {
	m := proto.Msg{
		Type: t, Container: string(r.ID), Bundle: r.Bundle,
		LogPath: r.LogPath, Cgroup: r.CgroupPath,
	}
	for f, on := range map[int64]bool{proto.FlagTTY: r.TTY, proto.FlagStdin: r.Stdin, proto.FlagStdinOnce: r.StdinOnce} {
		if on {
			m.Flags |= f
		}
	}
	return m
}

func (c *Client) simple(ctx context.Context, t proto.Type, id runtime.ContainerID) error {
	_, err := c.call(ctx, proto.Msg{Type: t, Container: string(id)})
	return err
}

// Start implements lifecycle.Monitor.
func (c *Client) Start(ctx context.Context, id runtime.ContainerID) error {
	return c.simple(ctx, proto.Start, id)
}

// Signal implements lifecycle.Monitor.
func (c *Client) Signal(ctx context.Context, id runtime.ContainerID, sig int, all bool) error {
	m := proto.Msg{Type: proto.Signal, Container: string(id), Code: int64(sig)}
	if all {
		m.Flags = proto.FlagAll
	}
	_, err := c.call(ctx, m)
	return err
}

// Wait implements lifecycle.Monitor. The monitor tells an exit unasked for to
// whoever has a Wait open; one per container is enough for all callers.
func (c *Client) Wait(ctx context.Context, id runtime.ContainerID) (lifecycle.Exit, error) {
	c.mu.Lock()
	w := c.waits[id]
	if w == nil {
		w = &wait{done: make(chan struct{})}
		c.waits[id] = w
		go c.await(id, w) //nolint:contextcheck // shared by all who wait
	}
	c.mu.Unlock()
	select {
	case <-w.done:
		return w.exit, w.err
	case <-ctx.Done():
		return lifecycle.Exit{}, context.Cause(ctx)
	}
}

func (c *Client) await(id runtime.ContainerID, w *wait) {
	m, err := c.call(context.Background(), proto.Msg{Type: proto.Wait, Container: string(id)})
	w.exit, w.err = exitOf(&m), err
	c.mu.Lock()
	delete(c.waits, id)
	c.mu.Unlock()
	close(w.done)
}

func exitOf(m *proto.Msg) lifecycle.Exit {
	return toExit(proto.Exit{Code: m.Code, Time: m.Time, OOM: m.Flags&proto.FlagOOM != 0})
}

// Delete implements lifecycle.Monitor.
func (c *Client) Delete(ctx context.Context, id runtime.ContainerID) error {
	return c.simple(ctx, proto.Delete, id)
}

// ReopenLog implements lifecycle.Monitor.
func (c *Client) ReopenLog(ctx context.Context, id runtime.ContainerID) error {
	return c.simple(ctx, proto.Reopen, id)
}

// Update implements lifecycle.Monitor.
func (c *Client) Update(ctx context.Context, id runtime.ContainerID, r specs.LinuxResources) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, proto.Msg{Type: proto.Update, Container: string(id), Data: b})
	return err
}

// State implements lifecycle.Monitor.
func (c *Client) State(ctx context.Context) ([]lifecycle.ContainerStatus, error) {
	m, err := c.call(ctx, proto.Msg{Type: proto.State})
	if err != nil {
		return nil, err
	}
	var all []lifecycle.ContainerStatus
	for i := range m.Items {
		it := &m.Items[i]
		s := lifecycle.ContainerStatus{
			ID: runtime.ContainerID(it.Container), PID: int(it.PID), Started: it.Flags&proto.FlagStarted != 0,
		}
		if it.Flags&proto.FlagExited != 0 {
			e := exitOf(it)
			s.Exit = &e
		}
		all = append(all, s)
	}
	return all, nil
}

// PIDNamespace implements lifecycle.Monitor.
func (c *Client) PIDNamespace(ctx context.Context) (int, error) {
	m, err := c.call(ctx, proto.Msg{Type: proto.PIDNS})
	return int(m.PID), err
}

// PodNamespaces implements lifecycle.Monitor.
func (c *Client) PodNamespaces(ctx context.Context, user runtime.UserNamespace, kinds []string) (int, error) {
	req := proto.Msg{Type: proto.PodNS}
	for _, k := range kinds {
		flag, ok := map[string]int64{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "user": 0}[k]
		if !ok {
			return 0, fmt.Errorf("%w: unknown namespace %.40q", runtime.ErrInvalid, k)
		}
		req.Flags |= flag
	}
	add := func(kind int64, maps []runtime.IDMapping) {
		for _, m := range maps {
			req.Items = append(req.Items, proto.Msg{
				Flags: kind, Min: int64(m.ContainerID), Max: int64(m.HostID), Code: int64(m.Length),
			})
		}
	}
	add(proto.MapUID, user.UIDs)
	add(proto.MapGID, user.GIDs)
	m, err := c.call(ctx, req)
	return int(m.PID), err
}

// Shutdown implements lifecycle.Monitor. A monitor that is gone has been shut down.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.call(ctx, proto.Msg{Type: proto.Shutdown})
	if errors.Is(err, runtime.ErrUnavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-c.done: // the process has ended, or is about to
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// run runs an OCI runtime to its end.
func run(ctx context.Context, argv []string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
