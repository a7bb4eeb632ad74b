package layered

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"

	"github.com/ocid-io/ocid/store"
)

// target is where an image is copied to: the library's own reference, whose
// images are written in our way, and found by every tool that knows the
// library.
type target struct {
	types.ImageReference
	s    *Store
	name reference.Named
}

// NewImageDestination implements types.ImageReference.
func (t target) NewImageDestination(context.Context, *types.SystemContext) (types.ImageDestination, error) {
	return &destination{
		t: t, s: t.s, leads: map[digest.Digest]*flight{}, layers: map[digest.Digest]*blob{},
		signatures: map[digest.Digest][][]byte{},
	}, nil
}

// blob is what is known of a layer of the image that is being copied.
type blob struct {
	diffID digest.Digest
	size   int64   // of the blob
	st     *staged // nil: a layer of this content was here before
}

// destination takes the blobs of one image. A layer is unpacked while it
// arrives; nothing but the config is kept in memory, and nothing is written
// twice. Until Commit nothing of it is part of an image, and Close removes what
// did not become one.
type destination struct {
	t target
	s *Store

	mu           sync.Mutex
	leads        map[digest.Digest]*flight // guarded by mu; blobs that this copy brings
	layers       map[digest.Digest]*blob   // guarded by mu
	configDigest digest.Digest             // guarded by mu
	config       []byte                    // guarded by mu

	manifest   []byte
	mime       string
	signatures map[digest.Digest][][]byte // by instance, "" for the image's own
}

// Reference implements types.ImageDestination.
func (d *destination) Reference() types.ImageReference { return d.t }

// Close implements types.ImageDestination.
func (d *destination) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for dgst, f := range d.leads {
		d.s.land(dgst, f, nil)
	}
	clear(d.leads)
	for _, b := range d.layers {
		if b.st != nil {
			b.st.release()
		}
	}
	clear(d.layers)
	return nil
}

// SupportedManifestMIMETypes implements types.ImageDestination.
func (d *destination) SupportedManifestMIMETypes() []string {
	return []string{ocispec.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType}
}

// SupportsSignatures implements types.ImageDestination.
func (d *destination) SupportsSignatures(context.Context) error { return nil }

// DesiredLayerCompression implements types.ImageDestination.
func (d *destination) DesiredLayerCompression() types.LayerCompression { return types.PreserveOriginal }

// AcceptsForeignLayerURLs implements types.ImageDestination.
func (d *destination) AcceptsForeignLayerURLs() bool { return false }

// MustMatchRuntimeOS implements types.ImageDestination.
func (d *destination) MustMatchRuntimeOS() bool { return true }

// IgnoresEmbeddedDockerReference implements types.ImageDestination.
func (d *destination) IgnoresEmbeddedDockerReference() bool { return true }

// HasThreadSafePutBlob implements types.ImageDestination.
func (d *destination) HasThreadSafePutBlob() bool { return true }

// TryReusingBlob says whether the layer need not be fetched: a layer of this
// content is here, or another pull has just brought it. Otherwise this copy is
// the one that others wait for.
func (d *destination) TryReusingBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache, _ bool) (bool, types.BlobInfo, error) {
	if err := info.Digest.Validate(); err != nil {
		return false, types.BlobInfo{}, fmt.Errorf("layer digest: %w: %w", store.ErrInvalid, err)
	}
	if b := d.blob(info.Digest); b != nil {
		return true, reused(info, b), nil
	}
	if l, ok := d.s.layerFor(d.s.lib.LayersByCompressedDigest, info.Digest); ok {
		b := &blob{diffID: l.UncompressedDigest, size: max(l.CompressedSize, info.Size)}
		d.add(info.Digest, b)
		return true, reused(info, b), nil
	}
	st, f, err := d.s.lead(ctx, info.Digest, sharePatience)
	if err != nil {
		return false, types.BlobInfo{}, err
	}
	if st != nil {
		b := &blob{diffID: st.diffID, size: info.Size, st: st}
		d.add(info.Digest, b)
		return true, reused(info, b), nil
	}
	if f != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leads[info.Digest] = f
	}
	return false, types.BlobInfo{}, nil
}

func reused(info types.BlobInfo, b *blob) types.BlobInfo {
	return types.BlobInfo{Digest: info.Digest, Size: b.size, MediaType: info.MediaType}
}

