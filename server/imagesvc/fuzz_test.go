package imagesvc_test

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzRequests sends anything to every call: none may panic.
func FuzzRequests(f *testing.F) {
	d := cri.ImageService_ServiceDesc
	for n := range d.Methods {
		f.Add(uint8(n), []byte{})
		spec := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "a.example/x:1")
		f.Add(uint8(n), protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), spec))
	}
	f.Fuzz(func(t *testing.T, n uint8, data []byte) {
		s, _, _ := newService("")
		req := func(in any) error { return proto.Unmarshal(data, in.(proto.Message)) }
		_, _ = d.Methods[int(n)%len(d.Methods)].Handler(s, t.Context(), req, nil)
		var list cri.StreamImagesRequest
		if req(&list) == nil {
			_ = s.StreamImages(&list, &sink{ctx: t.Context()})
		}
	})
}
