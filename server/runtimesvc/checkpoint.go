package runtimesvc

import (
	"context"
	"fmt"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Snapshots writes checkpoints and makes pods of them. The two that write leave
// the containers running, and nothing behind when they fail; RestorePod is
// idempotent by the pod's name and leaves nothing behind either.
type Snapshots interface {
	// CheckpointContainer writes an archive at location. A timeout of 0 is the
	// implementation's own.
	CheckpointContainer(ctx context.Context, id runtime.ContainerID, location string, timeout time.Duration) error
	// CheckpointPod writes into the empty directory dir, bounded by ctx.
	CheckpointPod(ctx context.Context, id runtime.PodID, dir string, containers []runtime.ContainerID, o runtime.CheckpointOptions) error
	// RestorePod makes a pod and containers that StartContainer then starts.
	RestorePod(ctx context.Context, r runtime.RestoreRequest) (runtime.PodID, []runtime.Restored, error)
}

// maxPodContainers bounds the containers of one checkpoint.
const maxPodContainers = 1024

// optTCP is the option under which connections are kept.
const optTCP = "tcp-established"

// CheckpointContainer writes an archive of a running container.
func (s *Service) CheckpointContainer(ctx context.Context, req *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	c := &check{}
	location := c.abs("location", req.GetLocation())
	timeout, err := seconds("timeout", req.GetTimeout())
	if err == nil {
		err = c.err()
	}
	var ctr runtime.Container
	if err == nil {
		ctr, err = s.container(req.GetContainerId())
	}
	if err == nil {
		err = s.o.Snapshots.CheckpointContainer(ctx, ctr.ID, location, timeout)
	}
	if err != nil {
		return nil, s.err(fmt.Errorf("checkpoint container: %w", err))
	}
	return &cri.CheckpointContainerResponse{}, nil
}

// CheckpointPod writes a checkpoint of a pod, its containers cut at one instant.
func (s *Service) CheckpointPod(ctx context.Context, req *cri.CheckpointPodRequest) (*cri.CheckpointPodResponse, error) {
	c := &check{}
	dir := c.abs("output_path", req.GetOutputPath())
	opts := c.snapshotOptions(req.GetOptions())
	if len(req.GetContainerIds()) == 0 {
		c.fail("container_ids", "must not be empty")
	}
	c.count("container_ids", len(req.GetContainerIds()), maxPodContainers)
	err := c.err()
	var p runtime.Pod
	if err == nil {
		p, err = s.pod(req.GetPodSandboxId())
	}
	var ids []runtime.ContainerID
	if err == nil {
		ids, err = s.chosen(req.GetContainerIds())
	}
	if err == nil {
		err = s.o.Snapshots.CheckpointPod(ctx, p.ID, dir, ids, opts)
	}
	if err != nil {
		return nil, s.err(fmt.Errorf("checkpoint pod: %w", err))
	}
	return &cri.CheckpointPodResponse{}, nil
}

// chosen finds containers. Two prefixes of one id are one container, twice.
func (s *Service) chosen(in []string) ([]runtime.ContainerID, error) {
	seen := map[runtime.ContainerID]bool{}
	out := make([]runtime.ContainerID, 0, len(in))
	for _, id := range in {
		c, err := s.container(id)
		if err != nil {
			return nil, err
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("%w: container_ids: %s is there twice", runtime.ErrInvalid, c.ID)
		}
		seen[c.ID] = true
		out = append(out, c.ID)
	}
	return out, nil
}

func (c *check) snapshotOptions(in map[string]string) runtime.CheckpointOptions {
	var out runtime.CheckpointOptions
	for k, v := range in {
		b, err := strconv.ParseBool(v)
		switch {
		case k != optTCP:
			c.fail("options", "%.80q is no option; there is: %s", k, optTCP)
		case err != nil:
			c.fail("options", "%s: %.80q is neither true nor false", k, v)
		default:
			out.TCPEstablished = b
		}
	}
	return out
}

// RestorePod makes a pod of a checkpoint. Its containers are created; each
// runs on from where it was once it is started.
func (s *Service) RestorePod(ctx context.Context, req *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	r, err := s.restoreRequest(ctx, req)
	if err != nil {
		return nil, s.err(fmt.Errorf("restore pod: %w", err))
	}
	id, made, err := s.o.Snapshots.RestorePod(ctx, r)
	if err != nil {
		return nil, s.err(fmt.Errorf("restore pod %s/%s: %w", r.Config.Name.Namespace, r.Config.Name.Name, err))
	}
	resp := &cri.RestorePodResponse{PodSandboxId: string(id)}
	for _, c := range made {
		resp.RestoredContainers = append(resp.RestoredContainers, &cri.RestoredContainer{Name: c.Name, ContainerId: string(c.ID)})
	}
	return resp, nil
}

func (s *Service) restoreRequest(ctx context.Context, req *cri.RestorePodRequest) (runtime.RestoreRequest, error) {
	c := &check{}
	r := runtime.RestoreRequest{Path: c.abs("checkpoint_path", req.GetCheckpointPath()), Options: c.snapshotOptions(req.GetOptions())}
	if req.GetConfig() == nil {
		c.fail("config", "must be given")
	}
	if len(req.GetContainerConfigs()) == 0 {
		c.fail("container_configs", "must not be empty")
	}
	c.count("container_configs", len(req.GetContainerConfigs()), maxPodContainers)
	if err := c.err(); err != nil {
		return r, err
	}
	handler, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return r, err
	}
	s.warnUnknown("pod", req.GetConfig().ProtoReflect())
	if r.Config, err = podConfig(req.GetConfig(), handler, s.o.Host); err != nil {
		return r, err
	}
	facts := containerFacts{
		pod: runtime.Pod{Config: r.Config}, handler: handler, host: s.o.Host,
		target: func(string) (runtime.Container, error) {
			return runtime.Container{}, fmt.Errorf("%w: a restored container has no target", runtime.ErrInvalid)
		},
	}
	names := map[string]bool{}
	for i, in := range req.GetContainerConfigs() {
		s.warnUnknown("container", in.ProtoReflect())
		cfg, err := containerConfig(in, facts)
		if err == nil && names[cfg.Name.Name] {
			err = fmt.Errorf("%w: metadata.name: %q is there twice", runtime.ErrInvalid, cfg.Name.Name)
		}
		if err == nil {
			err = s.resolveImage(ctx, in.GetImage(), &cfg)
		}
		if err == nil {
			err = s.resolveVolumes(ctx, &cfg)
		}
		if err != nil {
			return r, fmt.Errorf("%s: %w", index("container_configs", i), err)
		}
		names[cfg.Name.Name] = true
		r.Containers = append(r.Containers, cfg)
	}
	return r, nil
}
