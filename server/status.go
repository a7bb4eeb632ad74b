package server

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/store"
)

// table maps the errors of the layers to codes. The first match wins, so what
// says more about the request stands before what says how it ended.
var table = []struct {
	err  error
	code codes.Code
}{
	{runtime.ErrInvalid, codes.InvalidArgument},
	{store.ErrInvalid, codes.InvalidArgument},
	{runtime.ErrNotFound, codes.NotFound},
	{store.ErrNotFound, codes.NotFound},
	{runtime.ErrState, codes.FailedPrecondition},
	{store.ErrInUse, codes.FailedPrecondition},
	{store.ErrReadOnly, codes.FailedPrecondition},
	{store.ErrDamaged, codes.DataLoss},
	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{unix.EMFILE, codes.ResourceExhausted},
	{unix.ENFILE, codes.ResourceExhausted},
	{unix.ENOMEM, codes.ResourceExhausted},
	{runtime.ErrLost, codes.ResourceExhausted},
	{runtime.ErrTimeout, codes.DeadlineExceeded},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{runtime.ErrUnavailable, codes.Unavailable},
}

// Status gives an error its gRPC status. An error that carries one keeps its
// code, with the text of everything wrapped around it; an error that nothing
// in the table matches is Unknown, since it is no fault of the server's own.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok { //nolint:errorlint // only a bare status passes as it is
		return err
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	for _, row := range table {
		if errors.Is(err, row.err) {
			return status.Error(row.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
