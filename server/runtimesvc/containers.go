package runtimesvc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
)

// CreateContainer creates a container in a pod, or joins or returns the one
// that has its name. The pod's configuration in the request is a copy for
// convenience; the one that the pod was run with counts.
func (s *Service) CreateContainer(ctx context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, s.err(err)
	}
	if req.GetConfig() == nil {
		return nil, s.err(fmt.Errorf("%w: config: must be given", runtime.ErrInvalid))
	}
	s.warnUnknown("container", req.GetConfig().ProtoReflect())
	handler, err := s.handler(p.Config.Handler)
	if err != nil {
		return nil, s.err(err)
	}
	cfg, err := containerConfig(req.GetConfig(), containerFacts{
		pod: p, handler: handler, host: s.o.Host, target: s.o.Records.Container,
	})
	if err != nil {
		return nil, s.err(err)
	}
	if err := s.resolveImage(ctx, req.GetConfig().GetImage(), &cfg); err != nil {
		return nil, s.err(err)
	}
	if err := s.resolveVolumes(ctx, &cfg); err != nil {
		return nil, s.err(err)
	}
	id, err := s.o.Containers.CreateContainer(ctx, p.ID, cfg)
	if err != nil {
		return nil, s.err(volumeFailed(fmt.Errorf("create container %s in pod %s: %w", cfg.Name.Name, p.ID, err)))
	}
	return &cri.CreateContainerResponse{ContainerId: string(id)}, nil
}

func (s *Service) resolveImage(ctx context.Context, in *cri.ImageSpec, cfg *runtime.ContainerConfig) error {
	defer stages.Start(ctx, "resolve image")()
	id, err := s.o.Images.Resolve(ctx, in.GetImage())
	if err != nil {
		return fmt.Errorf("image %q: %w", in.GetImage(), err)
	}
	if ref := in.GetImageRef(); ref != "" && ref != in.GetImage() {
		other, err := s.o.Images.Resolve(ctx, ref)
		if err != nil {
			return fmt.Errorf("image.image_ref %q: %w", ref, err)
		}
		if other != id {
			return fmt.Errorf("%w: image.image_ref: %q is not the image %q", runtime.ErrInvalid, ref, in.GetImage())
		}
	}
	cfg.ImageID = id
	if r, ok := s.o.Images.(ImageReferrer); ok {
		cfg.ImageRef = r.Reference(ctx, id)
	}
	return nil
}

// resolveVolumes finds the images that are to be mounted.
func (s *Service) resolveVolumes(ctx context.Context, cfg *runtime.ContainerConfig) error {
	for i := range cfg.Mounts {
		m := &cfg.Mounts[i]
		if m.Image == "" {
			continue
		}
		var err error
		if m.ImageID, err = s.o.Images.Resolve(ctx, m.Image); err != nil {
			return volumeFailed(fmt.Errorf("%s.image: %w: %q is not here, pull it first: %w", index("mounts", i), runtime.ErrImageVolume, m.Image, err))
		}
	}
	return nil
}

// volumeFailed begins an error about an image volume with the word by which
// the kubelet knows it.
func volumeFailed(err error) error {
	if errors.Is(err, runtime.ErrImageVolume) {
		return fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	return err
}

// container finds a container. What cannot be an id names nothing.
func (s *Service) container(id string) (runtime.Container, error) {
	if id == "" {
		return runtime.Container{}, fmt.Errorf("%w: container_id: must not be empty", runtime.ErrInvalid)
	}
	if !isID(id) {
		return runtime.Container{}, fmt.Errorf("container %.80q: %w", id, runtime.ErrNotFound)
	}
	return s.o.Records.Container(id)
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, req *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err == nil {
		err = s.o.Containers.StartContainer(ctx, c.ID)
	}
	if err != nil {
		return nil, s.err(fmt.Errorf("start container: %w", err))
	}
	return &cri.StartContainerResponse{}, nil
}

// StopContainer stops a container; one that does not exist is stopped.
func (s *Service) StopContainer(ctx context.Context, req *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, s.err(err)
	}
	c, err := s.container(req.GetContainerId())
	if err == nil {
		err = s.o.Containers.StopContainer(ctx, c.ID, timeout)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return nil, s.err(fmt.Errorf("stop container: %w", err))
	}
	return &cri.StopContainerResponse{}, nil
}

// seconds turns a client's seconds into a duration that does not overflow.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, fmt.Errorf("%w: %s: %d is negative", runtime.ErrInvalid, field, n)
	}
	return time.Duration(min(n, math.MaxInt32)) * time.Second, nil
}

// RemoveContainer removes a container, stopping it if it runs; one that does
// not exist is removed.
func (s *Service) RemoveContainer(ctx context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err == nil {
		err = s.o.Containers.RemoveContainer(ctx, c.ID)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return nil, s.err(fmt.Errorf("remove container: %w", err))
	}
	s.rates.forget(string(c.ID))
	return &cri.RemoveContainerResponse{}, nil
}

// ListContainers lists containers from memory.
func (s *Service) ListContainers(_ context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: s.listContainers(req.GetFilter())}, nil
}

func (s *Service) listContainers(f *cri.ContainerFilter) []*cri.Container {
	views := s.o.Records.ContainerViews()
	out := make([]*cri.Container, 0, len(views))
	for _, c := range views {
		if containerWanted(c, f) {
			out = append(out, criContainer(c))
		}
	}
	return out
}

