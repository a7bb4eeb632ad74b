package imagewire_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store"
)

func (n *node) copy(t *testing.T, src, dst string, all bool) string {
	t.Helper()
	d, err := n.Copy(t.Context(), pull.CopyRequest{Source: src, Target: dst, All: all})
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// TestCopyAround takes one image through every kind of place and back; the
// image stays what it is.
func TestCopyAround(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	img := layerOf(t, randomLayer(t, 5000), randomLayer(t, 6000))
	id, err := img.ConfigName()
	must(t, err)
	digest, err := img.Digest()
	must(t, err)
	from := "docker://" + u.push(t, "app:v1", img)
	dir := t.TempDir()
	if got := n.copy(t, from, "dir:"+dir+"/dir", false); got != digest.String() {
		t.Errorf("a directory has %s, the registry %s", got, digest)
	}
	n.copy(t, "dir:"+dir+"/dir", "oci:"+dir+"/oci:v1", false)
	n.copy(t, "oci:"+dir+"/oci:v1", "oci-archive:"+dir+"/oci.tar:v1", false)
	n.copy(t, "oci-archive:"+dir+"/oci.tar:v1", "docker-archive:"+dir+"/docker.tar:example.com/app:v1", false)
	n.copy(t, "dir:"+dir+"/dir", "ocid:example.com/own:v1", false)
	own, err := n.store.Image(t.Context(), "example.com/own:v1")
	must(t, err)
	if own.ID != id.String() || !slices.Contains(own.Digests, "example.com/own@"+digest.String()) {
		t.Errorf("the store has %s %v, want %s of digest %s", own.ID, own.Digests, id, digest)
	}
	usable(t, n, "example.com/own:v1")
	n.copy(t, "docker-archive:"+dir+"/docker.tar", "ocid:example.com/archived:v1", false)
	usable(t, n, "example.com/archived:v1")
	// Out of the store again: the layers are put together from their records.
	n.copy(t, "ocid:example.com/own:v1", "dir:"+dir+"/again", false)
	n.copy(t, "ocid:example.com/own:v1", "docker://"+u.host+"/back:v1", false)
	back, err := n.Inspect(t.Context(), pull.Request{Reference: u.host + "/back:v1"})
	must(t, err)
	if back.ImageID != id.String() {
		t.Errorf("back in the registry it is %s, was %s", back.ImageID, id)
	}
	nothingStaged(t, n)
}

// TestCopyAll copies every platform of a list, digests and all.
func TestCopyAll(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	list := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		list = mutate.AppendManifests(list, mutate.IndexAddendum{
			Add:        layerOf(t, randomLayer(t, 1000)),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	want, err := list.Digest()
	must(t, err)
	from := "docker://" + u.push(t, "multi:v1", list)
	if got := n.copy(t, from, "docker://"+u.host+"/copy:v1", true); got != want.String() {
		t.Errorf("the copy has digest %s, the list %s", got, want)
	}
	_, err = n.Copy(t.Context(), pull.CopyRequest{Source: from, Target: "ocid:example.com/x", All: true})
	if !errors.Is(err, pull.ErrInvalid) {
		t.Errorf("a list into the store: %v", err)
	}
}

func TestTagsAndDelete(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	one, two := u.push(t, "app:one", small(t, "1")), u.push(t, "app:two", small(t, "2"))
	tags, err := n.Tags(t.Context(), pull.Request{Reference: u.host + "/app"})
	must(t, err)
	slices.Sort(tags)
	if strings.Join(tags, " ") != "one two" {
		t.Errorf("tags %q", tags)
	}
	must(t, n.Delete(t.Context(), pull.Request{Reference: one}))
	if err := n.Delete(t.Context(), pull.Request{Reference: u.host + "/app:three"}); !errors.Is(err, pull.ErrNotFound) {
		t.Errorf("delete of what is not there: %v", err)
	}
	n.get(t, two)
}

func TestCopyRefuses(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	ref := u.push(t, "app:v1", small(t, "1"))
	for _, c := range []struct {
		src, dst string
		want     error
	}{
		{ref, "ocid:x", pull.ErrInvalid},
		{"ftp://" + ref, "ocid:x", pull.ErrInvalid},
		{"docker://" + ref, "ocid:", pull.ErrInvalid},
		{"docker://" + ref, "ocid:x@sha256:" + strings.Repeat("0", 64), pull.ErrInvalid},
		{"docker://" + u.host + "/none:v1", "ocid:x", pull.ErrNotFound},
		{"ocid:example.com/none", "dir:" + t.TempDir(), store.ErrNotFound},
		{"dir:" + t.TempDir(), "ocid:x", nil},
	} {
		_, err := n.Copy(t.Context(), pull.CopyRequest{Source: c.src, Target: c.dst})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("copy %s to %s: %v, want %v", c.src, c.dst, err, c.want)
		}
	}
	if left := n.left(t); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestSkopeoReadsTheStore: another tool of the same library finds an image
// that ocid unpacked, and gets the very same layers out of it.
func TestSkopeoReadsTheStore(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs Debian's skopeo")
	}
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	img := layerOf(t, randomLayer(t, 50000))
	n.get(t, u.push(t, "app:v1", img))
	out := filepath.Join(t.TempDir(), "out")
	src := "containers-storage:[overlay@" + filepath.Join(n.dir, "storage") + "+" + t.TempDir() + "]" + u.host + "/app:v1"
	// It leaves a bind mount of the driver's directory.
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(n.dir, "storage/overlay"), unix.MNT_DETACH) })
	c := exec.Command(skopeo, "copy", "--insecure-policy", "--dest-decompress", src, "dir:"+out)
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, b)
	}
	cfg, err := img.ConfigFile()
	must(t, err)
	for _, d := range cfg.RootFS.DiffIDs {
		if _, err := os.Stat(filepath.Join(out, d.Hex)); err != nil {
			t.Errorf("layer %s did not come out as it went in: %v", d, err)
		}
	}
}
