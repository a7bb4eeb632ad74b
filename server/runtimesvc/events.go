package runtimesvc

import (
	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// GetContainerEvents sends what happens to containers and pods from now on,
// each with the statuses of its pod and of the pod's containers at that time.
// The response's header goes out when no event can be missed any more. The
// stream of a client that reads too slowly ends with ResourceExhausted.
func (s *Service) GetContainerEvents(_ *cri.GetEventsRequest, stream cri.RuntimeService_GetContainerEventsServer) error {
	ready := func() error { return stream.SendHeader(metadata.MD{}) }
	err := s.o.Events.Events(stream.Context(), ready, func(e *runtime.Event) error {
		return stream.Send(criEvent(e))
	})
	return s.err(err)
}

func criEvent(e *runtime.Event) *cri.ContainerEventResponse {
	out := &cri.ContainerEventResponse{
		ContainerId: e.ID, ContainerEventType: criEventType(e.Type), CreatedAt: e.At,
		PodSandboxStatus: podStatus(e.Pod),
	}
	for _, c := range e.Containers {
		if containerListed(c.State) {
			out.ContainersStatuses = append(out.ContainersStatuses, containerStatus(*c))
		}
	}
	return out
}

func criEventType(t runtime.EventType) cri.ContainerEventType {
	switch t {
	case runtime.EventStarted:
		return cri.ContainerEventType_CONTAINER_STARTED_EVENT
	case runtime.EventStopped:
		return cri.ContainerEventType_CONTAINER_STOPPED_EVENT
	case runtime.EventDeleted:
		return cri.ContainerEventType_CONTAINER_DELETED_EVENT
	default:
		return cri.ContainerEventType_CONTAINER_CREATED_EVENT
	}
}
