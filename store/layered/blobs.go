package layered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/storage"
	graphdriver "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store/layer"
)

// staged is a layer that is unpacked and not yet part of an image. Pulls that
// run at the same time share it; the last to let go of it removes it, unless
// it has become a layer.
type staged struct {
	s      *Store
	blob   digest.Digest
	diffID digest.Digest

	mu      sync.Mutex
	out     *graphdriver.DriverWithDifferOutput // guarded by mu; nil once applied or removed
	holders int                                 // guarded by mu
}

func (st *staged) release() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.holders--; st.holders > 0 {
		return
	}
	st.s.forgetFlight(st)
	if st.out != nil {
		// What cannot be removed now goes with the next Collect.
		_ = st.s.lib.CleanupStagedLayer(st.out)
		st.out = nil
	}
}

// apply makes it the layer id on top of parent. It says false when that was
// done before, for another place in another image.
func (st *staged) apply(id, parent string) (bool, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.out == nil {
		return false, nil
	}
	if err := st.inheritRoot(parent); err != nil {
		return true, err
	}
	_, err := st.s.lib.ApplyStagedLayer(storage.ApplyStagedLayerOptions{
		ID: id, ParentLayer: parent, DiffOutput: st.out, DiffOptions: &graphdriver.ApplyDiffWithDifferOpts{},
	})
	if errors.Is(err, storage.ErrDuplicateID) {
		return true, nil // another process was faster; release removes ours
	}
	if err == nil {
		// The library moves the tree out of its directory and leaves that.
		_ = os.Remove(filepath.Dir(st.out.Target))
		st.out = nil
	}
	return true, err
}

// inheritRoot gives the root of a layer that says nothing of it the owner of
// the layer below; the library sees to the mode.
func (st *staged) inheritRoot(parent string) error {
	if st.out.RootDirMode != nil || parent == "" {
		return nil
	}
	dirs, err := st.s.layerDirs(parent)
	if err != nil {
		return err
	}
	var below unix.Stat_t
	if err := unix.Stat(dirs[0], &below); err != nil {
		return &os.PathError{Op: "stat", Path: dirs[0], Err: err}
	}
	return os.Lchown(st.out.Target, int(below.Uid), int(below.Gid))
}

// stage unpacks a layer's stream, which may be compressed, beside the layers.
// blob is its digest as the registry has it, "" if it has none.
func (s *Store) stage(ctx context.Context, blob digest.Digest, stream io.Reader) (*staged, error) {
	d := &differ{ctx: ctx, blob: blob, stream: stream}
	out, err := s.lib.PrepareStagedLayer(&graphdriver.ApplyDiffWithDifferOpts{}, d)
	if err != nil {
		if out != nil && out.Target != "" {
			err = errors.Join(err, s.lib.CleanupStagedLayer(out))
		}
		return nil, err
	}
	return &staged{s: s, blob: blob, diffID: out.UncompressedDigest, out: out, holders: 1}, nil
}

// differ implements graphdriver.Differ with package layer.
type differ struct {
	ctx    context.Context //nolint:containedctx // the interface has no place for it
	blob   digest.Digest
	stream io.Reader
}

// ApplyDiff implements graphdriver.Differ.
func (d *differ) ApplyDiff(dest string, _ *archive.TarOptions, o *graphdriver.DifferOptions) (out graphdriver.DriverWithDifferOutput, err error) {
	// The record has no name: nothing is left of it, whatever happens.
	fd, err := unix.Open(o.StagingDirectory, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return out, &os.PathError{Op: "open", Path: o.StagingDirectory, Err: err}
	}
	split := os.NewFile(uintptr(fd), "tar-split")
	defer func() {
		if err != nil {
			_ = split.Close()
		}
	}()
	z, err := layer.Decompress(d.stream)
	if err != nil {
		return out, err
	}
	defer func() { _ = z.Close() }()
	res, err := layer.Unpack(d.ctx, z, dest, layer.Options{Split: split})
	if errors.Is(err, layer.ErrMalformed) {
		// If the blob is not what its digest says, that is the better reason.
		if _, rerr := io.Copy(io.Discard, d.stream); rerr != nil {
			err = rerr
		}
	}
	if err != nil {
		return out, err
	}
	// The digest of the blob covers what follows the compressed stream, too.
	if _, err := io.Copy(io.Discard, d.stream); err != nil {
		return out, err
	}
	return graphdriver.DriverWithDifferOutput{
		Differ: d, Size: res.Size, UIDs: res.UIDs, GIDs: res.GIDs, RootDirMode: res.RootMode,
		UncompressedDigest: res.DiffID, CompressedDigest: d.blob, TarSplit: split,
	}, nil
}

