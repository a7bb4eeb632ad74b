package layered

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/rmtree"
	"github.com/ocid-io/ocid/store"
)

// MountPrefix begins the ids of root file systems that people mounted by hand
// (`ocid mount`): Collect leaves them until a reboot has unmounted them.
const MountPrefix = "mnt-"

// Collect removes what a crash or a reboot left: root file systems that keep
// does not name, mounts and pins without a record, trash, half pulled images
// and layers. Work of other living processes is left alone. It does all it can
// and returns the errors together.
func (s *Store) Collect(ctx context.Context, keep func(id string) bool) error {
	ids, err := s.List(ctx)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, s.collectOne(id, keep))
	}
	errs = append(errs, s.collectMounts(), s.collectPins(), s.collectTrash())
	// The library removes its own half-made layers.
	if unlock, err := s.lockPulls(unix.LOCK_EX | unix.LOCK_NB); err == nil {
		errs = append(errs, s.lib.GarbageCollect(), s.sweepLocked())
		s.sweepUsage()
		unlock()
	} else if !errors.Is(err, errLocked) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return nil
}

func (s *Store) collectOne(id string, keep func(id string) bool) error {
	lock, err := flock(s.dir(id), unix.LOCK_EX|unix.LOCK_NB, false)
	if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil // someone is at work on it
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	_, err = s.readRecord(id)
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrDamaged):
	case err != nil:
		return err
	case strings.HasPrefix(id, MountPrefix):
		if mounted, err := isMount(s.mountPoint(id)); err != nil || mounted {
			return err
		}
	case keep(id):
		return nil
	}
	return s.destroy(id)
}

// collectMounts unmounts what has no record.
func (s *Store) collectMounts() error {
	entries, err := os.ReadDir(s.names.mounts)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !s.exists(e.Name()) {
			errs = append(errs, unmount(filepath.Join(s.names.mounts, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) exists(id string) bool {
	_, err := os.Lstat(s.dir(id))
	return !errors.Is(err, fs.ErrNotExist)
}

func (s *Store) collectPins() error {
	return s.dropPins(func(id string) bool { return !s.exists(id) })
}

func (s *Store) collectTrash() error {
	return emptyDir(s.names.trash)
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, rmtree.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// lockPulls takes the lock that says who pulls.
func (s *Store) lockPulls(how int) (func(), error) {
	f, err := flock(s.names.pullLock, how, true)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// sweepLocked removes downloads and layers that no image needs. The caller
// holds the pull lock exclusively: nobody is about to use them.
func (s *Store) sweepLocked() error {
	// Downloads first: deleting layers takes space for the new list.
	if err := emptyDir(s.names.tmp); err != nil {
		return err
	}
	// Unpacked layers that no process holds any more; the driver has no other
	// state to clean, as its directory is not mounted.
	if err := s.driver.Cleanup(); err != nil {
		return err
	}
	layers, err := s.lib.Layers()
	if err != nil {
		return err
	}
	parent := make(map[string]string, len(layers))
	children := make(map[string]int, len(layers))
	for _, l := range layers {
		if !l.ReadOnly {
			parent[l.ID] = l.Parent
			children[l.Parent]++
		}
	}
	needed, err := s.neededLayers(parent)
	if err != nil {
		return err
	}
	var errs []error
	for id := range parent {
		// From each leaf towards its root, as far as nothing needs it.
		for id != "" && !needed[id] && children[id] == 0 {
			up, ok := parent[id]
			if !ok {
				break
			}
			if err := s.lib.DeleteLayer(id); err != nil {
				errs = append(errs, classify(err))
				break
			}
			delete(parent, id)
			children[up]--
			id = up
		}
	}
	return errors.Join(errs...)
}

// neededLayers marks every layer that an image or a container is made of.
func (s *Store) neededLayers(parent map[string]string) (map[string]bool, error) {
	needed := map[string]bool{}
	mark := func(id string) {
		for id != "" && !needed[id] {
			needed[id] = true
			id = parent[id]
		}
	}
	images, err := s.lib.Images()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		mark(img.TopLayer)
		for _, l := range img.MappedTopLayers {
			mark(l)
		}
	}
	containers, err := s.lib.Containers()
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		mark(c.LayerID)
	}
	return needed, nil
}
