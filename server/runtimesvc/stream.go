package runtimesvc

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/server/streaming"
)

// maxPorts bounds the ports of one port-forward.
const maxPorts = 256

// Streamable tells whether streams can be opened right now, and why not.
type Streamable interface {
	CanStream(ctx context.Context, id runtime.ContainerID) error
	CanForward(id runtime.PodID) error
}

// StreamURLs says where a client finds the streams that it asked for.
type StreamURLs interface {
	ExecURL(id runtime.ContainerID, cmd []string, w streaming.Want) (string, error)
	AttachURL(id runtime.ContainerID, w streaming.Want) (string, error)
	PortForwardURL(id runtime.PodID, ports []int32) (string, error)
}

// streams is what ExecRequest and AttachRequest have in common.
type streams interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func (c *check) want(r streams) streaming.Want {
	w := streaming.Want{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	if w.TTY && w.Stderr {
		c.fail("stderr", "must not be set with tty: a terminal has one output")
	}
	if !w.Stdin && !w.Stdout && !w.Stderr {
		c.fail("stdout", "one of stdin, stdout and stderr must be set")
	}
	return w
}

// Exec returns the URL at which a command's streams can be opened.
func (s *Service) Exec(ctx context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	chk := &check{}
	if len(req.GetCmd()) == 0 || req.GetCmd()[0] == "" {
		chk.fail("cmd", "must name a command")
	}
	chk.texts("cmd", req.GetCmd())
	want := chk.want(req)
	id, err := s.streamable(ctx, chk, req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	url, err := s.o.StreamURLs.ExecURL(id, req.GetCmd(), want)
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.ExecResponse{Url: url}, nil
}

// Attach returns the URL at which a container's streams can be opened.
func (s *Service) Attach(ctx context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	chk := &check{}
	want := chk.want(req)
	id, err := s.streamable(ctx, chk, req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	url, err := s.o.StreamURLs.AttachURL(id, want)
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.AttachResponse{Url: url}, nil
}

// streamable finds a container whose streams can be opened.
func (s *Service) streamable(ctx context.Context, chk *check, id string) (runtime.ContainerID, error) {
	if err := chk.err(); err != nil {
		return "", err
	}
	c, err := s.container(id)
	if err != nil {
		return "", err
	}
	return c.ID, s.o.Streamable.CanStream(ctx, c.ID)
}

// PortForward returns the URL at which ports of a pod can be reached.
func (s *Service) PortForward(_ context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	chk := &check{}
	if chk.count("port", len(req.GetPort()), maxPorts) {
		for i, p := range req.GetPort() {
			chk.between(index("port", i), int64(p), 1, 65535)
		}
	}
	if err := chk.err(); err != nil {
		return nil, s.err(err)
	}
	p, err := s.pod(req.GetPodSandboxId())
	if err == nil {
		err = s.o.Streamable.CanForward(p.ID)
	}
	if err != nil {
		return nil, s.err(err)
	}
	url, err := s.o.StreamURLs.PortForwardURL(p.ID, req.GetPort())
	if err != nil {
		return nil, s.err(err)
	}
	return &cri.PortForwardResponse{Url: url}, nil
}

// cutNote is put at the end of a command's stderr when output was discarded.
func cutNote(dropped int64) string {
	return fmt.Sprintf("\n[ocid: the output was longer than the 16 MiB that this call can carry; %d bytes were discarded]\n", dropped)
}
