package runtimesvc

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// crowd is a node with 500 containers as a kubelet makes them.
func crowd() *fake {
	f := newFake()
	f.pods, f.containers = nil, nil
	for i := range 500 {
		id := fmt.Sprintf("%064x", i)
		f.containers = append(f.containers, runtime.Container{
			ID: runtime.ContainerID(id), PodID: runtime.PodID(id), State: runtime.ContainerRunning, CreatedAt: 1795279052572027554,
			Config: runtime.ContainerConfig{
				Name: runtime.ContainerName{Name: "main"}, Image: "registry.k8s.io/e2e-test-images/busybox:1.29-2", ImageID: "sha256:" + id,
				Labels: map[string]string{
					"io.kubernetes.pod.name": "web-5d9c7b8f6d-x2x7z", "io.kubernetes.pod.namespace": "default",
					"io.kubernetes.pod.uid": "0b6cfd4e-5f4c-4a53-9a0c-3bfb8a0a2f1d", "io.kubernetes.container.name": "main",
				},
				Annotations: map[string]string{
					"io.kubernetes.container.hash": "5f3f1c2a", "io.kubernetes.container.restartCount": "0",
					"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
					"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30",
				},
			},
		})
	}
	return f
}

func BenchmarkListContainers(b *testing.B) {
	s := newService(crowd())
	b.Run("build", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.ListContainers(b.Context(), &cri.ListContainersRequest{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	r, _ := s.ListContainers(b.Context(), &cri.ListContainersRequest{})
	b.Run("marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := proto.Marshal(r); err != nil {
				b.Fatal(err)
			}
		}
	})
	data, _ := proto.Marshal(r)
	b.Run("unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			var r cri.ListContainersResponse
			if err := proto.Unmarshal(data, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkWire(b *testing.B) {
	f := crowd()
	s := newService(f)
	s.o.Records = &views{f, nil, f.ContainerViews()}
	w := s.Wire()
	b.ReportAllocs()
	for b.Loop() {
		r, err := w.ListContainers(b.Context(), &cri.ListContainersRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := proto.Marshal(r); err != nil {
			b.Fatal(err)
		}
	}
}
