// Package store is the contract of the image store: which images are here, and
// give me this one as a root file system.
//
// Backends (store/layered, store/ostree, store/readonly) implement it and are
// all held to store/storetest. Every method may be called by several
// goroutines and by several processes at once; no method needs the daemon.
package store

import (
	"context"
	"errors"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sentinel errors. Wrap with %w; branch with errors.Is.
var (
	// ErrNotFound: no such image or root file system.
	ErrNotFound = errors.New("not found")
	// ErrInUse: a root file system, mount or container still needs the image.
	ErrInUse = errors.New("in use")
	// ErrReadOnly: the backend cannot be written to.
	ErrReadOnly = errors.New("read-only store")
	// ErrInvalid: the name or id cannot be one.
	ErrInvalid = errors.New("invalid reference")
	// ErrDamaged: content on disk is not what its record says.
	ErrDamaged = errors.New("damaged")
)

// Image describes one image.
type Image struct {
	ID      string        // "sha256:" + 64 hex of the image config; the one id everywhere
	Tags    []string      // normalised "host/name:tag"
	Digests []string      // normalised "host/name@sha256:..."
	Size    int64         // bytes of all layers, unpacked
	Created time.Time     // from the image config; zero if absent or malformed
	Config  ocispec.Image // parsed, bounded, hostile
	Pinned  bool          // exempt from garbage collection
}

// Images answers which images are here.
type Images interface {
	// Image finds an image by id (with or without "sha256:", prefixes of 12 or
	// more hex allowed), tag or digest reference. ErrNotFound if there is none.
	Image(ctx context.Context, ref string) (*Image, error)
	// Images lists all images, in order of id.
	Images(ctx context.Context) ([]*Image, error)
	// Tag adds a normalised name to the image that ref names; a name that
	// pointed elsewhere moves. Idempotent.
	Tag(ctx context.Context, ref, name string) error
	// Remove removes the image and all its names when ref is an id or its last
	// name, and only that name otherwise. ErrInUse when a root file system pins
	// the image; ErrNotFound when there is nothing.
	Remove(ctx context.Context, ref string) error
	// Usage reports what the store takes.
	Usage(ctx context.Context) (Usage, error)
}

// Usage is the space taken by images on the file system that holds them.
type Usage struct {
	MountPoint string
	Bytes      uint64
	Inodes     uint64
}

// RootFSRequest asks for a root file system.
type RootFSRequest struct {
	ID       string // chosen by the caller, [a-z0-9-]{1,64}; the idempotence key
	ImageID  string
	ReadOnly bool // no copy-on-write layer: the image tree as it is
	// IDMap shows every owner of the image, and stores every owner of what is
	// written, shifted: the container's ids as the host knows them. nil: as is.
	IDMap *IDMap
	// Label is the SELinux label that all files are seen with; "" is their own.
	Label string
}

// IDMap is how a user namespace's ids are the host's.
type IDMap struct {
	UIDs []IDRange `json:"uids"`
	GIDs []IDRange `json:"gids"`
}

// IDRange maps Length ids from ContainerID to HostID.
type IDRange struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Length      uint32 `json:"length"`
}

// RootFS is a root file system made from an image.
type RootFS struct {
	ID       string
	ImageID  string
	Path     string // where it is mounted, absolute
	UpperDir string // the writable layer on disk; "" if read-only
}

// RootFSes makes, finds and removes root file systems. Its records are O(1):
// making the n-th costs what the first cost.
type RootFSes interface {
	// Prepare records, makes and mounts a root file system. A second call with
	// the same request returns the first's result, remounted if the mount is
	// gone. From its return until Remove the image cannot be removed.
	Prepare(ctx context.Context, req RootFSRequest) (*RootFS, error)
	// RootFS finds a prepared root file system. ErrNotFound if there is none.
	RootFS(ctx context.Context, id string) (*RootFS, error)
	// Release unmounts and deletes. Idempotent: an unknown id is no error.
	Release(ctx context.Context, id string) error
	// List returns the ids of all records, sorted.
	List(ctx context.Context) ([]string, error)
}
