package harness

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var serial atomic.Uint64

// Pod gives a pod's configuration with a fresh name, on the host's network or
// on the bridge.
func (e *Env) Pod(name string, hostNetwork bool) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("%s-%d", name, serial.Add(1))
	net := runtimeapi.NamespaceMode_POD
	if hostNetwork {
		net = runtimeapi.NamespaceMode_NODE
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: uid},
		LogDirectory: filepath.Join(e.Dir, "logs", uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: e.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: net, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// Shell gives the configuration of a busybox container that runs a script.
func Shell(name, script string) *runtimeapi.ContainerConfig {
	return Container(name, Busybox, "sh", "-c", script)
}

// Forever is a script that runs until it gets SIGTERM.
const Forever = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"

// Container gives a container's configuration.
func Container(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// Pull pulls an image and returns its id.
func (e *Env) Pull(ctx context.Context, image string) (string, error) {
	r, err := e.Image.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil {
		return "", err
	}
	return r.ImageRef, nil
}

// RunPod makes a pod under a handler ("" is the default).
func (e *Env) RunPod(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	r, err := e.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		return "", fmt.Errorf("RunPodSandbox: %w", err)
	}
	return r.PodSandboxId, nil
}

// CreateContainer makes a container.
func (e *Env) CreateContainer(ctx context.Context, podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	r, err := e.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod})
	if err != nil {
		return "", fmt.Errorf("CreateContainer: %w", err)
	}
	return r.ContainerId, nil
}

// StartContainer starts it.
func (e *Env) StartContainer(ctx context.Context, id string) error {
	if _, err := e.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("StartContainer: %w", err)
	}
	return nil
}

// RunContainer makes a container and starts it.
func (e *Env) RunContainer(ctx context.Context, podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (string, error) {
	id, err := e.CreateContainer(ctx, podID, pod, c)
	if err != nil {
		return "", err
	}
	return id, e.StartContainer(ctx, id)
}

// Up makes a pod with one running container.
func (e *Env) Up(ctx context.Context, pod *runtimeapi.PodSandboxConfig, handler string, c *runtimeapi.ContainerConfig) (podID, id string, err error) {
	if podID, err = e.RunPod(ctx, pod, handler); err != nil {
		return "", "", err
	}
	id, err = e.RunContainer(ctx, podID, pod, c)
	return podID, id, err
}

// Exec runs a command in a container.
func (e *Env) Exec(ctx context.Context, id string, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
	r, err := e.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 30})
	if err != nil {
		return nil, fmt.Errorf("ExecSync: %w", err)
	}
	return r, nil
}

// StopContainer stops it within a grace period of seconds.
func (e *Env) StopContainer(ctx context.Context, id string, grace int64) error {
	if _, err := e.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		return fmt.Errorf("StopContainer: %w", err)
	}
	return nil
}

// RemoveContainer removes it.
func (e *Env) RemoveContainer(ctx context.Context, id string) error {
	if _, err := e.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("RemoveContainer: %w", err)
	}
	return nil
}

// StopPod stops a pod.
func (e *Env) StopPod(ctx context.Context, id string) error {
	if _, err := e.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	return nil
}

// RemovePod removes a pod.
func (e *Env) RemovePod(ctx context.Context, id string) error {
	if _, err := e.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

// Down stops and removes a pod and all in it.
func (e *Env) Down(ctx context.Context, podID string) error {
	if err := e.StopPod(ctx, podID); err != nil {
		return err
	}
	return e.RemovePod(ctx, podID)
}

// Status of a container.
func (e *Env) Status(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	r, err := e.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return nil, err
	}
	return r.Status, nil
}

// AwaitExit returns a container's status once it has exited.
func (e *Env) AwaitExit(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	for {
		s, err := e.Status(ctx, id)
		if err != nil || s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("container %s has not exited: %w", id, ctx.Err())
		case <-time.After(5 * time.Millisecond): // CRI has no call that waits
		}
	}
}

// PodIP is a pod's address.
func (e *Env) PodIP(ctx context.Context, id string) (string, error) {
	r, err := e.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return "", fmt.Errorf("PodSandboxStatus: %w", err)
	}
	if r.Status.GetNetwork().GetIp() == "" {
		return "", fmt.Errorf("pod %s has no address", id)
	}
	return r.Status.Network.Ip, nil
}
