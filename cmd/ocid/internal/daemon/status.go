package daemon

import (
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layer"
)

// pullStatus gives the errors of a pull their gRPC codes; pull itself knows
// nothing of gRPC and server nothing of pull.
func pullStatus(err error) error {
	for _, row := range []struct {
		is     error
		code   codes.Code
		prefix string // by which the kubelet knows the cause (k8s.io/cri-api/pkg/errors)
	}{
		{pull.ErrInvalid, codes.InvalidArgument, ""},
		{pull.ErrNotFound, codes.NotFound, ""},
		{pull.ErrUnauthorized, codes.Unauthenticated, ""},
		{pull.ErrDenied, codes.PermissionDenied, "SignatureValidationFailed: "},
		{pull.ErrStalled, codes.Unavailable, "RegistryUnavailable: "},
		{pull.ErrCorrupt, codes.DataLoss, ""},
		{pull.ErrNoSpace, codes.ResourceExhausted, ""},
		{layer.ErrUnsafe, codes.InvalidArgument, ""},
		{layer.ErrMalformed, codes.InvalidArgument, ""},
		{layer.ErrTooLarge, codes.ResourceExhausted, ""},
		{store.ErrInvalid, codes.InvalidArgument, ""},
	} {
		if errors.Is(err, row.is) {
			return status.Error(row.code, row.prefix+err.Error())
		}
	}
	return err
}
