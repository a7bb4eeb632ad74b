// Package storetest holds every store backend to the contract of package
// store. A backend's own tests call Run.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store"
)

// Backend is a store with both halves of the contract.
type Backend interface {
	store.Images
	store.RootFSes
}

// Loader puts an image into the backend under a full name.
type Loader func(t *testing.T, name string, img v1.Image)

// Open makes an empty backend that the test's end removes.
type Open func(t *testing.T) (Backend, Loader)

// Run runs the suite.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"NothingThere", nothingThere},
		{"Lookup", lookup},
		{"Names", names},
		{"BadNames", badNames},
		{"RemoveByID", removeByID},
		{"Usage", usage},
		{"Writable", writable},
		{"ReadOnly", readOnly},
		{"RootOwner", rootOwner},
		{"ManyLayers", manyLayers},
		{"PrepareIsIdempotent", idempotent},
		{"PrepareRemounts", remounts},
		{"BadRequests", badRequests},
		{"InUse", inUse},
		{"Parallel", parallel},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, load := open(t)
			c.run(t, &fixture{Backend: b, load: load, ctx: t.Context()})
		})
	}
}

type fixture struct {
	Backend
	load Loader
	ctx  context.Context
}

func (f *fixture) image(t *testing.T, ref string) *store.Image {
	t.Helper()
	img, err := f.Image(f.ctx, ref)
	if err != nil {
		t.Fatalf("Image(%s): %v", ref, err)
	}
	return img
}

func (f *fixture) prepare(t *testing.T, id, image string, ro bool) *store.RootFS {
	t.Helper()
	fs, err := f.Prepare(f.ctx, store.RootFSRequest{ID: id, ImageID: image, ReadOnly: ro})
	if err != nil {
		t.Fatalf("Prepare(%s): %v", id, err)
	}
	t.Cleanup(func() {
		if err := f.Release(context.Background(), id); err != nil {
			t.Errorf("Release(%s): %v", id, err)
		}
	})
	return fs
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want one that is %v", err, want)
	}
}

func nothingThere(t *testing.T, f *fixture) {
	list, err := f.Images(f.ctx)
	if err != nil || len(list) != 0 {
		t.Fatalf("Images: %v, %v", list, err)
	}
	for _, ref := range []string{"example.com/none:1", "sha256:" + strings.Repeat("a", 64), strings.Repeat("b", 12)} {
		_, err := f.Image(f.ctx, ref)
		wantErr(t, err, store.ErrNotFound)
		wantErr(t, f.Remove(f.ctx, ref), store.ErrNotFound)
		wantErr(t, f.Tag(f.ctx, ref, "example.com/x:1"), store.ErrNotFound)
	}
	if err := f.Release(f.ctx, "unknown"); err != nil {
		t.Fatalf("Release of an unknown id: %v", err)
	}
	_, err = f.RootFS(f.ctx, "unknown")
	wantErr(t, err, store.ErrNotFound)
}

func lookup(t *testing.T, f *fixture) {
	img := Image(t, File("hello", "x"))
	f.load(t, "example.com/a/b:1", img)
	want := id(t, img)
	for _, ref := range []string{want, strings.TrimPrefix(want, "sha256:"), want[7:19], "example.com/a/b:1"} {
		got := f.image(t, ref)
		if got.ID != want || !slices.Equal(got.Tags, []string{"example.com/a/b:1"}) || got.Size <= 0 {
			t.Fatalf("Image(%s) = %+v", ref, got)
		}
		if got.Config.Config.User != "1000" {
			t.Fatalf("config of %s: %+v", ref, got.Config)
		}
	}
	for _, d := range f.image(t, want).Digests {
		if f.image(t, d).ID != want {
			t.Fatalf("digest %s names another image", d)
		}
	}
}

func names(t *testing.T, f *fixture) {
	one, two := Image(t, File("f", "1")), Image(t, File("f", "2"))
	f.load(t, "example.com/aa:1", one)
	f.load(t, "example.com/bb:1", two)
	for range 2 {
		if err := f.Tag(f.ctx, "example.com/aa:1", "example.com/aa:2"); err != nil {
			t.Fatal(err)
		}
	}
	if tags := f.image(t, id(t, one)).Tags; !slices.Equal(tags, []string{"example.com/aa:1", "example.com/aa:2"}) {
		t.Fatalf("tags %q", tags)
	}
	if err := f.Tag(f.ctx, "example.com/bb:1", "example.com/aa:2"); err != nil {
		t.Fatal(err)
	}
	if got := f.image(t, "example.com/aa:2").ID; got != id(t, two) {
		t.Fatalf("a:2 is %s after it moved", got)
	}
	if tags := f.image(t, id(t, one)).Tags; !slices.Equal(tags, []string{"example.com/aa:1"}) {
		t.Fatalf("tags %q after one moved", tags)
	}
	if err := f.Remove(f.ctx, "example.com/aa:2"); err != nil {
		t.Fatal(err)
	}
	if tags := f.image(t, id(t, two)).Tags; !slices.Equal(tags, []string{"example.com/bb:1"}) {
		t.Fatalf("tags %q after one was removed", tags)
	}
	if err := f.Remove(f.ctx, "example.com/bb:1"); err != nil {
		t.Fatal(err)
	}
	_, err := f.Image(f.ctx, id(t, two))
	wantErr(t, err, store.ErrNotFound)
}

