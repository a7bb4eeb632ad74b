package runtimesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Events of the fake: its events in order, then its end.
func (f *fake) Events(ctx context.Context, ready func() error, each func(*runtime.Event) error) error {
	if err := ready(); err != nil {
		return err
	}
	for _, e := range f.events {
		if err := each(e); err != nil {
			return err
		}
	}
	if f.eventsEnd != nil {
		return f.eventsEnd
	}
	<-ctx.Done()
	return ctx.Err()
}

// dial serves s on a socket and returns a client.
func dial(t *testing.T, s *Service) cri.RuntimeServiceClient {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return cri.NewRuntimeServiceClient(c)
}

func TestGetContainerEvents(t *testing.T) {
	f := newFake()
	pod, ctr := f.pods[0], f.containers[0]
	creating := ctr
	creating.State = runtime.ContainerCreating
	f.events = []*runtime.Event{{
		Type: runtime.EventStopped, ID: string(ctr.ID), At: 7, Pod: pod, Containers: []*runtime.Container{&ctr, &creating},
	}}
	f.eventsEnd = fmt.Errorf("%w: 3", runtime.ErrLost)
	s := newService(f)
	s.o.ToStatus = func(err error) error {
		if errors.Is(err, runtime.ErrLost) {
			return status.Error(codes.ResourceExhausted, err.Error())
		}
		return err
	}
	stream, err := dial(t, s).GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	e, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if e.ContainerId != string(ctr.ID) || e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT || e.CreatedAt != 7 ||
		e.PodSandboxStatus.GetId() != string(pod.ID) || len(e.ContainersStatuses) != 1 {
		t.Errorf("event is %v", e)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "3") {
		t.Errorf("ended with %v", err)
	}
}

func all[R any](t *testing.T, stream interface{ Recv() (R, error) }, err error) (out []R) {
	t.Helper()
	for err == nil {
		var r R
		if r, err = stream.Recv(); err == nil {
			out = append(out, r)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out
}

func same[T proto.Message](t *testing.T, what string, streamed, listed []T) {
	t.Helper()
	if len(streamed) != len(listed) || len(listed) == 0 {
		t.Fatalf("%s: %d streamed, %d listed", what, len(streamed), len(listed))
	}
	for i := range listed {
		if !proto.Equal(streamed[i], listed[i]) {
			t.Errorf("%s %d: streamed %v, listed %v", what, i, streamed[i], listed[i])
		}
	}
}

// many is a fake with so much in it that one message does not do.
func many() *fake {
	f := newFake()
	f.pods, f.containers = nil, nil
	for i := range 300 {
		labels := map[string]string{"big": strings.Repeat("x", 10<<10)}
		id := fmt.Sprintf("%064x", i)
		f.pods = append(f.pods, runtime.Pod{ID: runtime.PodID(id), State: runtime.PodReady, Config: runtime.PodConfig{Labels: labels}})
		f.containers = append(f.containers, runtime.Container{
			ID: runtime.ContainerID(id), PodID: runtime.PodID(id), State: runtime.ContainerRunning,
			Config: runtime.ContainerConfig{Labels: labels},
		})
	}
	return f
}

// Every stream call gives what its list call does.
func TestStreamsEqualLists(t *testing.T) {
	c, ctx := dial(t, newService(many())), t.Context()
	var pods []*cri.PodSandbox
	ps, err := c.StreamPodSandboxes(ctx, &cri.StreamPodSandboxesRequest{})
	chunks := all(t, ps, err)
	if len(chunks) < 3 {
		t.Errorf("%d messages for 3 MB", len(chunks))
	}
	for _, r := range chunks {
		pods = append(pods, r.PodSandboxes...)
	}
	lp, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "pod", pods, lp.Items)

	var ctrs []*cri.Container
	cs, err := c.StreamContainers(ctx, &cri.StreamContainersRequest{})
	for _, r := range all(t, cs, err) {
		ctrs = append(ctrs, r.Containers...)
	}
	lc, err := c.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "container", ctrs, lc.Containers)

	var cstats []*cri.ContainerStats
	ss, err := c.StreamContainerStats(ctx, &cri.StreamContainerStatsRequest{})
	for _, r := range all(t, ss, err) {
		cstats = append(cstats, r.ContainerStats...)
	}
	ls, err := c.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "container stats", cstats, ls.Stats)

	var pstats []*cri.PodSandboxStats
	pst, err := c.StreamPodSandboxStats(ctx, &cri.StreamPodSandboxStatsRequest{})
	for _, r := range all(t, pst, err) {
		pstats = append(pstats, r.PodSandboxStats...)
	}
	lps, err := c.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "pod stats", pstats, lps.Stats)

	none, err := c.StreamContainers(ctx, &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{Id: "ff"}})
	if got := all(t, none, err); len(got) != 0 {
		t.Errorf("%d messages for nothing", len(got))
	}
}
