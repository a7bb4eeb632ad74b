package runtimesvc

import (
	"context"
	"fmt"
	"sync"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Bounds of ExecSync's output. CRI caps each stream at 16 MiB and, with it,
// clients refuse a message beyond 16 MiB: both streams share one message, so
// that they share what fits into it, and leave room for a note on what did not.
const (
	maxStream   = 16 << 20
	maxResponse = maxStream - 4<<10
)

// ExecSync runs a command to its end and returns its output. Output beyond
// the bound is discarded, as CRI asks, and the command goes on undisturbed; the
// end of stderr says so.
func (s *Service) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, s.err(err)
	}
	chk := &check{}
	if len(req.GetCmd()) == 0 || req.GetCmd()[0] == "" {
		chk.fail("cmd", "must name a command")
	}
	chk.texts("cmd", req.GetCmd())
	if err := chk.err(); err != nil {
		return nil, s.err(err)
	}
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	out := &capture{left: maxResponse}
	stdout, stderr := &stream{capture: out}, &stream{capture: out}
	code, err := s.o.Execs.ExecSync(ctx, c.ID, req.GetCmd(), timeout, stdout, stderr)
	if err != nil {
		return nil, s.err(fmt.Errorf("exec in container %s: %w", c.ID, err))
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.dropped > 0 {
		s.log.Warn("output of a command was cut off", "container", string(c.ID), "command", req.GetCmd()[0],
			"kept", len(stdout.data)+len(stderr.data), "dropped", out.dropped)
		stderr.data = append(stderr.data, cutNote(out.dropped)...)
	}
	return &cri.ExecSyncResponse{Stdout: stdout.data, Stderr: stderr.data, ExitCode: code}, nil
}

// capture is the room that two streams share. It outlives the call harmlessly
// should a writer be kept.
type capture struct {
	mu      sync.Mutex
	left    int   // guarded by mu
	dropped int64 // guarded by mu
}

type stream struct {
	*capture
	data []byte // guarded by capture.mu
}

// Write keeps what fits and never fails, so that the command is not disturbed.
func (w *stream) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(p), w.left)
	w.data = append(w.data, p[:n]...)
	w.left -= n
	w.dropped += int64(len(p) - n)
	return len(p), nil
}

// errNotRunning is what stats of a container without processes say.
func errNotRunning(c runtime.Container) error {
	return fmt.Errorf("%w: container %s is %s and uses nothing", runtime.ErrState, c.ID, c.State)
}
