package layered

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store"
)

const idPrefix = "sha256:"

var hexID = regexp.MustCompile(`^[0-9a-f]{12,64}$`)

// snapshot is the image list as of one stamp. It never changes.
type snapshot struct {
	stamp  string
	ids    []string // sorted
	byID   map[string]*entry
	byName map[string]*entry
}

type entry struct {
	hex string
	top string // top layer, "" if the image has none
	img store.Image
	err error // why the image cannot be used: wraps ErrDamaged
}

// stamp changes whenever any process changes the list of images: each write
// puts a new last-writer mark in the lock file and a new inode under the list.
func (s *Store) stamp() string {
	var b strings.Builder
	for _, root := range append([]string{s.names.storage}, s.opts.AdditionalStores...) {
		dir := filepath.Join(root, "overlay-images")
		if mark, err := os.ReadFile(filepath.Join(dir, "images.lock")); err == nil && len(mark) <= 4096 {
			b.Write(mark)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "images.json"), &st); err == nil {
			fmt.Fprintf(&b, "|%d.%d.%d.%d|", st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
		}
	}
	return b.String()
}

// list returns the current snapshot, from memory unless something changed.
func (s *Store) list() (*snapshot, error) {
	if snap := s.current.Load(); snap != nil && snap.stamp == s.stamp() {
		return snap, nil
	}
	s.refreshMu.Lock()
	defer s.refreshMu.Unlock()
	old := s.current.Load()
	stamp := s.stamp() // before reading: a change in between shows next time
	if old != nil && old.stamp == stamp {
		return old, nil
	}
	images, err := s.lib.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	snap := &snapshot{stamp: stamp, byID: make(map[string]*entry, len(images)), byName: map[string]*entry{}}
	for i := range images {
		e := s.describe(&images[i], old)
		if e == nil || snap.byID[e.hex] != nil {
			continue
		}
		snap.byID[e.hex] = e
		snap.ids = append(snap.ids, e.hex)
		for _, n := range e.img.Tags {
			snap.byName[n] = e
		}
		for _, n := range e.img.Digests {
			snap.byName[n] = e
		}
	}
	sort.Strings(snap.ids)
	s.current.Store(snap)
	return snap, nil
}

// describe makes the entry of one image. What cannot change (config, size) is
// taken from the last snapshot when it was fine there.
func (s *Store) describe(li *storage.Image, old *snapshot) *entry {
	if len(li.ID) != 64 || !hexID.MatchString(li.ID) {
		return nil // not made by a pull: it has no id that CRI could name
	}
	e := &entry{hex: li.ID, top: li.TopLayer}
	if old != nil {
		if was := old.byID[li.ID]; was != nil && was.err == nil && was.top == li.TopLayer {
			e.img = was.img
		}
	}
	if e.img.ID == "" {
		e.img.ID = idPrefix + li.ID
		e.load(s, li)
	}
	e.img.Tags, e.img.Digests = splitNames(li)
	return e
}

// load reads what the image's own files say.
func (e *entry) load(s *Store, li *storage.Image) {
	key := idPrefix + li.ID
	if n, ok := li.BigDataSizes[key]; ok && n > maxConfig {
		e.err = fmt.Errorf("image %s: config of %d bytes: %w", e.img.ID, n, store.ErrDamaged)
		return
	}
	data, err := s.lib.ImageBigData(li.ID, key)
	if err != nil {
		e.err = fmt.Errorf("image %s: config: %w: %w", e.img.ID, store.ErrDamaged, err)
		return
	}
	cfg, created, err := parseConfig(data, li.ID)
	if err != nil {
		e.err = fmt.Errorf("image %s: %w", e.img.ID, err)
		return
	}
	e.img.Config, e.img.Created = cfg, created
	for id := li.TopLayer; id != ""; {
		layer, err := s.lib.Layer(id)
		if err != nil {
			e.err = fmt.Errorf("image %s: layer %s: %w: %w", e.img.ID, id, store.ErrDamaged, err)
			return
		}
		e.img.Size += max(layer.UncompressedSize, 0)
		id = layer.Parent
	}
	// The kubelet's garbage collection takes zero for an error.
	e.img.Size += int64(len(data))
}

// splitNames sorts an image's names into tags and digests. An image that some
// other tool named by tag only is given that repository's digest.
func splitNames(li *storage.Image) (tags, digests []string) {
	repos := map[string]bool{}
	var tagged []reference.Named
	for _, n := range li.Names {
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		if _, ok := ref.(reference.Digested); ok {
			digests = append(digests, ref.String())
			repos[ref.Name()] = true
			continue
		}
		ref = reference.TagNameOnly(ref)
		tags = append(tags, ref.String())
		tagged = append(tagged, ref)
	}
	for _, ref := range tagged {
		if repos[ref.Name()] || li.Digest == "" {
			continue
		}
		if d, err := reference.WithDigest(reference.TrimNamed(ref), li.Digest); err == nil {
			digests = append(digests, d.String())
			repos[ref.Name()] = true
		}
	}
	sort.Strings(tags)
	sort.Strings(digests)
	return slices.Compact(tags), slices.Compact(digests)
}

