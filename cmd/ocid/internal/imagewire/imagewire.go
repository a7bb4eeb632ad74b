// Package imagewire joins the store, the puller and the CRI image service:
// none of them knows the others.
package imagewire

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/server/imagesvc"
	"github.com/ocid-io/ocid/store/layered"
)

// The store is where pulls go as it is.
var _ pull.Sink = (*layered.Store)(nil)

// Puller makes a puller fit the CRI image service.
func Puller(p *pull.Puller) imagesvc.Puller { return puller{p} }

type puller struct{ p *pull.Puller }

func (a puller) PullImage(ctx context.Context, r imagesvc.PullRequest) (string, error) {
	res, err := a.p.Pull(ctx, pull.Request{Reference: r.Reference, Auth: &pull.Auth{
		Username: r.Username, Password: r.Password, Auth: r.Auth, ServerAddress: r.ServerAddress,
		IdentityToken: r.IdentityToken, RegistryToken: r.RegistryToken,
	}})
	if err != nil {
		return "", statusOf(err)
	}
	return res.ImageID, nil
}

// kinds maps what can be wrong with a pull to status codes. The prefixes are
// those by which the kubelet tells such errors apart.
var kinds = []struct {
	err    error
	code   codes.Code
	prefix string
}{
	{pull.ErrInvalid, codes.InvalidArgument, ""},
	{pull.ErrDenied, codes.PermissionDenied, "SignatureValidationFailed: "},
	{pull.ErrUnauthorized, codes.Unauthenticated, ""},
	{pull.ErrNotFound, codes.NotFound, ""},
	{pull.ErrNoSpace, codes.ResourceExhausted, ""},
	{pull.ErrStalled, codes.Unavailable, "RegistryUnavailable: "},
	{pull.ErrCorrupt, codes.DataLoss, ""},
}

func statusOf(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return status.Error(k.code, k.prefix+err.Error())
		}
	}
	return err
}
