package runtimesvc

import (
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// received is what a client gets of an answer.
func received[M proto.Message](t *testing.T, answer M, err error, into M) M {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
	return into
}

// views is a fake whose lists stay the same until they change, as the ledger's do.
type views struct {
	*fake
	pods       []*runtime.Pod
	containers []*runtime.Container
}

func (v *views) PodViews() []*runtime.Pod             { return v.pods }
func (v *views) ContainerViews() []*runtime.Container { return v.containers }

// unlisted is a fake that must not be asked for lists.
type unlisted struct {
	*fake
	t *testing.T
}

func (u unlisted) PodViews() []*runtime.Pod {
	u.t.Error("all pods were listed")
	return nil
}

func (u unlisted) ContainerViews() []*runtime.Container {
	u.t.Error("all containers were listed")
	return nil
}

// TestStatusOfOneListsNoOthers: what is asked for each pod and container, again
// and again, costs the same however many there are.
func TestStatusOfOneListsNoOthers(t *testing.T) {
	f := newFake()
	s := newService(f)
	u := unlisted{f, t}
	s.o.Pods, s.o.Records = u, u
	p, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: string(f.pods[0].ID)})
	if err != nil || len(p.ContainersStatuses) == 0 {
		t.Errorf("%d containers, %v", len(p.GetContainersStatuses()), err)
	}
	if _, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: string(f.containers[0].ID)}); err != nil {
		t.Error(err)
	}
}

// TestWireEqualsLists: with any filter, and after any change.
func TestWireEqualsLists(t *testing.T) {
	f := newFake()
	v := &views{f, f.PodViews(), f.ContainerViews()}
	s := newService(f)
	s.o.Pods, s.o.Records = v, v
	w := s.Wire()
	ctx := t.Context()
	check := func(step string, want int) {
		t.Helper()
		total := 0
		for _, filter := range []*cri.ContainerFilter{
			nil,
			{},
			{Id: "cc"},
			{Id: "cc1"},
			{PodSandboxId: "aa1"},
			{LabelSelector: map[string]string{"app": "web"}},
			{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}},
			{Id: "none"},
		} {
			req := &cri.ListContainersRequest{Filter: filter}
			answer, err := w.ListContainers(ctx, req)
			got := received(t, answer, err, &cri.ListContainersResponse{})
			want, err := s.ListContainers(ctx, req)
			if err != nil || !proto.Equal(got, want) {
				t.Errorf("%s, filter %v: got %v, want %v, %v", step, filter, got, want, err)
			}
			total += len(got.Containers)
		}
		for _, filter := range []*cri.PodSandboxFilter{
			nil,
			{Id: "aa1"},
			{LabelSelector: map[string]string{"app": "web"}},
			{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}},
		} {
			req := &cri.ListPodSandboxRequest{Filter: filter}
			answer, err := w.ListPodSandbox(ctx, req)
			got := received(t, answer, err, &cri.ListPodSandboxResponse{})
			want, err := s.ListPodSandbox(ctx, req)
			if err != nil || !proto.Equal(got, want) {
				t.Errorf("%s, filter %v: got %v, want %v, %v", step, filter, got, want, err)
			}
		}
		if total == 0 && want > 0 {
			t.Errorf("%s: nothing was listed", step)
		}
	}
	check("first", 1)
	check("again", 1)
	exited := *v.containers[0]
	exited.State = runtime.ContainerExited
	changed := append([]*runtime.Container(nil), v.containers...)
	changed[0] = &exited
	v.containers = changed
	check("an exit", 1)
	v.containers = v.containers[1:]
	v.pods = v.pods[1:]
	check("removals", 1)
	v.containers, v.pods = nil, nil
	check("empty", 0)
}

func TestWireRefusesBadText(t *testing.T) {
	f := newFake()
	f.containers[0].Config.Image = "\xff"
	if _, err := newService(f).Wire().ListContainers(t.Context(), &cri.ListContainersRequest{}); err == nil {
		t.Error("text that no client can read was sent")
	}
}
