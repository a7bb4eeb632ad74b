package layered

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"go.podman.io/storage"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/store"
)

// usageCounter knows the inodes of layers. Layers never change, so each is
// walked once in its life, behind the caller's back, and the number is kept.
type usageCounter struct {
	mu       sync.Mutex // guards all below
	inodes   map[string]uint64
	counting bool
	stamp    string // of the images that bytes and total are about
	bytes    uint64
	total    uint64
}

// Usage implements store.Images: bytes from what was recorded when layers were
// unpacked, inodes from the layers counted so far.
func (s *Store) Usage(ctx context.Context) (store.Usage, error) {
	if err := ctx.Err(); err != nil {
		return store.Usage{}, err
	}
	u := &s.usage
	stamp := s.stamp()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stamp != stamp || stamp == "" {
		layers, err := s.lib.Layers()
		if err != nil {
			return store.Usage{}, err
		}
		u.sum(s, layers)
		u.stamp = stamp
	}
	return store.Usage{MountPoint: s.names.storage, Bytes: u.bytes, Inodes: u.total}, nil
}

// sum adds up all layers; the caller holds mu.
func (u *usageCounter) sum(s *Store, layers []storage.Layer) {
	if u.inodes == nil {
		u.inodes = map[string]uint64{}
	}
	u.bytes, u.total = 0, 0
	var todo []string
	live := make(map[string]bool, len(layers))
	for _, l := range layers {
		live[l.ID] = true
		u.bytes += uint64(max(l.UncompressedSize, 0))
		n, ok := u.inodes[l.ID]
		if !ok {
			if n, ok = s.readInodes(l.ID); ok {
				u.inodes[l.ID] = n
			} else {
				todo = append(todo, l.ID)
			}
		}
		u.total += n
	}
	for id := range u.inodes {
		if !live[id] {
			delete(u.inodes, id)
			_ = os.Remove(filepath.Join(s.names.usage, id))
		}
	}
	if len(todo) > 0 && !u.counting {
		u.counting = true
		s.bg.Go(func() { s.countInodes(todo) })
	}
}

func (s *Store) readInodes(layer string) (uint64, bool) {
	data, err := os.ReadFile(filepath.Join(s.names.usage, layer))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data), 10, 64)
	return n, err == nil
}

func (s *Store) countInodes(layers []string) {
	for _, id := range layers {
		var n uint64
		dirs, err := s.layerDirs(id)
		if err == nil {
			err = filepath.WalkDir(dirs[0], func(string, fs.DirEntry, error) error {
				n++
				return nil
			})
		}
		if err != nil {
			continue // removed meanwhile
		}
		_ = atomicfile.Write(filepath.Join(s.names.usage, id), strconv.AppendUint(nil, n, 10), 0o600)
		s.usage.mu.Lock()
		s.usage.inodes[id] = n
		s.usage.mu.Unlock()
		// Looked at after the write: whoever removed the layer either finds the
		// file or is seen here.
		if !s.lib.Exists(id) {
			s.forgetUsage([]string{id})
		}
	}
	s.usage.mu.Lock()
	s.usage.counting = false
	s.usage.stamp = "" // sum again at the next call
	s.usage.mu.Unlock()
}

// forgetUsage drops what is known of layers that are gone.
func (s *Store) forgetUsage(layers []string) {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	for _, id := range layers {
		delete(s.usage.inodes, id)
		_ = os.Remove(filepath.Join(s.names.usage, id))
	}
}

// sweepUsage drops the numbers of layers that another process removed.
func (s *Store) sweepUsage() {
	entries, err := os.ReadDir(s.names.usage)
	if err != nil {
		return
	}
	var gone []string
	for _, e := range entries {
		if !s.lib.Exists(e.Name()) {
			gone = append(gone, e.Name())
		}
	}
	s.forgetUsage(gone)
}
