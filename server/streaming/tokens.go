package streaming

import (
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ocid-io/ocid/runtime"
)

const (
	tokenLife   = time.Minute
	maxRequests = 1000
)

// Want says which streams a client asked for.
type Want struct {
	Stdin, Stdout, Stderr, TTY bool
}

// request is what a URL stands for.
type request struct {
	kind      string
	container runtime.ContainerID
	cmd       []string
	pod       runtime.PodID
	ports     []int32

	stdin, stdout, stderr, tty bool

	expires time.Time
}

func (r *request) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: r.stdin, Stdout: r.stdout, Stderr: r.stderr, TTY: r.tty}
}

func (r *request) want(w Want) *request {
	r.stdin, r.stdout, r.stderr, r.tty = w.Stdin, w.Stdout, w.Stderr, w.TTY
	return r
}

// tokens holds requests until their URL is opened or a minute has passed.
type tokens struct {
	mu sync.Mutex
	of map[string]*request // guarded by mu
}

func (t *tokens) put(r *request) (string, error) {
	now := time.Now()
	r.expires = now.Add(tokenLife)
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	name := hex.EncodeToString(b[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.of) >= maxRequests {
		for k, old := range t.of {
			if now.After(old.expires) {
				delete(t.of, k)
			}
		}
	}
	if len(t.of) >= maxRequests {
		return "", status.Errorf(codes.ResourceExhausted, "%d streams were asked for within a minute and not opened: try again later", maxRequests)
	}
	t.of[name] = r
	return name, nil
}

// take returns the request once, nil if there is none of that kind.
func (t *tokens) take(name, kind string) *request {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.of[name]
	delete(t.of, name)
	if r == nil || r.kind != kind || time.Now().After(r.expires) {
		return nil
	}
	return r
}

func (s *Server) url(r *request) (string, error) {
	token, err := s.tokens.put(r)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(r.kind, token).String(), nil
}

// ExecURL returns where a client finds the streams of a command.
func (s *Server) ExecURL(id runtime.ContainerID, cmd []string, w Want) (string, error) {
	return s.url((&request{kind: "exec", container: id, cmd: cmd}).want(w))
}

// AttachURL returns where a client finds the streams of a container.
func (s *Server) AttachURL(id runtime.ContainerID, w Want) (string, error) {
	return s.url((&request{kind: "attach", container: id}).want(w))
}

// PortForwardURL returns where a client reaches ports of a pod. SPDY clients
// name the ports as they go; WebSocket clients need them here.
func (s *Server) PortForwardURL(id runtime.PodID, ports []int32) (string, error) {
	return s.url(&request{kind: "portforward", pod: id, ports: ports})
}
