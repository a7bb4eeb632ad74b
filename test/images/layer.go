package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of every file and image, so that equal inputs give equal digests.
var epoch = time.Unix(1700000000, 0).UTC()

// Layer is a finished gzip layer. It implements v1.Layer.
type Layer struct {
	open   func() (io.ReadCloser, error) // the gzip bytes
	size   int64
	digest v1.Hash
	diffID v1.Hash
	media  types.MediaType
}

// Digest implements v1.Layer.
func (l *Layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID implements v1.Layer.
func (l *Layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Compressed implements v1.Layer.
func (l *Layer) Compressed() (io.ReadCloser, error) { return l.open() }

// Uncompressed implements v1.Layer.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.open()
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(rc)
	if err != nil {
		rc.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{z, rc}, nil
}

// Size implements v1.Layer.
func (l *Layer) Size() (int64, error) { return l.size, nil }

// MediaType implements v1.Layer.
func (l *Layer) MediaType() (types.MediaType, error) { return l.media, nil }

// as returns the layer under the media type of another manifest format.
func (l *Layer) as(mt types.MediaType) *Layer {
	c := *l
	c.media = mt
	return &c
}

// Builder writes one layer. Errors stick and are returned by Done.
type Builder struct {
	tw   *tar.Writer
	z    *gzip.Writer
	raw  *hashWriter
	gz   *hashWriter
	dirs map[string]bool
	err  error
}

type hashWriter struct {
	w io.Writer
	h interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (h *hashWriter) Write(b []byte) (int, error) {
	n, err := h.w.Write(b)
	h.h.Write(b[:n])
	h.n += int64(n)
	return n, err
}

func (h *hashWriter) sum() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.h.Sum(nil))}
}

// newBuilder makes a layer whose gzip bytes go to w.
func newBuilder(w io.Writer, level int) *Builder {
	b := &Builder{dirs: map[string]bool{".": true, "": true}}
	b.gz = &hashWriter{w: w, h: sha256.New()}
	b.z, b.err = gzip.NewWriterLevel(b.gz, level)
	b.raw = &hashWriter{w: b.z, h: sha256.New()}
	b.tw = tar.NewWriter(b.raw)
	return b
}

// NewLayer builds a layer in memory.
func NewLayer(fill func(*Builder)) (*Layer, error) {
	var buf bytes.Buffer
	b := newBuilder(&buf, gzip.DefaultCompression)
	fill(b)
	if err := b.close(); err != nil {
		return nil, err
	}
	data := buf.Bytes()
	return &Layer{
		open:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		size:   b.gz.n,
		digest: b.gz.sum(),
		diffID: b.raw.sum(),
		media:  types.DockerLayer,
	}, nil
}

func (b *Builder) close() error {
	if b.err != nil {
		return b.err
	}
	if err := b.tw.Close(); err != nil {
		return err
	}
	return b.z.Close()
}

// Header writes any tar entry as it is, also a hostile one.
func (b *Builder) Header(h *tar.Header, data []byte) {
	if b.err != nil {
		return
	}
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	if h.Typeflag == tar.TypeReg && h.Size == 0 {
		h.Size = int64(len(data))
	}
	if b.err = b.tw.WriteHeader(h); b.err != nil {
		b.err = fmt.Errorf("tar entry %s: %w", h.Name, b.err)
		return
	}
	_, b.err = b.tw.Write(data)
}

// Dir adds a directory and its parents.
func (b *Builder) Dir(p string, mode int64) {
	p = strings.Trim(p, "/")
	if b.dirs[p] {
		return
	}
	b.Dir(path.Dir(p), 0o755)
	b.dirs[p] = true
	b.Header(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: mode}, nil)
}

// File adds a regular file and its parents.
func (b *Builder) File(p string, data []byte, mode int64) {
	p = strings.Trim(p, "/")
	b.Dir(path.Dir(p), 0o755)
	b.Header(&tar.Header{Typeflag: tar.TypeReg, Name: p, Mode: mode}, data)
}

// Host copies a file of the host to p.
func (b *Builder) Host(p, src string, mode int64) {
	data, err := os.ReadFile(src)
	if err != nil && b.err == nil {
		b.err = err
	}
	b.File(p, data, mode)
}

// Hardlink adds p as another name of to.
func (b *Builder) Hardlink(p, to string) {
	p = strings.Trim(p, "/")
	b.Dir(path.Dir(p), 0o755)
	b.Header(&tar.Header{Typeflag: tar.TypeLink, Name: p, Linkname: strings.Trim(to, "/"), Mode: 0o755}, nil)
}

// Symlink adds p pointing to to.
func (b *Builder) Symlink(p, to string) {
	p = strings.Trim(p, "/")
	b.Dir(path.Dir(p), 0o755)
	b.Header(&tar.Header{Typeflag: tar.TypeSymlink, Name: p, Linkname: to, Mode: 0o777}, nil)
}
