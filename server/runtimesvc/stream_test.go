package runtimesvc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/server/streaming"
)

// streamFake makes URLs that show what they were made of; only aa1 and cc1 can
// be reached.
type streamFake struct{}

func (streamFake) CanStream(_ context.Context, id runtime.ContainerID) error {
	if id != "cc1" {
		return fmt.Errorf("%w: not running", runtime.ErrState)
	}
	return nil
}

func (streamFake) CanForward(id runtime.PodID) error {
	if id != "aa1" {
		return fmt.Errorf("%w: not ready", runtime.ErrState)
	}
	return nil
}

func (streamFake) ExecURL(id runtime.ContainerID, cmd []string, w streaming.Want) (string, error) {
	return fmt.Sprint(id, cmd, w), nil
}

func (streamFake) AttachURL(id runtime.ContainerID, w streaming.Want) (string, error) {
	return fmt.Sprint(id, w), nil
}

func (streamFake) PortForwardURL(id runtime.PodID, ports []int32) (string, error) {
	return fmt.Sprint(id, ports), nil
}

func TestStreamURLs(t *testing.T) {
	s := newService(newFake())
	e, err := s.Exec(t.Context(), &cri.ExecRequest{ContainerId: "cc1", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil || e.Url != "cc1[sh] {true true false true}" {
		t.Errorf("%v %v", e, err)
	}
	a, err := s.Attach(t.Context(), &cri.AttachRequest{ContainerId: "cc1", Stdout: true, Stderr: true})
	if err != nil || a.Url != "cc1{false true true false}" {
		t.Errorf("%v %v", a, err)
	}
	p, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "aa1", Port: []int32{80, 65535}})
	if err != nil || p.Url != "aa1[80 65535]" {
		t.Errorf("%v %v", p, err)
	}
}

func TestStreamRefusals(t *testing.T) {
	s := newService(newFake())
	sh := []string{"sh"}
	exec := func(r *cri.ExecRequest) error { _, err := s.Exec(t.Context(), r); return err }
	attach := func(r *cri.AttachRequest) error { _, err := s.Attach(t.Context(), r); return err }
	forward := func(r *cri.PortForwardRequest) error { _, err := s.PortForward(t.Context(), r); return err }
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"nothing":            {exec(nil), runtime.ErrInvalid},
		"no command":         {exec(&cri.ExecRequest{ContainerId: "cc1", Stdout: true}), runtime.ErrInvalid},
		"empty command":      {exec(&cri.ExecRequest{ContainerId: "cc1", Cmd: []string{""}, Stdout: true}), runtime.ErrInvalid},
		"NUL":                {exec(&cri.ExecRequest{ContainerId: "cc1", Cmd: []string{"a\x00b"}, Stdout: true}), runtime.ErrInvalid},
		"no streams":         {exec(&cri.ExecRequest{ContainerId: "cc1", Cmd: sh}), runtime.ErrInvalid},
		"tty and stderr":     {exec(&cri.ExecRequest{ContainerId: "cc1", Cmd: sh, Tty: true, Stderr: true}), runtime.ErrInvalid},
		"no container":       {exec(&cri.ExecRequest{ContainerId: "ee", Cmd: sh, Stdout: true}), runtime.ErrNotFound},
		"no id":              {exec(&cri.ExecRequest{ContainerId: "../x", Cmd: sh, Stdout: true}), runtime.ErrNotFound},
		"created":            {exec(&cri.ExecRequest{ContainerId: "cc2", Cmd: sh, Stdout: true}), runtime.ErrState},
		"attach: no streams": {attach(&cri.AttachRequest{ContainerId: "cc1"}), runtime.ErrInvalid},
		"attach: tty":        {attach(&cri.AttachRequest{ContainerId: "cc1", Tty: true, Stderr: true}), runtime.ErrInvalid},
		"attach: created":    {attach(&cri.AttachRequest{ContainerId: "cc2", Stdout: true}), runtime.ErrState},
		"port 0":             {forward(&cri.PortForwardRequest{PodSandboxId: "aa1", Port: []int32{0}}), runtime.ErrInvalid},
		"port 65536":         {forward(&cri.PortForwardRequest{PodSandboxId: "aa1", Port: []int32{65536}}), runtime.ErrInvalid},
		"port -1":            {forward(&cri.PortForwardRequest{PodSandboxId: "aa1", Port: []int32{-1}}), runtime.ErrInvalid},
		"many ports":         {forward(&cri.PortForwardRequest{PodSandboxId: "aa1", Port: make([]int32, maxPorts+1)}), runtime.ErrInvalid},
		"no pod":             {forward(&cri.PortForwardRequest{PodSandboxId: "ee"}), runtime.ErrNotFound},
		"pod not ready":      {forward(&cri.PortForwardRequest{PodSandboxId: "aa2"}), runtime.ErrState},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
		if c.err != nil && strings.Contains(c.err.Error(), "\x00") {
			t.Errorf("%s: a NUL in %q", name, c.err)
		}
	}
}
