package layered

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/internal/rmtree"
	"github.com/ocid-io/ocid/internal/userns"
	"github.com/ocid-io/ocid/store"
)

var rootfsID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// record is what is on disk about one root file system.
type record struct {
	Version  int    `json:"version"`
	ID       string `json:"id"`
	ImageID  string `json:"imageID"`
	ReadOnly bool   `json:"readOnly,omitempty"`

	IDMap *store.IDMap `json:"idMap,omitempty"`
}

const recordVersion = 1

// maxRecord bounds what is read of a record.
const maxRecord = 64 << 10

func (s *Store) dir(id string) string        { return filepath.Join(s.names.rootfs, id) }
func (s *Store) mountPoint(id string) string { return filepath.Join(s.names.mounts, id) }

func (s *Store) rootFS(r record) *store.RootFS {
	fs := &store.RootFS{ID: r.ID, ImageID: r.ImageID, Path: s.mountPoint(r.ID)}
	if !r.ReadOnly {
		fs.UpperDir = filepath.Join(s.dir(r.ID), "upper")
	}
	return fs
}

func (s *Store) readRecord(id string) (record, error) {
	var r record
	f, err := os.Open(filepath.Join(s.dir(id), "record.json"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return r, fmt.Errorf("root file system %s: %w", id, store.ErrNotFound)
		}
		return r, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return r, err
	}
	if st.Size() > maxRecord {
		return r, fmt.Errorf("root file system %s: record of %d bytes: %w", id, st.Size(), store.ErrDamaged)
	}
	if err := json.NewDecoder(f).Decode(&r); err != nil {
		return r, fmt.Errorf("root file system %s: record: %w: %w", id, store.ErrDamaged, err)
	}
	hex, ok := strings.CutPrefix(r.ImageID, idPrefix)
	if r.ID != id || !ok || len(hex) != 64 || !hexID.MatchString(hex) {
		return r, fmt.Errorf("root file system %s: record: %w", id, store.ErrDamaged)
	}
	return r, nil
}

