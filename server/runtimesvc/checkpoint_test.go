package runtimesvc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

func (f *fake) CheckpointContainer(_ context.Context, id runtime.ContainerID, location string, timeout time.Duration) error {
	f.call("checkpoint %s %s %s", id, location, timeout)
	return nil
}

func (f *fake) CheckpointPod(_ context.Context, id runtime.PodID, dir string, ids []runtime.ContainerID, o runtime.CheckpointOptions) error {
	f.call("checkpoint pod %s %s %v tcp=%t", id, dir, ids, o.TCPEstablished)
	return nil
}

func (f *fake) RestorePod(_ context.Context, r runtime.RestoreRequest) (runtime.PodID, []runtime.Restored, error) {
	f.call("restore %s %s tcp=%t", r.Path, r.Config.Name.Name, r.Options.TCPEstablished)
	var out []runtime.Restored
	for _, c := range r.Containers {
		f.created = c
		out = append(out, runtime.Restored{Name: c.Name.Name, ID: targetID})
	}
	return podID, out, nil
}

func TestCheckpointContainer(t *testing.T) {
	f := newFake()
	s := newService(f)
	if _, err := s.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{ContainerId: "cc1", Location: "/a//b.tar", Timeout: 7}); err != nil || f.calls[0] != "checkpoint cc1 /a/b.tar 7s" {
		t.Errorf("%v %v", err, f.calls)
	}
	for want, r := range map[string]*cri.CheckpointContainerRequest{
		"location":  {ContainerId: "cc1", Location: "rel.tar"},
		"timeout":   {ContainerId: "cc1", Location: "/a", Timeout: -1},
		"container": {Location: "/a"},
	} {
		if _, err := s.CheckpointContainer(t.Context(), r); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := s.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{ContainerId: "ee", Location: "/a"}); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func TestCheckpointPod(t *testing.T) {
	f := newFake()
	s := newService(f)
	good := &cri.CheckpointPodRequest{PodSandboxId: "aa1", OutputPath: "/d", ContainerIds: []string{"cc1", "cc4"}, Options: map[string]string{"tcp-established": "true"}}
	if _, err := s.CheckpointPod(t.Context(), good); err != nil || f.calls[0] != "checkpoint pod aa1 /d [cc1 cc4] tcp=true" {
		t.Errorf("%v %v", err, f.calls)
	}
	for name, c := range map[string]struct {
		change func(*cri.CheckpointPodRequest)
		is     error
	}{
		"relative":       {func(r *cri.CheckpointPodRequest) { r.OutputPath = "d" }, runtime.ErrInvalid},
		"no containers":  {func(r *cri.CheckpointPodRequest) { r.ContainerIds = nil }, runtime.ErrInvalid},
		"twice":          {func(r *cri.CheckpointPodRequest) { r.ContainerIds = []string{"cc1", "cc1"} }, runtime.ErrInvalid},
		"unknown":        {func(r *cri.CheckpointPodRequest) { r.ContainerIds = []string{"ee"} }, runtime.ErrNotFound},
		"no pod":         {func(r *cri.CheckpointPodRequest) { r.PodSandboxId = "ee" }, runtime.ErrNotFound},
		"unknown option": {func(r *cri.CheckpointPodRequest) { r.Options = map[string]string{"action-script": "/x"} }, runtime.ErrInvalid},
		"bad value":      {func(r *cri.CheckpointPodRequest) { r.Options = map[string]string{"tcp-established": "maybe"} }, runtime.ErrInvalid},
		"too many":       {func(r *cri.CheckpointPodRequest) { r.ContainerIds = make([]string, maxPodContainers+1) }, runtime.ErrInvalid},
	} {
		r := proto.Clone(good).(*cri.CheckpointPodRequest)
		c.change(r)
		if _, err := s.CheckpointPod(t.Context(), r); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(f.calls) != 1 {
		t.Errorf("what was refused was done: %v", f.calls)
	}
}

func TestRestorePod(t *testing.T) {
	f := newFake()
	s := newService(f)
	container := baseContainer()
	container.Image = &cri.ImageSpec{Image: "busybox"}
	good := &cri.RestorePodRequest{CheckpointPath: "/d", Config: basePod(), ContainerConfigs: []*cri.ContainerConfig{container}}
	resp, err := s.RestorePod(t.Context(), good)
	if err != nil || resp.GetPodSandboxId() != podID || len(resp.GetRestoredContainers()) != 1 ||
		resp.GetRestoredContainers()[0].GetContainerId() != targetID || resp.GetRestoredContainers()[0].GetName() != container.GetMetadata().GetName() {
		t.Fatalf("%v %v", resp, err)
	}
	if f.created.ImageID != "sha256:1" {
		t.Errorf("the image was not resolved: %q", f.created.ImageID)
	}
	calls := len(f.calls)
	for name, change := range map[string]func(*cri.RestorePodRequest){
		"checkpoint_path":   func(r *cri.RestorePodRequest) { r.CheckpointPath = "" },
		"config":            func(r *cri.RestorePodRequest) { r.Config = nil },
		"container_configs": func(r *cri.RestorePodRequest) { r.ContainerConfigs = nil },
		"metadata.name":     func(r *cri.RestorePodRequest) { r.ContainerConfigs = append(r.ContainerConfigs, r.ContainerConfigs[0]) },
		"empty":             func(r *cri.RestorePodRequest) { r.ContainerConfigs[0].Metadata.Name = "" },
		"runtime_handler":   func(r *cri.RestorePodRequest) { r.RuntimeHandler = "nothing" },
		"options":           func(r *cri.RestorePodRequest) { r.Options = map[string]string{"x": ""} },
		"target": func(r *cri.RestorePodRequest) {
			r.ContainerConfigs[0].Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "cc1"}
		},
	} {
		r := proto.Clone(good).(*cri.RestorePodRequest)
		change(r)
		if _, err := s.RestorePod(t.Context(), r); !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := proto.Clone(good).(*cri.RestorePodRequest)
	r.ContainerConfigs[0].Image.Image = "/var/lib/checkpoint.tar"
	if _, err := s.RestorePod(t.Context(), r); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("an unknown image: %v", err)
	}
	if len(f.calls) != calls {
		t.Errorf("what was refused was done: %v", f.calls)
	}
}

// TestCreateRestoresNothing: an archive, or an image that says it holds one, is
// an image name like any other to CreateContainer.
func TestCreateRestoresNothing(t *testing.T) {
	f := newFake()
	s := newService(f)
	c := baseContainer()
	c.Image = &cri.ImageSpec{Image: "/tmp/checkpoint.tar"}
	req := &cri.CreateContainerRequest{PodSandboxId: "aa1", Config: c}
	if _, err := s.CreateContainer(t.Context(), req); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("an archive for an image: %v", err)
	}
	c.Image = &cri.ImageSpec{Image: "busybox", Annotations: map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "web", "org.criu.checkpoint.container.name": "web"}}
	c.Annotations = c.Image.Annotations
	if _, err := s.CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(f.calls, func(c string) bool { return strings.HasPrefix(c, "restore") }) || f.created.ImageID != "sha256:1" {
		t.Errorf("%v, %q", f.calls, f.created.ImageID)
	}
}