func criContainer(c *runtime.Container) *cri.Container {
	return &cri.Container{
		Id:           string(c.ID),
		PodSandboxId: string(c.PodID),
		Metadata:     containerMetadata(c.Config.Name),
		Image:        imageSpec(c.Config),
		ImageRef:     imageRef(c.Config),
		ImageId:      c.Config.ImageID,
		State:        containerState(c.State),
		CreatedAt:    c.CreatedAt,
		Labels:       c.Config.Labels,
		Annotations:  c.Config.Annotations,
	}
}

// ContainerStatus describes one container.
func (s *Service) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	if c.State == runtime.ContainerCreating {
		return nil, s.err(fmt.Errorf("container %s is still being created: %w", c.ID, runtime.ErrNotFound))
	}
	resp := &cri.ContainerStatusResponse{Status: containerStatus(c)}
	if req.GetVerbose() {
		resp.Info = s.verbose(map[string]any{"info": map[string]any{
			"pid": c.PID, "sandboxID": c.PodID, "state": c.State, "cgroupPath": c.CgroupPath,
			"intents": c.Intents, "config": c.Config,
		}})
	}
	return resp, nil
}

func containerStatus(c runtime.Container) *cri.ContainerStatus {
	out := &cri.ContainerStatus{
		Id:          string(c.ID),
		Metadata:    containerMetadata(c.Config.Name),
		State:       containerState(c.State),
		CreatedAt:   c.CreatedAt,
		StartedAt:   c.StartedAt,
		FinishedAt:  c.FinishedAt,
		ExitCode:    c.ExitCode,
		Image:       imageSpec(c.Config),
		ImageRef:    imageRef(c.Config),
		ImageId:     c.Config.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.Labels,
		Annotations: c.Config.Annotations,
		LogPath:     c.Config.LogPath,
		Resources:   &cri.ContainerResources{Linux: criResources(c.Config.Resources)},
		StopSignal:  cri.Signal_SIGNAL_SIGTERM,
	}
	for _, sig := range []string{c.StopSignal, c.Config.StopSignal} {
		if v := criSignal(sig); v != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
			out.StopSignal = v
			break
		}
	}
	for _, m := range c.Config.Mounts {
		out.Mounts = append(out.Mounts, criMount(m))
	}
	if u := c.User; u != nil {
		user := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
		for _, g := range u.Groups {
			user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
		}
		out.User = &cri.ContainerUser{Linux: user}
	}
	return out
}

func criMount(m runtime.Mount) *cri.Mount {
	out := &cri.Mount{
		ContainerPath:     m.ContainerPath,
		HostPath:          m.HostPath,
		Readonly:          m.ReadOnly,
		RecursiveReadOnly: m.RecursiveReadOnly,
		SelinuxRelabel:    m.SELinuxRelabel,
		UidMappings:       criMappings(m.UIDMappings),
		GidMappings:       criMappings(m.GIDMappings),
		ImageSubPath:      m.ImageSubPath,
		MountOptions:      m.Options,
	}
	if m.Image != "" {
		out.Image = &cri.ImageSpec{Image: m.Image, ImageRef: m.ImageID}
	}
	switch m.Propagation {
	case runtime.PropagationHostToContain:
		out.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case runtime.PropagationBidirectional:
		out.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	case runtime.PropagationPrivate:
	}
	return out
}

func imageSpec(cfg runtime.ContainerConfig) *cri.ImageSpec {
	return &cri.ImageSpec{Image: cfg.Image, UserSpecifiedImage: cfg.Image}
}

func imageRef(cfg runtime.ContainerConfig) string {
	if cfg.ImageRef != "" {
		return cfg.ImageRef
	}
	return cfg.ImageID
}

func containerMetadata(n runtime.ContainerName) *cri.ContainerMetadata {
	return &cri.ContainerMetadata{Name: n.Name, Attempt: n.Attempt}
}

func containerListed(st runtime.ContainerState) bool {
	return st == runtime.ContainerCreated || st == runtime.ContainerRunning || st == runtime.ContainerExited
}

func containerState(st runtime.ContainerState) cri.ContainerState {
	switch st {
	case runtime.ContainerCreated:
		return cri.ContainerState_CONTAINER_CREATED
	case runtime.ContainerRunning:
		return cri.ContainerState_CONTAINER_RUNNING
	case runtime.ContainerExited, runtime.ContainerRemoving:
		return cri.ContainerState_CONTAINER_EXITED
	default:
		return cri.ContainerState_CONTAINER_UNKNOWN
	}
}

// UpdateContainerResources changes limits; what the request leaves at its
// default stays as it is.
func (s *Service) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	chk := &check{}
	if req.GetWindows() != nil {
		chk.fail("windows", "Windows containers are not supported")
	}
	chk.stringMap("annotations", req.GetAnnotations())
	if req.GetLinux() == nil {
		chk.fail("linux", "must be given")
	}
	res := chk.resources("linux", req.GetLinux(), s.o.Host)
	if err := chk.err(); err != nil {
		return nil, s.err(err)
	}
	if err := s.o.Tuning.UpdateResources(ctx, c.ID, *res); err != nil {
		return nil, s.err(fmt.Errorf("update container %s: %w", c.ID, err))
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes a running container write to a new log file.
func (s *Service) ReopenContainerLog(ctx context.Context, req *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, s.err(err)
	}
	if c.State != runtime.ContainerRunning {
		return nil, s.err(fmt.Errorf("%w: container %s is %s, and only a running one has a log to reopen", runtime.ErrState, c.ID, c.State))
	}
	if err := s.o.Tuning.ReopenLog(ctx, c.ID); err != nil {
		return nil, s.err(fmt.Errorf("reopen log of container %s: %w", c.ID, err))
	}
	return &cri.ReopenContainerLogResponse{}, nil
}
