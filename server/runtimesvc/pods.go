package runtimesvc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// RunPodSandbox runs a pod, or joins or returns the one that has its name.
func (s *Service) RunPodSandbox(ctx context.Context, req *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	handler, err := s.handler(req.GetRuntimeHandler())
	if err != nil {
		return nil, s.err(err)
	}
	if req.GetConfig() == nil {
		return nil, s.err(fmt.Errorf("%w: config: must be given", runtime.ErrInvalid))
	}
	s.warnUnknown("pod", req.ProtoReflect())
	cfg, err := podConfig(req.GetConfig(), handler, s.o.Host)
	if err != nil {
		return nil, s.err(err)
	}
	id, err := s.o.Pods.RunPod(ctx, cfg)
	if err != nil {
		return nil, s.err(fmt.Errorf("run pod %s/%s: %w", cfg.Name.Namespace, cfg.Name.Name, err))
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// handler finds a configured runtime handler; "" is the default one.
func (s *Service) handler(name string) (runtime.HandlerInfo, error) {
	handlers := s.o.Node.Handlers()
	known := make([]string, 0, len(handlers))
	for _, h := range handlers {
		if h.Name == name {
			return h, nil
		}
		if h.Name != "" {
			known = append(known, h.Name)
		}
	}
	if name == "" {
		return runtime.HandlerInfo{}, nil
	}
	return runtime.HandlerInfo{}, fmt.Errorf("%w: runtime_handler: %q is not configured; there are: %s",
		runtime.ErrInvalid, name, strings.Join(known, ", "))
}

// pod finds a pod. What cannot be an id names nothing.
func (s *Service) pod(id string) (runtime.Pod, error) {
	if id == "" {
		return runtime.Pod{}, fmt.Errorf("%w: pod_sandbox_id: must not be empty", runtime.ErrInvalid)
	}
	if !isID(id) {
		return runtime.Pod{}, fmt.Errorf("pod %.80q: %w", id, runtime.ErrNotFound)
	}
	return s.o.Pods.Pod(id)
}

// StopPodSandbox stops a pod; one that does not exist is stopped.
func (s *Service) StopPodSandbox(ctx context.Context, req *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err == nil {
		err = s.o.Pods.StopPod(ctx, p.ID)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return nil, s.err(fmt.Errorf("stop pod: %w", err))
	}
	return &cri.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a pod with all its containers; one that does not
// exist is removed.
func (s *Service) RemovePodSandbox(ctx context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err == nil {
		err = s.o.Pods.RemovePod(ctx, p.ID)
	}
	if err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return nil, s.err(fmt.Errorf("remove pod: %w", err))
	}
	s.rates.forget(string(p.ID))
	return &cri.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes one pod.
func (s *Service) PodSandboxStatus(ctx context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, s.err(err)
	}
	if p.State == runtime.PodCreating {
		return nil, s.err(fmt.Errorf("pod %s is still being created: %w", p.ID, runtime.ErrNotFound))
	}
	resp := &cri.PodSandboxStatusResponse{Status: podStatus(p), Timestamp: time.Now().UnixNano()}
	for _, c := range s.o.Records.ContainerViewsOf(p.ID) {
		if containerListed(c.State) {
			resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(*c))
		}
	}
	if req.GetVerbose() {
		info := map[string]any{
			"pid": p.MonitorPID, "state": p.State, "intents": p.Intents, "config": p.Config,
			"resources": p.Resources, "overhead": p.Overhead,
		}
		if n, ok := s.o.Node.(NetworkChecker); ok && runtime.Has(p.Intents, runtime.IntentNetwork) {
			info["network"] = "as attached"
			if err := n.CheckNetwork(ctx, p.ID); err != nil {
				info["network"] = err.Error()
			}
		}
		resp.Info = s.verbose(map[string]any{"info": info})
	}
	return resp, nil
}

func podStatus(p runtime.Pod) *cri.PodSandboxStatus {
	return &cri.PodSandboxStatus{
		Id:             string(p.ID),
		Metadata:       podMetadata(p.Config.Name),
		State:          podState(p.State),
		CreatedAt:      p.CreatedAt,
		Network:        podNetwork(p),
		Linux:          &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: namespaceOptions(p.Config.Namespaces)}},
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

func podNetwork(p runtime.Pod) *cri.PodSandboxNetworkStatus {
	out := &cri.PodSandboxNetworkStatus{}
	if p.Config.Namespaces.Network == runtime.NamespaceNode {
		return out
	}
	for i, ip := range p.IPs {
		if i == 0 {
			out.Ip = ip
			continue
		}
		out.AdditionalIps = append(out.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	return out
}

// UpdatePodSandboxResources notes what the pod as a whole may use. The cgroup
// that holds it is the client's, who changes that first.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	p, err := s.pod(req.GetPodSandboxId())
	if err != nil {
		return nil, s.err(err)
	}
	chk := &check{}
	var resources, overhead *runtime.Resources
	if req.GetResources() != nil {
		resources = chk.resources("resources", req.GetResources(), s.o.Host)
	}
	if req.GetOverhead() != nil {
		overhead = chk.resources("overhead", req.GetOverhead(), s.o.Host)
	}
	if err := chk.err(); err != nil {
		return nil, s.err(err)
	}
	if err := s.o.Tuning.UpdatePodResources(ctx, p.ID, resources, overhead); err != nil {
		return nil, s.err(fmt.Errorf("update pod %s: %w", p.ID, err))
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, nil
}

// ListPodSandbox lists pods from memory.
func (s *Service) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: s.listPods(req.GetFilter())}, nil
}

func (s *Service) listPods(f *cri.PodSandboxFilter) []*cri.PodSandbox {
	views := s.o.Pods.PodViews()
	out := make([]*cri.PodSandbox, 0, len(views))
	for _, p := range views {
		if podWanted(p, f) {
			out = append(out, criPod(p))
		}
	}
	return out
}

func criPod(p *runtime.Pod) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id:             string(p.ID),
		Metadata:       podMetadata(p.Config.Name),
		State:          podState(p.State),
		CreatedAt:      p.CreatedAt,
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

// matches holds for an id that begins with prefix and labels that have all of
// selector's; empty ones match anything.
func matches(id, prefix string, labels, selector map[string]string) bool {
	if !strings.HasPrefix(id, prefix) {
		return false
	}
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func podListed(st runtime.PodState) bool {
	return st == runtime.PodReady || st == runtime.PodNotReady
}

func podState(st runtime.PodState) cri.PodSandboxState {
	if st == runtime.PodReady {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func podMetadata(n runtime.PodName) *cri.PodSandboxMetadata {
	return &cri.PodSandboxMetadata{Name: n.Name, Namespace: n.Namespace, Uid: n.UID, Attempt: n.Attempt}
}

func namespaceOptions(ns runtime.Namespaces) *cri.NamespaceOption {
	out := &cri.NamespaceOption{
		Network:  namespaceMode(ns.Network),
		Pid:      namespaceMode(ns.PID),
		Ipc:      namespaceMode(ns.IPC),
		TargetId: string(ns.Target),
	}
	if u := ns.User; u != nil {
		out.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: criMappings(u.UIDs), Gids: criMappings(u.GIDs)}
	}
	return out
}

func criMappings(in []runtime.IDMapping) []*cri.IDMapping {
	var out []*cri.IDMapping
	for _, m := range in {
		out = append(out, &cri.IDMapping{ContainerId: m.ContainerID, HostId: m.HostID, Length: m.Length})
	}
	return out
}

func namespaceMode(m runtime.NamespaceMode) cri.NamespaceMode {
	switch m {
	case runtime.NamespaceContainer:
		return cri.NamespaceMode_CONTAINER
	case runtime.NamespaceNode:
		return cri.NamespaceMode_NODE
	case runtime.NamespaceTarget:
		return cri.NamespaceMode_TARGET
	default:
		return cri.NamespaceMode_POD
	}
}
