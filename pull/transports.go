package pull

import (
	"fmt"
	"strings"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// OwnTransport is the prefix of images in ocid's own store.
const OwnTransport = "ocid"

// transports are the places that an image can be copied from and to, by the
// prefix that skopeo and its relatives use. storageTransport stands for the
// default store of podman and buildah.
var transports = map[string]types.ImageTransport{
	"docker":             docker.Transport,
	"oci":                layout.Transport,
	"oci-archive":        ociarchive.Transport,
	"docker-archive":     dockerarchive.Transport,
	"dir":                directory.Transport,
	"containers-storage": storage.Transport,
}

// location is one end of a copy.
type location struct {
	ref types.ImageReference // nil in ocid's own store
	own string               // the name there
}

// locate parses "transport:rest".
func locate(s string) (location, error) {
	if len(s) > maxReference {
		return location{}, fmt.Errorf("location of %d bytes: %w", len(s), ErrInvalid)
	}
	name, rest, ok := strings.Cut(s, ":")
	if ok && name == OwnTransport {
		if rest == "" {
			return location{}, fmt.Errorf("%q names no image: %w", s, ErrInvalid)
		}
		return location{own: rest}, nil
	}
	t := transports[name]
	if !ok || t == nil {
		return location{}, fmt.Errorf("%q: want docker://IMAGE, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE:IMAGE, dir:DIR, containers-storage:IMAGE or ocid:IMAGE: %w", s, ErrInvalid)
	}
	ref, err := t.ParseReference(rest)
	if err != nil {
		return location{}, fmt.Errorf("%q: %w: %w", s, ErrInvalid, err)
	}
	return location{ref: ref}, nil
}

// ownName is the full name of an image in ocid's own store.
func ownName(s string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w: %w", s, ErrInvalid, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, fmt.Errorf("%q: a copy is named by a tag, its digest follows from its content: %w", s, ErrInvalid)
	}
	return reference.TagNameOnly(named), nil
}
