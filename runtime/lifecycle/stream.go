package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"

	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
)

// errPodStopped ends the streams into a pod that is being stopped.
var errPodStopped = errors.New("the pod was stopped")

// CanStream reports nil, or why a process cannot be run in a container, or a
// client attached to it, right now.
func (m *Manager) CanStream(ctx context.Context, id runtime.ContainerID) error {
	_, _, err := m.streamable(ctx, id)
	return err
}

func (m *Manager) streamable(ctx context.Context, id runtime.ContainerID) (runtime.Container, Monitor, error) {
	c, err := m.o.Ledger.Container(id)
	if err != nil {
		return c, nil, err
	}
	if c.State != runtime.ContainerRunning {
		return c, nil, fmt.Errorf("%w: container %s is %s, not running", runtime.ErrState, id, c.State)
	}
	mon, err := m.monitor(ctx, c.PodID)
	if err != nil {
		return c, nil, err
	}
	return c, mon, mon.CanStream()
}

// Exec runs cmd in a running container with a client's streams as its files,
// and returns its exit code. When ctx ends, the process is killed.
func (m *Manager) Exec(ctx context.Context, id runtime.ContainerID, cmd []string, s runtime.Streams) (int32, error) {
	if len(cmd) == 0 {
		return 0, fmt.Errorf("%w: exec needs a command", runtime.ErrInvalid)
	}
	c, mon, err := m.streamable(ctx, id)
	if err != nil {
		return 0, err
	}
	proc, err := m.execProcess(&c)
	if err != nil {
		return 0, err
	}
	proc.Args = cmd
	defer stages.Start(ctx, "engine-exec")()
	code, err := mon.ExecStream(ctx, id, proc, s)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	return int32(code), nil
}

// Attach couples a client with a running container's own files until either
// ends. Whether there is a terminal is the container's to say.
func (m *Manager) Attach(ctx context.Context, id runtime.ContainerID, s runtime.Streams) error {
	c, mon, err := m.streamable(ctx, id)
	if err != nil {
		return err
	}
	if s.TTY = c.Config.TTY; s.TTY {
		s.Stderr = nil
	}
	if err := mon.Attach(ctx, id, s); err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	return nil
}

// CanForward reports nil, or why no port of a pod can be reached right now.
func (m *Manager) CanForward(id runtime.PodID) error {
	_, err := m.forwardable(id)
	return err
}

func (m *Manager) forwardable(id runtime.PodID) (netns string, err error) {
	p, err := m.o.Ledger.Pod(id)
	if err != nil {
		return "", err
	}
	if p.State != runtime.PodReady {
		return "", fmt.Errorf("%w: pod %s is %s, not ready", runtime.ErrState, id, p.State)
	}
	if p.Config.Namespaces.Network == runtime.NamespaceNode {
		return "", nil
	}
	return filepath.Join(m.nsDir(id), "net"), nil
}

// PortForward couples stream with a port of the pod. Each direction ends by
// itself; it returns when both have, or when ctx or the pod ends.
func (m *Manager) PortForward(ctx context.Context, id runtime.PodID, port uint16, stream io.ReadWriteCloser) error {
	// Joined before the state is read: a stop ends those who joined before it.
	ctx, leave := m.joinPod(ctx, id)
	defer leave()
	netns, err := m.forwardable(id)
	if err != nil {
		return err
	}
	conn, err := m.o.Dialer.Dial(ctx, netns, port)
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, id, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := couple(conn, stream); err != nil && ctx.Err() == nil {
		return fmt.Errorf("port %d of pod %s: %w", port, id, err)
	}
	if cause := context.Cause(ctx); errors.Is(cause, errPodStopped) {
		return cause
	}
	return nil
}

// couple copies both ways. The end of one direction is passed on as such; a
// failure ends both.
func couple(conn net.Conn, stream io.ReadWriteCloser) error {
	up := make(chan error, 1)
	go func() {
		err := shovel(conn, stream)
		if err == nil {
			if w, ok := conn.(interface{ CloseWrite() error }); ok {
				err = w.CloseWrite()
			}
		}
		if err != nil {
			conn.Close()
		}
		up <- err
	}()
	if err := shovel(stream, conn); err != nil {
		return err
	}
	// The client learns that no more will come, and ends its own direction.
	_ = stream.Close()
	return <-up
}

const (
	firstChunk = 8 << 10
	maxChunk   = 256 << 10
)

// shovel is io.Copy with a buffer that grows with the flow.
func shovel(dst io.Writer, src io.Reader) error {
	buf := make([]byte, firstChunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if n == len(buf) && n < maxChunk {
			buf = make([]byte, min(8*n, maxChunk))
		}
	}
}

// forwards are the streams into each pod, which end when it stops: an open
// socket would keep the pod's network namespace alive.
type forwards struct {
	mu   sync.Mutex
	next uint64                                               // guarded by mu
	of   map[runtime.PodID]map[uint64]context.CancelCauseFunc // guarded by mu
}

// joinPod derives a context that ends when the pod stops. Call leave.
func (m *Manager) joinPod(ctx context.Context, id runtime.PodID) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &m.forwards
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[runtime.PodID]map[uint64]context.CancelCauseFunc{}
	}
	if f.of[id] == nil {
		f.of[id] = map[uint64]context.CancelCauseFunc{}
	}
	f.next++
	n := f.next
	f.of[id][n] = cancel
	return ctx, func() {
		cancel(nil)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.of[id], n)
		if len(f.of[id]) == 0 {
			delete(f.of, id)
		}
	}
}

// endForwards ends the streams into a pod.
func (m *Manager) endForwards(id runtime.PodID) {
	m.forwards.mu.Lock()
	defer m.forwards.mu.Unlock()
	for _, cancel := range m.forwards.of[id] {
		cancel(errPodStopped)
	}
}
