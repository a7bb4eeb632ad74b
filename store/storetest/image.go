package storetest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Layer is the content of one layer.
type Layer []Entry

// Entry is one entry of a layer's archive.
type Entry struct {
	tar.Header
	Data string
}

// File is a layer with one file.
func File(name, data string) Layer {
	return Layer{{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, Data: data}}
}

// Dir is a layer with one directory.
func Dir(name string, mode int64, uid, gid int) Layer {
	return Layer{{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, Uid: uid, Gid: gid}}}
}

// Image makes an image of layers, the last on top, with user 1000.
func Image(t testing.TB, layers ...Layer) v1.Image {
	t.Helper()
	img := empty.Image
	for _, l := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, e := range l {
			h := e.Header
			h.Size = int64(len(e.Data))
			must(t, w.WriteHeader(&h))
			_, err := io.WriteString(w, e.Data)
			must(t, err)
		}
		must(t, w.Close())
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
		})
		must(t, err)
		img, err = mutate.AppendLayers(img, layer)
		must(t, err)
	}
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.User = "1000"
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	return img
}

func id(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	must(t, err)
	return h.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, path, want string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != want {
		t.Fatalf("%s: %q, %v; want %q", path, data, err, want)
	}
}
