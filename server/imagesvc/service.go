// Package imagesvc answers the CRI ImageService.
//
// It translates and nothing else: every request goes to the image store or the
// puller it was given. One image id is used everywhere: what PullImage returns
// is the id in ListImages, ImageStatus and in containers.
//
// Errors leave here as they come; the server's interceptor gives them a status.
package imagesvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/store"
)

// Images is what the service needs of the image store.
type Images interface {
	Image(ctx context.Context, ref string) (*store.Image, error)
	Images(ctx context.Context) ([]*store.Image, error)
	Remove(ctx context.Context, ref string) error
	Usage(ctx context.Context) (store.Usage, error)
}

// PullRequest asks for an image.
type PullRequest struct {
	Reference                                                             string
	Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string
	Namespace                                                             string // of the pod that needs it; "" is unknown
}

// Puller brings an image into the store that Images answers from.
type Puller interface {
	// PullImage returns the image's id once the image is safe on disk. Errors
	// may carry a gRPC status.
	PullImage(ctx context.Context, req PullRequest) (imageID string, err error)
}

// Service implements the CRI ImageService. Calls that it does not know answer
// Unimplemented.
type Service struct {
	cri.UnimplementedImageServiceServer

	images   Images
	puller   Puller
	log      *slog.Logger
	handlers map[string]bool // nil: any
}

var _ cri.ImageServiceServer = (*Service)(nil)

// New makes the service.
func New(images Images, puller Puller, log *slog.Logger) *Service {
	return &Service{images: images, puller: puller, log: log}
}

// Handlers names the runtime handlers that requests may ask for; without it
// every name is accepted.
func (s *Service) Handlers(names []string) {
	s.handlers = map[string]bool{"": true}
	for _, n := range names {
		s.handlers[n] = true
	}
}

// checkSpec refuses what cannot be an image, before anything is done.
func (s *Service) checkSpec(spec *cri.ImageSpec) (string, error) {
	ref := spec.GetImage()
	if ref == "" {
		return "", fmt.Errorf("image: none given: %w", store.ErrInvalid)
	}
	if h := spec.GetRuntimeHandler(); s.handlers != nil && !s.handlers[h] {
		return "", fmt.Errorf("image: runtime handler %q is not configured: %w", h, store.ErrInvalid)
	}
	return ref, nil
}

// ListImages answers with all images, or with the one that the filter names.
func (s *Service) ListImages(ctx context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	list, err := s.listImages(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &cri.ListImagesResponse{Images: list}, nil
}

func (s *Service) listImages(ctx context.Context, f *cri.ImageFilter) ([]*cri.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.images.Image(ctx, ref)
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*cri.Image{toCRI(img)}, nil
	}
	all, err := s.images.Images(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]*cri.Image, 0, len(all))
	for _, img := range all {
		out = append(out, toCRI(img))
	}
	return out, nil
}

// chunkBytes is how much one message of StreamImages takes, but for an image
// that is larger itself.
const chunkBytes = 1 << 20

// StreamImages answers with what ListImages does, in several messages.
func (s *Service) StreamImages(req *cri.StreamImagesRequest, stream cri.ImageService_StreamImagesServer) error {
	list, err := s.listImages(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	for len(list) > 0 {
		n, size := 1, proto.Size(list[0])
		for n < len(list) {
			if size += proto.Size(list[n]); size > chunkBytes {
				break
			}
			n++
		}
		if err := stream.Send(&cri.StreamImagesResponse{Images: list[:n]}); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// ImageStatus answers with the image, or with none if it is not here. A
// damaged image is not here: the kubelet then pulls it again.
func (s *Service) ImageStatus(ctx context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	ref, err := s.checkSpec(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Image(ctx, ref)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return &cri.ImageStatusResponse{}, nil
	case errors.Is(err, store.ErrDamaged):
		s.log.WarnContext(ctx, "image is damaged and counts as absent", "image", ref, "error", err)
		return &cri.ImageStatusResponse{}, nil
	case err != nil:
		return nil, err
	}
	resp := &cri.ImageStatusResponse{Image: toCRI(img)}
	if req.GetVerbose() {
		info, err := json.Marshal(map[string]any{"imageSpec": img.Config, "labels": img.Config.Config.Labels})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

// PullImage pulls.
func (s *Service) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	ref, err := s.checkSpec(req.GetImage())
	if err != nil {
		return nil, err
	}
	a := req.GetAuth()
	id, err := s.puller.PullImage(ctx, PullRequest{
		Reference: ref, Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
		ServerAddress: a.GetServerAddress(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		Namespace: req.GetSandboxConfig().GetMetadata().GetNamespace(),
	})
	if err != nil {
		return nil, err
	}
	return &cri.PullImageResponse{ImageRef: id}, nil
}

// RemoveImage removes the image with all its names. An image that is not here
// is removed already.
func (s *Service) RemoveImage(ctx context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	ref, err := s.checkSpec(req.GetImage())
	if err != nil {
		return nil, err
	}
	id, err := s.idOf(ctx, ref)
	if err == nil {
		err = s.images.Remove(ctx, id)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return &cri.RemoveImageResponse{}, nil
}

// idOf resolves a reference, for damaged images too.
func (s *Service) idOf(ctx context.Context, ref string) (string, error) {
	img, err := s.images.Image(ctx, ref)
	if err == nil {
		return img.ID, nil
	}
	if errors.Is(err, store.ErrDamaged) {
		return ref, nil // by the name that was given, as nothing else is known
	}
	return "", err
}

// ImageFsInfo tells what images take. Containers' writable layers are on the
// same file system.
func (s *Service) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	u, err := s.images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	usage := func() []*cri.FilesystemUsage {
		return []*cri.FilesystemUsage{{
			Timestamp:  time.Now().UnixNano(),
			FsId:       &cri.FilesystemIdentifier{Mountpoint: u.MountPoint},
			UsedBytes:  &cri.UInt64Value{Value: u.Bytes},
			InodesUsed: &cri.UInt64Value{Value: u.Inodes},
		}}
	}
	return &cri.ImageFsInfoResponse{ImageFilesystems: usage(), ContainerFilesystems: usage()}, nil
}

func toCRI(img *store.Image) *cri.Image {
	out := &cri.Image{
		Id: img.ID, RepoTags: img.Tags, RepoDigests: img.Digests,
		Size: uint64(max(img.Size, 1)), Pinned: img.Pinned,
		Spec: &cri.ImageSpec{Image: img.ID},
	}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if user == "" {
		return out
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &cri.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}