func badNames(t *testing.T, f *fixture) {
	f.load(t, "example.com/aa:1", Image(t, File("f", "1")))
	for _, ref := range []string{"", "UPPER/case", "a:b:c", "../x", "example.com/aa:" + strings.Repeat("x", 200)} {
		_, err := f.Image(f.ctx, ref)
		wantErr(t, err, store.ErrInvalid)
		wantErr(t, f.Tag(f.ctx, "example.com/aa:1", ref), store.ErrInvalid)
	}
}

func removeByID(t *testing.T, f *fixture) {
	base := File("base", "shared")
	one, two := Image(t, base, File("f", "1")), Image(t, base, File("f", "2"))
	f.load(t, "example.com/aa:1", one)
	f.load(t, "example.com/aa:2", one)
	f.load(t, "example.com/bb:1", two)
	if err := f.Remove(f.ctx, id(t, one)); err != nil {
		t.Fatal(err)
	}
	list, err := f.Images(f.ctx)
	if err != nil || len(list) != 1 || list[0].ID != id(t, two) {
		t.Fatalf("left: %v, %v", list, err)
	}
	// The layer that both had must still be there.
	fs := f.prepare(t, "left", id(t, two), false)
	expect(t, filepath.Join(fs.Path, "base"), "shared")
}

func usage(t *testing.T, f *fixture) {
	f.load(t, "example.com/aa:1", Image(t, File("f", strings.Repeat("x", 1<<16))))
	u, err := f.Usage(f.ctx)
	if err != nil || u.Bytes < 1<<16 || !filepath.IsAbs(u.MountPoint) {
		t.Fatalf("Usage: %+v, %v", u, err)
	}
}