func (d *destination) blob(dgst digest.Digest) *blob {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.layers[dgst]
}

// add remembers a layer; one that came twice is let go once.
func (d *destination) add(dgst digest.Digest, b *blob) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.layers[dgst] != nil {
		if b.st != nil {
			b.st.release()
		}
		return
	}
	d.layers[dgst] = b
}

// PutBlob implements types.ImageDestination. The caller verifies the digest of
// what it hands in while it is read, to its very end.
func (d *destination) PutBlob(ctx context.Context, stream io.Reader, info types.BlobInfo, cache types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	if err := info.Digest.Validate(); err != nil {
		return types.BlobInfo{}, fmt.Errorf("blob digest: %w: %w", store.ErrInvalid, err)
	}
	if isConfig {
		return d.putConfig(stream, info)
	}
	counted := &counter{r: stream}
	st, err := d.s.stage(ctx, info.Digest, counted)
	d.mu.Lock()
	f := d.leads[info.Digest]
	delete(d.leads, info.Digest)
	d.mu.Unlock()
	if f != nil {
		d.s.land(info.Digest, f, st)
	}
	if err != nil {
		return types.BlobInfo{}, fmt.Errorf("unpack layer %s: %w", info.Digest, err)
	}
	cache.RecordDigestUncompressedPair(info.Digest, st.diffID)
	d.add(info.Digest, &blob{diffID: st.diffID, size: counted.n, st: st})
	return types.BlobInfo{Digest: info.Digest, Size: counted.n, MediaType: info.MediaType}, nil
}

