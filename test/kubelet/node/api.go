package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is what the kubelet says of one pod.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
	}
	Status struct {
		Phase, Reason, Message, PodIP string
		Conditions                    []struct{ Type, Status, Reason, Message string }
		InitContainerStatuses         []Container
		ContainerStatuses             []Container
		EphemeralContainerStatuses    []Container
	}
}

// Container is what the kubelet says of one container.
type Container struct {
	Name, ContainerID, ImageID string
	Ready                      bool
	Started                    *bool
	RestartCount               int
	State, LastState           State
}

// State of a container; at most one member is set.
type State struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *struct {
		ExitCode, Signal      int
		Reason, Message       string
		StartedAt, FinishedAt time.Time
	}
}

// Container finds a container of the pod by name, of any kind; nil if the
// kubelet has not said anything of it.
func (p *Pod) Container(name string) *Container {
	for _, l := range [][]Container{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		if i := slices.IndexFunc(l, func(c Container) bool { return c.Name == name }); i >= 0 {
			return &l[i]
		}
	}
	return nil
}

// Ready tells whether the pod's condition Ready holds.
func (p *Pod) Ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// String is the pod's status for a message.
func (p *Pod) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the kubelet signs its own certificate for the test
}

func (n *Node) url(path string) string { return "https://" + n.IP + ":10250" + path }

// Get asks the kubelet's API.
func (n *Node) Get(ctx context.Context, path string) ([]byte, error) {
	body, err := n.Open(ctx, http.MethodGet, path)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// Open asks the kubelet's API for an answer that goes on.
func (n *Node) Open(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, n.url(path), nil)
	if err != nil {
		return nil, err
	}
	r, err := n.client.Do(req)
	if err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK {
		defer r.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, r.Status, b)
	}
	return r.Body, nil
}

// Pods asks the kubelet for all its pods.
func (n *Node) Pods(ctx context.Context) ([]Pod, error) {
	b, err := n.Get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []Pod }
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("/pods: %w", err)
	}
	return list.Items, nil
}

// Pod asks for one static pod by the name in its manifest; nil if it is not there.
func (n *Node) Pod(ctx context.Context, name string) (*Pod, error) {
	pods, err := n.Pods(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		if p.Metadata.Name == n.Static(name) {
			return &p, nil
		}
	}
	return nil, nil
}

// Static is the name that a static pod gets on this node.
func (n *Node) Static(name string) string { return name + "-" + n.Name }

// Apply writes a static pod's manifest, whole or not at all.
func (n *Node) Apply(name, manifest string) error {
	tmp := filepath.Join(n.dir, name+".tmp")
	if err := os.WriteFile(tmp, []byte(manifest), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(n.Manifests, name+".yaml"))
}

// Withdraw takes a static pod's manifest away.
func (n *Node) Withdraw(name string) error {
	return os.Remove(filepath.Join(n.Manifests, name+".yaml"))
}

// AwaitPod waits until a static pod is as wanted, and returns it.
func (n *Node) AwaitPod(ctx context.Context, name, what string, f func(*Pod) bool) (*Pod, error) {
	var last *Pod
	err := n.Await(ctx, what+" of pod "+name, func() (bool, error) {
		p, err := n.Pod(ctx, name)
		if err != nil || p == nil {
			return false, nil //nolint:nilerr // the kubelet may be between two lives
		}
		last = p
		return f(p), nil
	})
	if err != nil && last != nil {
		err = fmt.Errorf("%w; last seen: %v", err, last)
	}
	return last, err
}

// AwaitGone waits until nothing of a static pod runs any more.
func (n *Node) AwaitGone(ctx context.Context, name string) error {
	return n.Await(ctx, "the end of pod "+name, func() (bool, error) {
		l, err := n.Env.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
			State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
			LabelSelector: map[string]string{"io.kubernetes.pod.name": n.Static(name)},
		}})
		if err != nil || len(l.Items) > 0 {
			return false, err
		}
		p, err := n.Pod(ctx, name)
		return p == nil && err == nil, err
	})
}

// Logs reads a container's log through the kubelet; query is as "follow=true".
func (n *Node) Logs(ctx context.Context, pod, container, query string) (io.ReadCloser, error) {
	return n.Open(ctx, http.MethodGet, fmt.Sprintf("/containerLogs/default/%s/%s?%s", n.Static(pod), container, query))
}

// Run runs a command through the kubelet's /run, which is an ExecSync. The
// kubelet splits the command at each space.
func (n *Node) Run(ctx context.Context, pod, container, command string) (string, error) {
	q := url.Values{"cmd": {command}}
	body, err := n.Open(ctx, http.MethodPost, fmt.Sprintf("/run/default/%s/%s?%s", n.Static(pod), container, q.Encode()))
	if err != nil {
		return "", err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	return string(b), err
}
