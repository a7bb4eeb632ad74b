package runtimesvc

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Wire returns the service as a gRPC server is to have it: the lists that a
// kubelet asks for every second are sent from bytes that were made once for
// each record, instead of being built and encoded anew. A record never changes
// (a later one replaces it), so that its bytes hold as long as it does.
//
// Such an answer has its content in its unknown fields, which protobuf sends as
// they are: a client reads the same message, but the struct looks empty here.
func (s *Service) Wire() cri.RuntimeServiceServer { return &wired{Service: s} }

type wired struct {
	*Service
	pods       encoded[runtime.Pod]
	containers encoded[runtime.Container]
}

// ListContainers implements cri.RuntimeServiceServer.
func (w *wired) ListContainers(_ context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f := req.GetFilter()
	var keep func(*runtime.Container) bool
	if f.GetId() != "" || f.GetPodSandboxId() != "" || f.GetState() != nil || len(f.GetLabelSelector()) > 0 {
		keep = func(c *runtime.Container) bool { return containerWanted(c, f) }
	}
	items, err := w.containers.list(w.o.Records.ContainerViews(), keep, func(c *runtime.Container) proto.Message {
		if !containerWanted(c, nil) {
			return nil
		}
		return criContainer(c)
	})
	resp := &cri.ListContainersResponse{}
	resp.ProtoReflect().SetUnknown(items)
	return resp, err
}

// ListPodSandbox implements cri.RuntimeServiceServer.
func (w *wired) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	var keep func(*runtime.Pod) bool
	if f.GetId() != "" || f.GetState() != nil || len(f.GetLabelSelector()) > 0 {
		keep = func(p *runtime.Pod) bool { return podWanted(p, f) }
	}
	items, err := w.pods.list(w.o.Pods.PodViews(), keep, func(p *runtime.Pod) proto.Message {
		if !podWanted(p, nil) {
			return nil
		}
		return criPod(p)
	})
	resp := &cri.ListPodSandboxResponse{}
	resp.ProtoReflect().SetUnknown(items)
	return resp, err
}

// encoded keeps what records look like on the wire, as items of a list that is
// the first field of its message.
type encoded[R any] struct {
	mu    sync.Mutex
	views []*R          // guarded by mu, as all below: what the rest is about
	items map[*R][]byte // empty for what is not listed
	all   []byte        // the items one after the other
}

// list returns the items of the views that keep lets through; nil keeps all.
func (e *encoded[R]) list(views []*R, keep func(*R) bool, message func(*R) proto.Message) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !sameViews(e.views, views) {
		if err := e.renew(views, message); err != nil {
			return nil, err
		}
	}
	if keep == nil {
		return e.all, nil
	}
	var out []byte
	for _, r := range views {
		if item := e.items[r]; len(item) > 0 && keep(r) {
			out = append(out, item...)
		}
	}
	return out, nil
}

// renew encodes the records that are new and forgets those that are gone.
func (e *encoded[R]) renew(views []*R, message func(*R) proto.Message) (err error) {
	items := make(map[*R][]byte, len(views))
	size := 0
	for _, r := range views {
		item, ok := e.items[r]
		if !ok {
			if item, err = encode(message(r)); err != nil {
				return err
			}
		}
		items[r] = item
		size += len(item)
	}
	all := make([]byte, 0, size) // a new one: calls in flight still send the old
	for _, r := range views {
		all = append(all, items[r]...)
	}
	e.views, e.items, e.all = views, items, all
	return nil
}

func encode(m proto.Message) ([]byte, error) {
	if m == nil {
		return nil, nil
	}
	size := proto.Size(m)
	b := make([]byte, 0, protowire.SizeTag(1)+protowire.SizeBytes(size))
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.BytesType), uint64(size)) //nolint:gosec // not negative
	return proto.MarshalOptions{}.MarshalAppend(b, m)
}

// sameViews holds for the same list, or one of the same records.
func sameViews[R any](a, b []*R) bool {
	if len(a) != len(b) || a == nil {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] {
		return true
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func containerWanted(c *runtime.Container, f *cri.ContainerFilter) bool {
	return containerListed(c.State) &&
		matches(string(c.ID), f.GetId(), c.Config.Labels, f.GetLabelSelector()) &&
		strings.HasPrefix(string(c.PodID), f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == containerState(c.State))
}

func podWanted(p *runtime.Pod, f *cri.PodSandboxFilter) bool {
	return podListed(p.State) &&
		matches(string(p.ID), f.GetId(), p.Config.Labels, f.GetLabelSelector()) &&
		(f.GetState() == nil || f.GetState().GetState() == podState(p.State))
}
