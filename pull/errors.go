package pull

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/storage"
)

// explain gives an error of the image library the kind that callers branch on.
func explain(err error, tempDir string) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{ErrInvalid, ErrNotFound, ErrUnauthorized, ErrDenied, ErrStalled, ErrCorrupt, ErrNoSpace} {
		if errors.Is(err, known) {
			return err
		}
	}
	// Layers are unpacked in a child process, whose errors come as text.
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return fmt.Errorf("%w under %s: %w", ErrNoSpace, filepath.Dir(filepath.Dir(tempDir)), err)
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	return err
}

var bareStatus = regexp.MustCompile(`StatusCode: (\d{3}), `)

func kindOf(err error) error {
	var (
		unauthorized docker.ErrUnauthorizedForCredentials
		requirement  signature.PolicyRequirementError
		invalidSig   signature.InvalidSignatureError
		coder        errcode.ErrorCoder
		status       docker.UnexpectedHTTPStatusError
	)
	switch {
	case errors.As(err, &unauthorized):
		return ErrUnauthorized
	case errors.As(err, &requirement), errors.As(err, &invalidSig):
		return ErrDenied
	case strings.Contains(err.Error(), "is blocked in"):
		return ErrDenied
	case errors.Is(err, storage.ErrBlobDigestMismatch), errors.Is(err, storage.ErrBlobSizeMismatch),
		strings.Contains(err.Error(), "Digest did not match"):
		return ErrCorrupt
	case strings.Contains(err.Error(), "Image may not exist"):
		return ErrNotFound
	case errors.As(err, &coder):
		return kindOfStatus(coder.ErrorCode().Descriptor().HTTPStatusCode)
	case errors.As(err, &status):
		return kindOfStatus(status.StatusCode)
	}
	// An answer whose body is no error of the protocol has a type of its own
	// that the library keeps to itself.
	if m := bareStatus.FindStringSubmatch(err.Error()); m != nil {
		code, _ := strconv.Atoi(m[1])
		return kindOfStatus(code)
	}
	var invalid *sysregistriesv2.InvalidRegistries
	if errors.As(err, &invalid) {
		return ErrInvalid
	}
	return nil
}

func kindOfStatus(code int) error {
	switch code {
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	}
	return nil
}
