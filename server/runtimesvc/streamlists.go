package runtimesvc

import (
	"context"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The stream calls answer with what their list calls do, in messages of
// bounded size, so that no number of items is too large to send.

// chunkBytes is how much one message takes, but for an item that is larger itself.
const chunkBytes = 1 << 20

// statsBatch is how many items are read before they are sent.
const statsBatch = 64

// sendChunks sends all items, each in one message.
func sendChunks[T proto.Message](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 1, proto.Size(items[0])
		for n < len(items) {
			if size += proto.Size(items[n]); size > chunkBytes {
				break
			}
			n++
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// sendBatches reads items a batch at a time and sends what each gave.
func sendBatches[T any, R proto.Message](ctx context.Context, items []T, read func(context.Context, []T) ([]R, error), send func([]R) error) error {
	for len(items) > 0 {
		n := min(statsBatch, len(items))
		out, err := read(ctx, items[:n])
		if err != nil {
			return err
		}
		if err := sendChunks(out, send); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// StreamPodSandboxes is ListPodSandbox in several messages.
func (s *Service) StreamPodSandboxes(req *cri.StreamPodSandboxesRequest, stream cri.RuntimeService_StreamPodSandboxesServer) error {
	return s.err(sendChunks(s.listPods(req.GetFilter()), func(list []*cri.PodSandbox) error {
		return stream.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: list})
	}))
}

// StreamContainers is ListContainers in several messages.
func (s *Service) StreamContainers(req *cri.StreamContainersRequest, stream cri.RuntimeService_StreamContainersServer) error {
	return s.err(sendChunks(s.listContainers(req.GetFilter()), func(list []*cri.Container) error {
		return stream.Send(&cri.StreamContainersResponse{Containers: list})
	}))
}

// StreamContainerStats is ListContainerStats in several messages.
func (s *Service) StreamContainerStats(req *cri.StreamContainerStatsRequest, stream cri.RuntimeService_StreamContainerStatsServer) error {
	return s.err(sendBatches(stream.Context(), s.measurable(req.GetFilter()), s.statsOf, func(list []*cri.ContainerStats) error {
		return stream.Send(&cri.StreamContainerStatsResponse{ContainerStats: list})
	}))
}

// StreamPodSandboxStats is ListPodSandboxStats in several messages.
func (s *Service) StreamPodSandboxStats(req *cri.StreamPodSandboxStatsRequest, stream cri.RuntimeService_StreamPodSandboxStatsServer) error {
	return s.err(sendBatches(stream.Context(), s.measurablePods(req.GetFilter()), s.podStatsOf, func(list []*cri.PodSandboxStats) error {
		return stream.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: list})
	}))
}
