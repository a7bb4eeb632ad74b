package imagesvc_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/server/imagesvc"
	"github.com/ocid-io/ocid/store"
)

// images answers from a list; every name of an image is a key.
type images struct {
	byRef   map[string]*store.Image
	err     error
	removed []string
}

func (i *images) Image(_ context.Context, ref string) (*store.Image, error) {
	if i.err != nil {
		return nil, i.err
	}
	if img := i.byRef[ref]; img != nil {
		return img, nil
	}
	return nil, fmt.Errorf("image %s: %w", ref, store.ErrNotFound)
}

func (i *images) Images(context.Context) ([]*store.Image, error) {
	var out []*store.Image
	for ref, img := range i.byRef {
		if ref == img.ID {
			out = append(out, img)
		}
	}
	return out, i.err
}

func (i *images) Remove(_ context.Context, ref string) error {
	if i.err != nil {
		return i.err
	}
	i.removed = append(i.removed, ref)
	return nil
}

func (i *images) Usage(context.Context) (store.Usage, error) {
	return store.Usage{MountPoint: "/store", Bytes: 5, Inodes: 6}, i.err
}

type puller struct{ got imagesvc.PullRequest }

func (p *puller) PullImage(_ context.Context, r imagesvc.PullRequest) (string, error) {
	p.got = r
	return "sha256:1", nil
}

func newService(user string) (*imagesvc.Service, *images, *puller) {
	img := &store.Image{
		ID: "sha256:1", Tags: []string{"a.example/x:1"}, Digests: []string{"a.example/x@sha256:2"}, Size: 7,
		Config: ocispec.Image{Config: ocispec.ImageConfig{User: user}},
	}
	i := &images{byRef: map[string]*store.Image{img.ID: img, "a.example/x:1": img}}
	p := &puller{}
	return imagesvc.New(i, p, slog.New(slog.DiscardHandler)), i, p
}

func spec(ref string) *cri.ImageSpec { return &cri.ImageSpec{Image: ref} }

func TestStatus(t *testing.T) {
	for user, want := range map[string]string{"": "-", "12": "12", "12:34": "12", "www": "www", "www:www": "www", "0": "0"} {
		s, _, _ := newService(user)
		resp, err := s.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec("a.example/x:1"), Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		got := "-"
		switch img := resp.Image; {
		case img.Uid != nil && img.Username != "":
			t.Fatalf("user %q: both forms", user)
		case img.Uid != nil:
			got = fmt.Sprint(img.Uid.Value)
		case img.Username != "":
			got = img.Username
		}
		if got != want || resp.Image.Size == 0 || resp.Info["info"] == "" || resp.Image.Id != "sha256:1" {
			t.Fatalf("user %q: %q; %+v", user, got, resp)
		}
	}
}

func TestAbsent(t *testing.T) {
	s, i, _ := newService("")
	if r, err := s.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec("b.example/x:1")}); err != nil || r.Image != nil {
		t.Fatalf("status: %v, %v", r, err)
	}
	if r, err := s.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: spec("b.example/x:1")}}); err != nil || len(r.Images) != 0 {
		t.Fatalf("list: %v, %v", r, err)
	}
	if _, err := s.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec("b.example/x:1")}); err != nil {
		t.Fatalf("remove: %v", err)
	}
	i.err = fmt.Errorf("layer: %w", store.ErrDamaged)
	if r, err := s.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: spec("a.example/x:1")}); err != nil || r.Image != nil {
		t.Fatalf("status of a damaged image: %v, %v", r, err)
	}
}

func TestList(t *testing.T) {
	s, _, _ := newService("")
	for _, f := range []*cri.ImageFilter{nil, {Image: spec("")}, {Image: spec("a.example/x:1")}, {Image: spec("sha256:1")}} {
		r, err := s.ListImages(t.Context(), &cri.ListImagesRequest{Filter: f})
		if err != nil || len(r.Images) != 1 || len(r.Images[0].RepoTags) != 1 || len(r.Images[0].RepoDigests) != 1 {
			t.Fatalf("filter %v: %v, %v", f, r, err)
		}
	}
}

// sink keeps what a stream sends.
type sink struct {
	grpc.ServerStream
	ctx  context.Context
	sent []*cri.StreamImagesResponse
}

func (s *sink) Context() context.Context { return s.ctx }
func (s *sink) Send(r *cri.StreamImagesResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

func TestStream(t *testing.T) {
	s, _, _ := newService("")
	l, err := s.ListImages(t.Context(), &cri.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := &sink{ctx: t.Context()}
	if err := s.StreamImages(&cri.StreamImagesRequest{}, out); err != nil {
		t.Fatal(err)
	}
	if len(out.sent) != 1 || len(out.sent[0].Images) != 1 || !proto.Equal(out.sent[0].Images[0], l.Images[0]) {
		t.Errorf("streamed %v, listed %v", out.sent, l.Images)
	}
	out.sent = nil
	if err := s.StreamImages(&cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: spec("none")}}, out); err != nil || len(out.sent) != 0 {
		t.Errorf("nothing was sent as %v, %v", out.sent, err)
	}
}

func TestRemoveTakesAllNames(t *testing.T) {
	s, i, _ := newService("")
	if _, err := s.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec("a.example/x:1")}); err != nil {
		t.Fatal(err)
	}
	if len(i.removed) != 1 || i.removed[0] != "sha256:1" {
		t.Fatalf("removed %q, want the id", i.removed)
	}
	i.err = store.ErrInUse
	if _, err := s.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: spec("a.example/x:1")}); !errors.Is(err, store.ErrInUse) {
		t.Fatalf("in use: %v", err)
	}
}

func TestPull(t *testing.T) {
	s, _, p := newService("")
	s.Handlers([]string{"runc"})
	resp, err := s.PullImage(t.Context(), &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: "a.example/x:1", RuntimeHandler: "runc"},
		Auth:  &cri.AuthConfig{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"},
	})
	if err != nil || resp.ImageRef != "sha256:1" {
		t.Fatalf("%v, %v", resp, err)
	}
	want := imagesvc.PullRequest{Reference: "a.example/x:1", Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}
	if p.got != want {
		t.Fatalf("asked for %+v", p.got)
	}
	for _, bad := range []*cri.ImageSpec{nil, {}, {Image: "a.example/x:1", RuntimeHandler: "kata"}} {
		if _, err := s.PullImage(t.Context(), &cri.PullImageRequest{Image: bad}); !errors.Is(err, store.ErrInvalid) {
			t.Fatalf("%v: %v", bad, err)
		}
	}
}

func TestFsInfo(t *testing.T) {
	s, _, _ := newService("")
	r, err := s.ImageFsInfo(t.Context(), nil)
	if err != nil || r.ImageFilesystems[0].UsedBytes.Value != 5 || r.ImageFilesystems[0].FsId.Mountpoint != "/store" || len(r.ContainerFilesystems) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
}