func writable(t *testing.T, f *fixture) {
	img := Image(t, File("dir/f", "image"), File("g", "image"))
	f.load(t, "example.com/aa:1", img)
	fs := f.prepare(t, "one", id(t, img), false)
	other := f.prepare(t, "two", id(t, img), false)
	expect(t, filepath.Join(fs.Path, "dir/f"), "image")
	if err := os.WriteFile(filepath.Join(fs.Path, "dir/f"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(fs.Path, "g")); err != nil {
		t.Fatal(err)
	}
	expect(t, filepath.Join(other.Path, "dir/f"), "image")
	expect(t, filepath.Join(other.Path, "g"), "image")
	if err := f.Release(f.ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(fs.UpperDir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("writable layer after Release: %v", err)
	}
	if _, err := os.Lstat(fs.Path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("mount point after Release: %v", err)
	}
	again := f.prepare(t, "one", id(t, img), false)
	expect(t, filepath.Join(again.Path, "dir/f"), "image")
}

func readOnly(t *testing.T, f *fixture) {
	for i, layers := range [][]Layer{{File("f", "x")}, {File("f", "x"), File("g", "y")}} {
		img := Image(t, layers...)
		f.load(t, fmt.Sprintf("example.com/aa:%d", i), img)
		fs := f.prepare(t, fmt.Sprintf("ro-%d", i), id(t, img), true)
		if fs.UpperDir != "" {
			t.Fatalf("read-only root file system with upper %s", fs.UpperDir)
		}
		expect(t, filepath.Join(fs.Path, "f"), "x")
		err := os.WriteFile(filepath.Join(fs.Path, "new"), nil, 0o600)
		wantErr(t, err, unix.EROFS)
	}
}

func rootOwner(t *testing.T, f *fixture) {
	img := Image(t, Dir("./", 0o750, 12, 34), File("f", "x"))
	f.load(t, "example.com/aa:1", img)
	for _, ro := range []bool{false, true} {
		fs := f.prepare(t, fmt.Sprintf("owner-%t", ro), id(t, img), ro)
		var st unix.Stat_t
		if err := unix.Stat(fs.Path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o750 {
			t.Fatalf("read-only %t: root is %d:%d mode %o", ro, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
}

func manyLayers(t *testing.T, f *fixture) {
	var layers []Layer
	for i := range 9 {
		layers = append(layers, File(fmt.Sprintf("f%d", i), fmt.Sprint(i)))
	}
	img := Image(t, layers...)
	f.load(t, "example.com/aa:1", img)
	fs := f.prepare(t, "many", id(t, img), false)
	for _, i := range []int{0, 4, 8} {
		expect(t, filepath.Join(fs.Path, fmt.Sprintf("f%d", i)), fmt.Sprint(i))
	}
}

func idempotent(t *testing.T, f *fixture) {
	img, other := Image(t, File("f", "x")), Image(t, File("f", "y"))
	f.load(t, "example.com/aa:1", img)
	f.load(t, "example.com/bb:1", other)
	first := f.prepare(t, "one", id(t, img), false)
	if err := os.WriteFile(filepath.Join(first.Path, "mark"), []byte("m"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := f.prepare(t, "one", id(t, img), false)
	if *first != *second {
		t.Fatalf("%+v, then %+v", first, second)
	}
	expect(t, filepath.Join(second.Path, "mark"), "m")
	_, err := f.Prepare(f.ctx, store.RootFSRequest{ID: "one", ImageID: id(t, other)})
	wantErr(t, err, store.ErrInvalid)
	_, err = f.Prepare(f.ctx, store.RootFSRequest{ID: "one", ImageID: id(t, img), ReadOnly: true})
	wantErr(t, err, store.ErrInvalid)
	ids, err := f.List(f.ctx)
	if err != nil || !slices.Equal(ids, []string{"one"}) {
		t.Fatalf("List: %q, %v", ids, err)
	}
	found, err := f.RootFS(f.ctx, "one")
	if err != nil || *found != *first {
		t.Fatalf("RootFS: %+v, %v", found, err)
	}
	for range 2 {
		if err := f.Release(f.ctx, "one"); err != nil {
			t.Fatal(err)
		}
	}
}

func remounts(t *testing.T, f *fixture) {
	img := Image(t, File("f", "x"))
	f.load(t, "example.com/aa:1", img)
	fs := f.prepare(t, "one", id(t, img), false)
	if err := os.WriteFile(filepath.Join(fs.Path, "mark"), []byte("m"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(fs.Path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	fs = f.prepare(t, "one", id(t, img), false)
	expect(t, filepath.Join(fs.Path, "mark"), "m")
	expect(t, filepath.Join(fs.Path, "f"), "x")
}

func badRequests(t *testing.T, f *fixture) {
	img := Image(t, File("f", "x"))
	f.load(t, "example.com/aa:1", img)
	for _, bad := range []string{"", "..", "a/b", "UP", strings.Repeat("x", 65), "a b", "."} {
		_, err := f.Prepare(f.ctx, store.RootFSRequest{ID: bad, ImageID: id(t, img)})
		wantErr(t, err, store.ErrInvalid)
		wantErr(t, f.Release(f.ctx, bad), store.ErrInvalid)
	}
	_, err := f.Prepare(f.ctx, store.RootFSRequest{ID: "one", ImageID: "sha256:" + strings.Repeat("0", 64)})
	wantErr(t, err, store.ErrNotFound)
	if ids, err := f.List(f.ctx); err != nil || len(ids) != 0 {
		t.Fatalf("left of refused requests: %q, %v", ids, err)
	}
}

func inUse(t *testing.T, f *fixture) {
	img := Image(t, File("f", "x"))
	f.load(t, "example.com/aa:1", img)
	fs := f.prepare(t, "holder-1", id(t, img), false)
	for _, ref := range []string{id(t, img), "example.com/aa:1"} {
		err := f.Remove(f.ctx, ref)
		wantErr(t, err, store.ErrInUse)
		if !strings.Contains(err.Error(), "holder-1") {
			t.Fatalf("error does not name the holder: %v", err)
		}
	}
	expect(t, filepath.Join(fs.Path, "f"), "x")
	if err := f.Release(f.ctx, "holder-1"); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(f.ctx, id(t, img)); err != nil {
		t.Fatal(err)
	}
}

func parallel(t *testing.T, f *fixture) {
	img := Image(t, File("f", "x"), File("g", "y"))
	f.load(t, "example.com/aa:1", img)
	want := id(t, img)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			name := fmt.Sprintf("c%d", i%16) // each id twice, at once
			fs, err := f.Prepare(f.ctx, store.RootFSRequest{ID: name, ImageID: want})
			if err != nil {
				t.Errorf("Prepare: %v", err)
				return
			}
			if data, err := os.ReadFile(filepath.Join(fs.Path, "g")); err != nil || string(data) != "y" {
				t.Errorf("read: %q, %v", data, err)
			}
		})
	}
	wg.Wait()
	wantErr(t, f.Remove(f.ctx, want), store.ErrInUse)
	for i := range 32 {
		wg.Go(func() {
			if err := f.Release(f.ctx, fmt.Sprintf("c%d", i%16)); err != nil {
				t.Errorf("Release: %v", err)
			}
		})
	}
	wg.Wait()
	if ids, err := f.List(f.ctx); err != nil || len(ids) != 0 {
		t.Fatalf("left: %q, %v", ids, err)
	}
	if err := f.Remove(f.ctx, want); err != nil {
		t.Fatal(err)
	}
}
