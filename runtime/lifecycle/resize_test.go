package lifecycle

import (
	"errors"
	"testing"

	"github.com/ocid-io/ocid/runtime"
)

func TestUpdatePodResources(t *testing.T) {
	m := newManager(t, newWorld(t))
	ctx := t.Context()
	id, err := m.RunPod(ctx, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	shares := uint64(7)
	want := &runtime.Resources{CPUShares: &shares}
	if err := m.UpdatePodResources(ctx, id, want, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdatePodResources(ctx, id, nil, want); err != nil {
		t.Fatal(err)
	}
	p, err := m.Pod(string(id))
	if err != nil || p.Resources == nil || *p.Resources.CPUShares != 7 || p.Overhead == nil {
		t.Errorf("%+v, %v", p, err)
	}
	// A retry of the pod's making is still known as one.
	if again, err := m.RunPod(ctx, podConfig("a")); err != nil || again != id {
		t.Errorf("%s, %v", again, err)
	}
	if err := m.StopPod(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdatePodResources(ctx, id, want, nil); !errors.Is(err, runtime.ErrState) {
		t.Errorf("a stopped pod: %v", err)
	}
	if err := m.UpdatePodResources(ctx, "none", want, nil); !errors.Is(err, runtime.ErrNotFound) {
		t.Error(err)
	}
}