// Prepare implements store.RootFSes.
func (s *Store) Prepare(ctx context.Context, req store.RootFSRequest) (*store.RootFS, error) {
	if !rootfsID.MatchString(req.ID) {
		return nil, fmt.Errorf("root file system id %q: %w", req.ID, store.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := s.lockRootFS(req.ID)
	if err != nil {
		return nil, fmt.Errorf("prepare root file system %s: %w", req.ID, err)
	}
	defer dir.Close()
	r, err := s.readRecord(req.ID)
	fresh := errors.Is(err, store.ErrNotFound)
	if err != nil && !fresh {
		return nil, err
	}
	if !fresh && (r.ReadOnly != req.ReadOnly || !reflect.DeepEqual(r.IDMap, req.IDMap) ||
		strings.TrimPrefix(req.ImageID, idPrefix) != strings.TrimPrefix(r.ImageID, idPrefix)) {
		return nil, fmt.Errorf("root file system %s exists, made of %s (read-only %t): %w", req.ID, r.ImageID, r.ReadOnly, store.ErrInvalid)
	}
	out, err := s.prepareLocked(req, fresh)
	if err != nil {
		if fresh {
			// Nothing may be left of a request that failed. The lock is held,
			// so this removes what we made and nothing else.
			err = errors.Join(err, s.destroy(req.ID))
		}
		return nil, fmt.Errorf("prepare root file system %s: %w", req.ID, err)
	}
	return out, nil
}

// lockRootFS makes the directory of a root file system if needed and locks it.
func (s *Store) lockRootFS(id string) (*os.File, error) {
	for {
		if err := os.Mkdir(s.dir(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err := flock(s.dir(id), unix.LOCK_EX, false)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released in between
		}
		return f, err
	}
}

func (s *Store) prepareLocked(req store.RootFSRequest, fresh bool) (*store.RootFS, error) {
	e, err := s.pinImage(req)
	if err != nil {
		return nil, err
	}
	r := record{Version: recordVersion, ID: req.ID, ImageID: e.img.ID, ReadOnly: req.ReadOnly, IDMap: req.IDMap}
	if fresh {
		data, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		// Not flushed: root file systems do not outlive a power cut, and one
		// without a record is collected.
		if err := atomicfile.Write(filepath.Join(s.dir(req.ID), "record.json"), data, 0o600); err != nil {
			return nil, err
		}
	}
	if mounted, err := isMount(s.mountPoint(req.ID)); err != nil || mounted {
		return s.rootFS(r), err
	}
	if err := s.mount(e, req); err != nil {
		return nil, err
	}
	return s.rootFS(r), nil
}

// pinImage finds the image and pins it, under the image's lock so that Remove
// either sees the pin or has already made the image unfindable.
func (s *Store) pinImage(req store.RootFSRequest) (*entry, error) {
	e, _, err := s.find(req.ImageID)
	if err != nil {
		return nil, err
	}
	lock, err := s.lockImage(e.hex, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	e, _, err = s.find(idPrefix + e.hex)
	if err != nil {
		return nil, err
	}
	if e.err != nil {
		return nil, e.err
	}
	return e, s.pin(e.hex, req.ID)
}

// mount mounts the root file system of a record.
func (s *Store) mount(e *entry, req store.RootFSRequest) error {
	lowers, err := s.layerDirs(e.top)
	if err != nil {
		return err
	}
	target := s.mountPoint(req.ID)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var shift *os.File
	if req.IDMap != nil {
		if shift, err = userns.File(ranges(req.IDMap.UIDs), ranges(req.IDMap.GIDs)); err != nil {
			return err
		}
		defer shift.Close()
	}
	// A bind mount cannot give files a label, and an overlay needs two layers.
	if req.ReadOnly && len(lowers) == 1 && req.Label == "" {
		err = bindReadOnly(target, lowers[0], shift)
	} else {
		top := topLayer{label: req.Label}
		if !req.ReadOnly || len(lowers) == 1 {
			top.upper, top.work, err = s.makeUpper(req, lowers[0])
		}
		if err == nil {
			err = mountOverlay(target, lowers, top, shift)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image %s: a layer is missing: %w: %w", e.img.ID, store.ErrDamaged, err)
	}
	return err
}

// makeUpper makes the writable layer: its root is the container's "/" and must
// look like the image's.
func (s *Store) makeUpper(req store.RootFSRequest, top string) (upper, work string, err error) {
	upper, work = filepath.Join(s.dir(req.ID), "upper"), filepath.Join(s.dir(req.ID), "work")
	var st unix.Stat_t
	if err := unix.Stat(top, &st); err != nil {
		return "", "", &fs.PathError{Op: "stat", Path: top, Err: err}
	}
	if m := req.IDMap; m != nil {
		uid, okUID := userns.Host(ranges(m.UIDs), st.Uid)
		gid, okGID := userns.Host(ranges(m.GIDs), st.Gid)
		if !okUID || !okGID {
			return "", "", fmt.Errorf("the image's root directory belongs to %d:%d, which the user namespace does not map: %w", st.Uid, st.Gid, store.ErrInvalid)
		}
		st.Uid, st.Gid = uid, gid
	}
	switch err := os.Mkdir(upper, 0o700); {
	case err == nil:
		if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
			return "", "", err
		}
		if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
			return "", "", fmt.Errorf("chmod %s: %w", upper, err)
		}
	case !errors.Is(err, fs.ErrExist):
		return "", "", err
	}
	// A volatile overlay refuses the work directory of one before it.
	if err := rmtree.Remove(work); err != nil {
		return "", "", err
	}
	return upper, work, os.Mkdir(work, 0o700)
}

// layerDirs returns the directories of a layer chain, topmost first.
func (s *Store) layerDirs(top string) ([]string, error) {
	if top == "" {
		return []string{s.names.empty}, nil
	}
	s.lowersMu.Lock()
	dirs := s.lowers[top]
	s.lowersMu.Unlock()
	if dirs != nil {
		return dirs, nil
	}
	meta, err := s.driver.Metadata(top)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("layer %s: %w: %w", top, store.ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", top, err)
	}
	dirs = []string{meta["UpperDir"]}
	if l := meta["LowerDir"]; l != "" {
		dirs = append(dirs, strings.Split(l, ":")...)
	}
	s.lowersMu.Lock()
	s.lowers[top] = dirs
	s.lowersMu.Unlock()
	return dirs, nil
}

// RootFS implements store.RootFSes.
func (s *Store) RootFS(ctx context.Context, id string) (*store.RootFS, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !rootfsID.MatchString(id) {
		return nil, fmt.Errorf("root file system id %q: %w", id, store.ErrInvalid)
	}
	r, err := s.readRecord(id)
	if err != nil {
		return nil, err
	}
	return s.rootFS(r), nil
}

// Release implements store.RootFSes.
func (s *Store) Release(ctx context.Context, id string) error {
	if !rootfsID.MatchString(id) {
		return fmt.Errorf("root file system id %q: %w", id, store.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	lock, err := flock(s.dir(id), unix.LOCK_EX, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release root file system %s: %w", id, err)
	}
	defer lock.Close()
	if err := s.destroy(id); err != nil {
		return fmt.Errorf("release root file system %s: %w", id, err)
	}
	return nil
}

// List implements store.RootFSes.
func (s *Store) List(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.names.rootfs)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		if rootfsID.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// destroy unmounts and removes a root file system; the caller holds its lock.
func (s *Store) destroy(id string) error {
	if err := unmount(s.mountPoint(id)); err != nil {
		return err
	}
	r, recordErr := s.readRecord(id)
	trash, err := s.discard(s.dir(id))
	if err != nil {
		return err
	}
	// The directory has gone, so a pin that stays is stale, whatever happens.
	if recordErr == nil {
		if err := s.unpin(strings.TrimPrefix(r.ImageID, idPrefix), id); err != nil {
			return err
		}
	} else if err := s.dropPins(func(pin string) bool { return pin == id }); err != nil {
		return err
	}
	s.remove(trash)
	return nil
}

// discard moves a path into the trash.
func (s *Store) discard(path string) (string, error) {
	trash := filepath.Join(s.names.trash, fmt.Sprintf("%s.%d", filepath.Base(path), time.Now().UnixNano()))
	return trash, os.Rename(path, trash)
}

// remove deletes a tree, and goes on behind the caller's back if it is large.
func (s *Store) remove(path string) {
	done := make(chan struct{})
	s.bg.Go(func() {
		defer close(done)
		// What cannot be removed now is still in the trash for Collect.
		_ = rmtree.Remove(path)
	})
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// dropPins removes every pin that gone names.
func (s *Store) dropPins(gone func(id string) bool) error {
	images, err := os.ReadDir(s.names.pins)
	if err != nil {
		return err
	}
	for _, image := range images {
		if !image.IsDir() {
			continue
		}
		pins, err := os.ReadDir(filepath.Join(s.names.pins, image.Name()))
		if err != nil {
			return err
		}
		for _, p := range pins {
			if gone(p.Name()) {
				if err := s.unpin(image.Name(), p.Name()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