// normalise turns what a user writes into the form names are kept in. A name
// with both tag and digest is found by its digest.
func normalise(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("%q: %w: %w", name, store.ErrInvalid, err)
	}
	return ref.String(), nil
}

// find resolves ref; name is "" when ref is an id.
func (s *Store) find(ref string) (e *entry, name string, err error) {
	snap, err := s.list()
	if err != nil {
		return nil, "", err
	}
	bare := strings.TrimPrefix(ref, idPrefix)
	if hexID.MatchString(bare) {
		if e := snap.byID[bare]; e != nil {
			return e, "", nil
		}
		if len(bare) < 64 {
			i := sort.SearchStrings(snap.ids, bare)
			if i < len(snap.ids) && strings.HasPrefix(snap.ids[i], bare) {
				if i+1 < len(snap.ids) && strings.HasPrefix(snap.ids[i+1], bare) {
					return nil, "", fmt.Errorf("image id %q names more than one image: %w", ref, store.ErrInvalid)
				}
				return snap.byID[snap.ids[i]], "", nil
			}
		}
		if len(bare) == 64 || strings.HasPrefix(ref, idPrefix) {
			return nil, "", fmt.Errorf("image %s: %w", ref, store.ErrNotFound)
		}
	}
	name, err = normalise(ref)
	if err != nil {
		return nil, "", err
	}
	if e := snap.byName[name]; e != nil {
		return e, name, nil
	}
	return nil, "", fmt.Errorf("image %s: %w", ref, store.ErrNotFound)
}

func (e *entry) copy() *store.Image {
	img := e.img
	img.Tags = slices.Clone(e.img.Tags)
	img.Digests = slices.Clone(e.img.Digests)
	return &img
}

// Image implements store.Images. The error of an image whose files are broken
// wraps ErrDamaged; pulling it again repairs it. Config is shared: read only.
func (s *Store) Image(ctx context.Context, ref string) (*store.Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, _, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if e.err != nil {
		return nil, e.err
	}
	return e.copy(), nil
}

// Images implements store.Images. Broken images are in the list, with an empty
// config, so that they can be seen and removed.
func (s *Store) Images(ctx context.Context) ([]*store.Image, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	snap, err := s.list()
	if err != nil {
		return nil, err
	}
	out := make([]*store.Image, 0, len(snap.ids))
	for _, id := range snap.ids {
		out = append(out, snap.byID[id].copy())
	}
	return out, nil
}

// RawConfig returns the image config as it came.
func (s *Store) RawConfig(ctx context.Context, ref string) ([]byte, error) {
	img, err := s.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	data, err := s.lib.ImageBigData(strings.TrimPrefix(img.ID, idPrefix), img.ID)
	return data, classify(err)
}

// Tag implements store.Images.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	full, err := normalise(name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e, _, err := s.find(ref)
	if err != nil {
		return err
	}
	if slices.Contains(e.img.Tags, full) {
		return nil
	}
	if err := s.lib.AddNames(e.hex, []string{full}); err != nil {
		return fmt.Errorf("tag %s: %w", full, classify(err))
	}
	return nil
}

// Remove implements store.Images. The digests of an image are not names of
// their own here: an image that loses its last tag goes.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, name, err := s.find(ref)
	if err != nil {
		return err
	}
	if name != "" && e.hasOther(name) {
		if err := s.lib.RemoveNames(e.hex, []string{name}); err != nil {
			return fmt.Errorf("remove %s: %w", name, classify(err))
		}
		return nil
	}
	lock, err := s.lockImage(e.hex, unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	defer lock.Close()
	if err := s.checkUnpinned(e.hex); err != nil {
		return err
	}
	layers, err := s.lib.DeleteImage(e.hex, true)
	if err != nil {
		return fmt.Errorf("remove image sha256:%s: %w", e.hex, classify(err))
	}
	s.forgetUsage(layers)
	// Still under the lock: whoever waits for it looks at the path again.
	_ = os.Remove(filepath.Join(s.names.pins, e.hex))
	if err := os.Remove(filepath.Join(s.names.pins, e.hex+".lock")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// hasOther says whether the image keeps a name of the same worth when name goes.
func (e *entry) hasOther(name string) bool {
	others := func(list []string) bool {
		return slices.ContainsFunc(list, func(n string) bool { return n != name })
	}
	if slices.Contains(e.img.Tags, name) {
		return others(e.img.Tags)
	}
	return len(e.img.Tags) > 0 || others(e.img.Digests)
}