func (d *destination) putConfig(stream io.Reader, info types.BlobInfo) (types.BlobInfo, error) {
	b, err := io.ReadAll(io.LimitReader(stream, maxConfig+1))
	if err != nil {
		return types.BlobInfo{}, err
	}
	if len(b) > maxConfig {
		return types.BlobInfo{}, fmt.Errorf("a config of more than %d bytes: %w", maxConfig, store.ErrInvalid)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config, d.configDigest = b, info.Digest
	return types.BlobInfo{Digest: info.Digest, Size: int64(len(b)), MediaType: info.MediaType}, nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// PutManifest implements types.ImageDestination.
func (d *destination) PutManifest(_ context.Context, m []byte, instance *digest.Digest) error {
	if instance == nil {
		d.manifest, d.mime = slices.Clone(m), manifest.GuessMIMEType(m)
	}
	return nil
}

// PutSignatures implements types.ImageDestination.
func (d *destination) PutSignatures(_ context.Context, sigs [][]byte, instance *digest.Digest) error {
	if len(sigs) == 0 {
		return nil
	}
	key := digest.Digest("")
	if instance != nil {
		key = *instance
	}
	d.signatures[key] = sigs
	return nil
}

// Commit makes the layers and the image. The library flushes what is
// unpacked before its list says that a layer is whole.
func (d *destination) Commit(ctx context.Context, top types.UnparsedImage) error {
	man, err := manifest.FromBlob(d.manifest, d.mime)
	if err != nil {
		return fmt.Errorf("manifest: %w: %w", store.ErrInvalid, err)
	}
	if man.ConfigInfo().Digest != d.configDigest || d.config == nil {
		return fmt.Errorf("the image's config %s did not come: %w", man.ConfigInfo().Digest, store.ErrInvalid)
	}
	parent, err := d.makeLayers(ctx, man.LayerInfos())
	if err != nil {
		return err
	}
	list, _, err := top.Manifest(ctx)
	if err != nil {
		return err
	}
	o, err := d.imageOptions(list)
	if err != nil {
		return err
	}
	return d.createImage(d.configDigest.Encoded(), parent, o)
}

// makeLayers makes the chain of layers and returns the id of the topmost. Ids
// follow from the contents, as the library's own copies have them.
func (d *destination) makeLayers(ctx context.Context, infos []manifest.LayerInfo) (string, error) {
	var cfg struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(d.config, &cfg); err != nil {
		return "", fmt.Errorf("image config: %w: %w", store.ErrInvalid, err)
	}
	if want := len(cfg.RootFS.DiffIDs); want != len(infos) {
		return "", fmt.Errorf("the manifest has %d layers and the config %d: %w", len(infos), want, store.ErrInvalid)
	}
	parent := ""
	for i, info := range infos {
		b := d.blob(info.Digest)
		if b == nil {
			return "", fmt.Errorf("layer %s did not come: %w", info.Digest, store.ErrInvalid)
		}
		if want := cfg.RootFS.DiffIDs[i]; b.diffID != want {
			return "", fmt.Errorf("layer %s unpacks to %s, and the config says %s: Digest did not match: %w", info.Digest, b.diffID, want, store.ErrInvalid)
		}
		id := chainID(parent, b.diffID)
		if err := d.makeLayer(ctx, b, id, parent); err != nil {
			return "", fmt.Errorf("layer %s: %w", info.Digest, err)
		}
		parent = id
	}
	return parent, nil
}

func chainID(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.Encoded()
	}
	return digest.Canonical.FromString(parent + "+" + diffID.Encoded()).Encoded()
}

func (d *destination) makeLayer(ctx context.Context, b *blob, id, parent string) error {
	if l, err := d.s.lib.Layer(id); err == nil && l.UncompressedDigest == b.diffID {
		return nil
	}
	if b.st != nil {
		if done, err := b.st.apply(id, parent); done {
			return err
		}
	}
	st, err := d.s.restage(ctx, b.diffID)
	if err != nil {
		return err
	}
	defer st.release()
	_, err = st.apply(id, parent)
	return err
}

// imageOptions is what is kept with the image, under the library's keys.
func (d *destination) imageOptions(list []byte) (*storage.ImageOptions, error) {
	own, err := manifest.Digest(d.manifest)
	if err != nil {
		return nil, err
	}
	o := &storage.ImageOptions{}
	put := func(key string, data []byte, dgst digest.Digest) {
		o.BigData = append(o.BigData, storage.ImageBigDataOption{Key: key, Data: data, Digest: dgst})
	}
	put(d.configDigest.String(), d.config, d.configDigest)
	listDigest, err := manifest.Digest(list)
	if err != nil {
		return nil, err
	}
	if listDigest != own {
		put(storage.ImageDigestManifestBigDataNamePrefix+"-"+listDigest.String(), list, listDigest)
	}
	put(storage.ImageDigestManifestBigDataNamePrefix+"-"+own.String(), d.manifest, own)
	put(storage.ImageDigestBigDataKey, d.manifest, own)
	var created struct {
		Created ocispec.Image `json:"-"`
	}
	if json.Unmarshal(d.config, &created.Created) == nil && created.Created.Created != nil {
		o.CreationDate = *created.Created.Created
	}
	return o, d.addSignatures(o, put)
}

// addSignatures keeps signatures as the library does: joined, their sizes in
// the image's metadata.
func (d *destination) addSignatures(o *storage.ImageOptions, put func(string, []byte, digest.Digest)) error {
	var meta struct {
		Own  []int                   `json:"signature-sizes,omitempty"`
		Each map[digest.Digest][]int `json:"signatures-sizes,omitempty"`
	}
	for instance, sigs := range d.signatures {
		var sizes []int
		var joined []byte
		for _, s := range sigs {
			sizes = append(sizes, len(s))
			joined = append(joined, s...)
		}
		if instance == "" {
			meta.Own = sizes
			put("signatures", joined, digest.FromBytes(joined))
			continue
		}
		if meta.Each == nil {
			meta.Each = map[digest.Digest][]int{}
		}
		meta.Each[instance] = sizes
		put("signature-"+instance.Encoded(), joined, digest.FromBytes(joined))
	}
	b, err := json.Marshal(meta)
	o.Metadata = string(b)
	return err
}

// createImage makes the image, or brings one that is there up to date.
func (d *destination) createImage(id, top string, o *storage.ImageOptions) error {
	lib := d.s.lib
	_, err := lib.CreateImage(id, nil, top, "", o)
	if errors.Is(err, storage.ErrDuplicateID) {
		img, err := lib.Image(id)
		if err != nil {
			return err
		}
		if img.TopLayer != top {
			return fmt.Errorf("image %s is here with other layers: remove it and pull again: %w", id, storage.ErrDuplicateID)
		}
		for _, b := range o.BigData {
			if err := lib.SetImageBigData(id, b.Key, b.Data, manifest.Digest); err != nil {
				return err
			}
		}
	} else if err != nil {
		return fmt.Errorf("create image %s: %w", id, err)
	}
	return lib.AddNames(id, []string{d.t.name.String()})
}