// Close implements graphdriver.Differ.
func (d *differ) Close() error { return nil }

// flight is a blob on its way into the store, or unpacked there while the pull
// that brought it goes on.
type flight struct {
	done chan struct{}
	st   *staged // set before done is closed; nil if it failed
}

// sharePatience is how long a pull waits for a layer that another one brings.
// That one's registry may be slow, or send a byte now and then to keep a layer
// of others from ever arriving. It is less than a pull may stall.
const sharePatience = 20 * time.Second

// lead makes the caller the one that brings a blob, or waits for whoever is
// bringing it. It returns a staged layer to share, held for the caller, or nil
// and a flight that the caller must land. After patience it returns neither:
// the caller brings the blob for itself.
func (s *Store) lead(ctx context.Context, blob digest.Digest, patience time.Duration) (*staged, *flight, error) {
	tired := time.NewTimer(patience)
	defer tired.Stop()
	for {
		s.flightsMu.Lock()
		f := s.flights[blob]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			s.flights[blob] = f
			s.flightsMu.Unlock()
			return nil, f, nil
		}
		s.flightsMu.Unlock()
		select {
		case <-f.done:
		case <-tired.C:
			return nil, nil, nil
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		if st := f.share(); st != nil {
			return st, nil, nil
		}
		s.flightsMu.Lock()
		if s.flights[blob] == f {
			delete(s.flights, blob)
		}
		s.flightsMu.Unlock()
	}
}

// forgetFlight ends the sharing of a layer that nobody holds any more.
func (s *Store) forgetFlight(st *staged) {
	s.flightsMu.Lock()
	defer s.flightsMu.Unlock()
	if f := s.flights[st.blob]; f != nil && f.st == st {
		delete(s.flights, st.blob)
	}
}

// share holds the flight's layer for one more, unless it is gone already.
func (f *flight) share() *staged {
	if f.st == nil {
		return nil
	}
	f.st.mu.Lock()
	defer f.st.mu.Unlock()
	if f.st.holders == 0 {
		return nil
	}
	f.st.holders++
	return f.st
}

// land ends a flight with its layer, or with nil if it failed. Whoever waits
// goes on.
func (s *Store) land(blob digest.Digest, f *flight, st *staged) {
	s.flightsMu.Lock()
	defer s.flightsMu.Unlock()
	f.st = st
	if st == nil && s.flights[blob] == f {
		delete(s.flights, blob)
	}
	close(f.done)
}

// layerFor finds a whole layer with this content.
func (s *Store) layerFor(find func(digest.Digest) ([]storage.Layer, error), d digest.Digest) (*storage.Layer, bool) {
	list, err := find(d)
	if err != nil {
		return nil, false
	}
	for i := range list {
		l := &list[i]
		if l.UncompressedDigest == "" {
			continue
		}
		if dirs, err := s.layerDirs(l.ID); err == nil {
			if _, err := os.Stat(dirs[0]); err == nil {
				return l, true
			}
		}
	}
	return nil, false
}

// restage unpacks the content of a layer that exists anew, for another place
// in another image.
func (s *Store) restage(ctx context.Context, diffID digest.Digest) (*staged, error) {
	l, ok := s.layerFor(s.lib.LayersByUncompressedDigest, diffID)
	if !ok {
		return nil, fmt.Errorf("layer %s has gone meanwhile: pull again", diffID)
	}
	uncompressed := archive.Uncompressed
	r, err := s.lib.Diff("", l.ID, &storage.DiffOptions{Compression: &uncompressed})
	if err != nil {
		return nil, err
	}
	st, err := s.stage(ctx, l.CompressedDigest, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if st.diffID != diffID {
		st.release()
		return nil, fmt.Errorf("layer %s holds %s: it is damaged: remove the images that use it and pull them again", l.ID, st.diffID)
	}
	return st, nil
}
