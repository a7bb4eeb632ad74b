package layered

import (
	"context"
	"fmt"
	"os"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	imagetypes "go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"
)

// Begin announces a pull to every process that uses the store, so that its
// layers are not swept before an image names them. tempDir, on the same file
// system, is for downloads. end must be called once; after end(false) nothing
// is left of what the pull wrote.
func (s *Store) Begin(ctx context.Context) (tempDir string, end func(ok bool), err error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	unlock, err := s.lockPulls(unix.LOCK_SH)
	if err != nil {
		return "", nil, fmt.Errorf("begin pull: %w", err)
	}
	tempDir, err = os.MkdirTemp(s.names.tmp, "pull-")
	if err != nil {
		unlock()
		return "", nil, fmt.Errorf("begin pull: %w", err)
	}
	return tempDir, func(ok bool) {
		// What cannot be removed is swept by the next Collect.
		_ = os.RemoveAll(tempDir)
		unlock()
		if !ok {
			s.dirty.Store(true)
		}
		s.sweep()
	}, nil
}

// sweep removes the layers of failed pulls as soon as no pull is running.
func (s *Store) sweep() {
	if !s.dirty.Load() {
		return
	}
	unlock, err := s.lockPulls(unix.LOCK_EX | unix.LOCK_NB)
	if err != nil {
		return // the last pull to end tries again
	}
	defer unlock()
	s.dirty.Store(s.sweepLocked() != nil)
}

// Destination returns where to copy an image that shall get this name.
func (s *Store) Destination(name reference.Named) (imagetypes.ImageReference, error) {
	ref, err := istorage.Transport.NewStoreReference(s.lib, name, "")
	if err != nil {
		return nil, err
	}
	return target{ref, s, name}, nil
}

// Has says whether the image is here and whole. A broken one that no root file
// system needs is removed: a copy would build on its layers.
func (s *Store) Has(ctx context.Context, imageID string) bool {
	e, _, err := s.find(imageID)
	if err != nil || ctx.Err() != nil {
		return false
	}
	if e.err == nil && s.whole(e) {
		return true
	}
	// Best effort: if it cannot be removed, the copy says what is wrong.
	_ = s.Remove(ctx, e.img.ID)
	return false
}

// whole says whether all layers of the image are there.
func (s *Store) whole(e *entry) bool {
	dirs, err := s.layerDirs(e.top)
	if err != nil {
		return false
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); err != nil {
			return false
		}
	}
	return true
}

// Commit gives an image that was copied its names and returns when all of it
// is on the disk. Names that pointed elsewhere move.
func (s *Store) Commit(ctx context.Context, imageID string, names []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, _, err := s.find(imageID)
	if err != nil {
		return err
	}
	if !e.named(names) {
		if err := s.lib.AddNames(e.hex, names); err != nil {
			return fmt.Errorf("name image %s: %w", imageID, classify(err))
		}
	}
	return s.flush()
}

func (e *entry) named(names []string) bool {
	have := map[string]bool{}
	for _, n := range append(append([]string{}, e.img.Tags...), e.img.Digests...) {
		have[n] = true
	}
	for _, n := range names {
		if !have[n] {
			return false
		}
	}
	return true
}

// flush writes everything on the store's file system to disk.
func (s *Store) flush() error {
	d, err := os.Open(s.names.storage)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("flush %s: %w", s.names.storage, err)
	}
	return nil
}

// Source finds an image, for copies out of the store.
func (s *Store) Source(ctx context.Context, ref string) (imagetypes.ImageReference, error) {
	img, err := s.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	return istorage.Transport.NewStoreReference(s.lib, nil, strings.TrimPrefix(img.ID, idPrefix))
}
