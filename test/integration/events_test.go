package integration

import (
	"context"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// TestContainerEvents follows one pod's life, with an end that nobody asked
// for, and compares each event with what the calls say.
func TestContainerEvents(t *testing.T) {
	e, ctx := env(t)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	check(t, err)
	_, err = stream.Header()
	check(t, err)
	pod := e.Pod("events", true)
	podID, id, err := e.Up(ctx, pod, "", harness.Shell("c", "exit 7"))
	check(t, err)
	st, err := e.AwaitExit(ctx, id)
	check(t, err)
	check(t, e.RemoveContainer(ctx, id))
	check(t, e.StopPod(ctx, podID))
	check(t, e.RemovePod(ctx, podID))
	type fact struct {
		id string
		of runtimeapi.ContainerEventType
	}
	const (
		created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
		started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	)
	for _, want := range []fact{
		{podID, created}, {podID, started}, {id, created}, {id, started}, {id, stopped}, {id, deleted}, {podID, stopped}, {podID, deleted},
	} {
		got, err := stream.Recv()
		check(t, err)
		if (fact{got.ContainerId, got.ContainerEventType}) != want {
			t.Fatalf("got %s of %.8s, want %s of %.8s", got.ContainerEventType, got.ContainerId, want.of, want.id)
		}
		if got.PodSandboxStatus.GetMetadata().GetUid() != pod.Metadata.Uid {
			t.Errorf("%s: pod is %v", want.of, got.PodSandboxStatus)
		}
		if want == (fact{id, stopped}) {
			if len(got.ContainersStatuses) != 1 || got.ContainersStatuses[0].ExitCode != 7 || got.ContainersStatuses[0].FinishedAt != st.FinishedAt {
				t.Errorf("statuses with the end: %v", got.ContainersStatuses)
			}
			t.Logf("the end was told %s after the monitor saw it", time.Duration(got.CreatedAt-st.FinishedAt))
		}
	}
}
