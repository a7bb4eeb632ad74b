// Package layered is the read-write image store: images and layers are kept by
// go.podman.io/storage (overlay driver), root file systems are mounted by this
// package from those layers and have records of their own.
//
// On disk, below Root:
//
//	storage/          the library's graph root
//	rootfs/ID/        record.json, upper, work: one directory per root file system
//	pins/HEX/ID       an empty file: root file system ID needs image HEX
//	pins/HEX.lock     flock: shared while a pin is written, exclusive in Remove
//	pull.lock         flock: shared by every pull of every process, exclusive in a sweep
//	tmp/              downloads in flight
//	trash/            on its way out
//	usage/LAYER       number of inodes of a layer, counted once
//
// Below RunRoot: storage/ (the library's run root) and rootfs/ID, the mount
// points.
//
// Invariants:
//   - a pin is on disk before a mount uses the image's layers, and goes only
//     after the record has gone; an image with a live pin is never removed;
//   - whoever makes or destroys rootfs/ID holds an flock on that directory;
//   - no file that grows with the number of root file systems is ever written;
//   - layers that no image needs are removed only while no pull runs in any
//     process that uses the store.
//
// Lock order: rootfs/ID directory, then image lock, then the library's locks.
package layered

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/types"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store"
)

// Options says where the store lives.
type Options struct {
	Root    string // persistent
	RunRoot string // lost at reboot
	// AdditionalStores are read-only image stores of the storage library.
	AdditionalStores []string
}

// Store implements store.Images and store.RootFSes, and is where pulls go.
type Store struct {
	opts   Options
	lib    storage.Store
	driver graphdriver.Driver
	names  paths

	refreshMu sync.Mutex // held while a new snapshot is made
	current   atomic.Pointer[snapshot]

	lowersMu sync.Mutex
	lowers   map[string][]string // top layer -> directories, topmost first; immutable once known

	flightsMu sync.Mutex
	flights   map[digest.Digest]*flight // blobs on their way in

	usage usageCounter
	dirty atomic.Bool // a pull failed and its layers could not be swept yet
	bg    sync.WaitGroup
}

var (
	_ store.Images   = (*Store)(nil)
	_ store.RootFSes = (*Store)(nil)
)

// paths are the places below Root and RunRoot.
type paths struct {
	storage, rootfs, pins, tmp, trash, usage, empty, pullLock, mounts string
}

// Open opens or makes a store. It is cheap: nothing is walked or mounted once
// the machine's overlay features are known.
func Open(opts Options) (*Store, error) {
	for _, p := range []string{opts.Root, opts.RunRoot} {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("store root %q: not an absolute path: %w", p, store.ErrInvalid)
		}
	}
	s := &Store{opts: opts, lowers: map[string][]string{}, flights: map[digest.Digest]*flight{}, names: paths{
		storage:  filepath.Join(opts.Root, "storage"),
		rootfs:   filepath.Join(opts.Root, "rootfs"),
		pins:     filepath.Join(opts.Root, "pins"),
		tmp:      filepath.Join(opts.Root, "tmp"),
		trash:    filepath.Join(opts.Root, "trash"),
		usage:    filepath.Join(opts.Root, "usage"),
		empty:    filepath.Join(opts.Root, "empty"),
		pullLock: filepath.Join(opts.Root, "pull.lock"),
		mounts:   filepath.Join(opts.RunRoot, "rootfs"),
	}}
	for _, d := range []string{s.names.rootfs, s.names.pins, s.names.tmp, s.names.trash, s.names.usage} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	// Containers with a user namespace walk through the mount points' parent.
	for _, d := range []string{s.names.mounts, s.names.empty} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	if err := s.openLibrary(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", opts.Root, err)
	}
	return s, nil
}

func (s *Store) openLibrary() error {
	// sync=filesystem: a layer is on disk before its record says it is whole.
	// skip_mount_home: the library must not leave a bind mount of its own.
	driverOpts := []string{"overlay.sync=filesystem", "overlay.skip_mount_home=true", "overlay.mountopt=metacopy=off"}
	if len(s.opts.AdditionalStores) > 0 {
		driverOpts = append(driverOpts, "overlay.imagestore="+strings.Join(s.opts.AdditionalStores, ","))
	}
	lib, err := storage.GetStore(types.StoreOptions{
		RunRoot:            filepath.Join(s.opts.RunRoot, "storage"),
		GraphRoot:          s.names.storage,
		GraphDriverName:    "overlay",
		GraphDriverOptions: driverOpts,
		// Whole layers only: an image's id is then always its config's digest.
		PullOptions: map[string]string{"enable_partial_images": "false"},
	})
	if err != nil {
		return err
	}
	driver, err := lib.GraphDriver()
	if err != nil {
		return err
	}
	s.lib, s.driver = lib, driver
	return nil
}

// Root returns the persistent directory of the store.
func (s *Store) Root() string { return s.opts.Root }

// Close waits for work in the background. Mounts stay.
func (s *Store) Close() error {
	s.bg.Wait()
	return nil
}

// classify turns the library's errors into the contract's.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, storage.ErrImageUnknown), errors.Is(err, storage.ErrNotAnImage), errors.Is(err, storage.ErrLayerUnknown):
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	case errors.Is(err, storage.ErrImageUsedByContainer), errors.Is(err, storage.ErrLayerUsedByContainer):
		return fmt.Errorf("%w: %w", store.ErrInUse, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", store.ErrReadOnly, err)
	}
	return err
}
