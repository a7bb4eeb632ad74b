package layered_test

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/mountinfo"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layered"
	"github.com/ocid-io/ocid/store/storetest"
)

func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestShiftedOwners: the same layers serve a pod with a user namespace, with
// owners shifted, and one without, at the same time.
func TestShiftedOwners(t *testing.T) {
	s := open(t, newDir(t))
	must(t, s.IDMapped())
	file := func(name string, uid, gid int) storetest.Layer {
		return storetest.Layer{{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: uid, Gid: gid}, Data: "x"}}
	}
	ids := []string{
		load(t, s, "example.com/one:1", storetest.Image(t, file("a", 12, 34))),
		load(t, s, "example.com/three:1", storetest.Image(t, storetest.Dir("./", 0o750, 1, 2), file("a", 12, 34), file("b", 70000, 0))),
	}
	m := &store.IDMap{
		UIDs: []store.IDRange{{ContainerID: 0, HostID: 100000, Length: 65536}},
		GIDs: []store.IDRange{{ContainerID: 0, HostID: 300000, Length: 65536}},
	}
	check := func(name string) {
		for n, id := range ids {
			for _, ro := range []bool{false, true} {
				req := store.RootFSRequest{ID: fmt.Sprintf("%s-%d-%t", name, n, ro), ImageID: id, ReadOnly: ro, IDMap: m}
				fs, err := s.Prepare(t.Context(), req)
				must(t, err)
				plain, err := s.Prepare(t.Context(), store.RootFSRequest{ID: req.ID + "-plain", ImageID: id, ReadOnly: ro})
				must(t, err)
				if got := owner(t, filepath.Join(fs.Path, "a")); got != "100012:300034" {
					t.Errorf("%s: a belongs to %s", req.ID, got)
				}
				if got := owner(t, filepath.Join(plain.Path, "a")); got != "12:34" {
					t.Errorf("%s without a shift: a belongs to %s", req.ID, got)
				}
				if n == 1 {
					if got := owner(t, fs.Path); got != "100001:300002" {
						t.Errorf("%s: the root belongs to %s", req.ID, got)
					}
				}
				if !ro {
					// Copied up, it has the host's ids on disk.
					must(t, os.WriteFile(filepath.Join(fs.Path, "a"), []byte("y"), 0o600))
					if got := owner(t, filepath.Join(fs.UpperDir, "a")); got != "100012:300034" {
						t.Errorf("%s: copied up, a belongs to %s", req.ID, got)
					}
				}
				again, err := s.Prepare(t.Context(), req)
				must(t, err)
				if again.Path != fs.Path {
					t.Errorf("%s: a second call gave %s", req.ID, again.Path)
				}
				req.IDMap = nil
				if _, err := s.Prepare(t.Context(), req); err == nil {
					t.Errorf("%s: the same id without a shift was accepted", req.ID)
				}
				must(t, s.Release(t.Context(), req.ID))
				must(t, s.Release(t.Context(), plain.ID))
			}
		}
	}
	check("new")
	t.Logf("layers mounted nowhere are taken: %t", layered.DetachedLower())
	restore := layered.OldKernel()
	check("old")
	restore()
	left, err := mountinfo.Under(s.Root())
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestShiftWithoutRoot(t *testing.T) {
	s := open(t, newDir(t))
	id := load(t, s, "example.com/one:1", storetest.Image(t, storetest.Dir("./", 0o755, 5000, 0)))
	_, err := s.Prepare(t.Context(), store.RootFSRequest{ID: "x", ImageID: id, IDMap: &store.IDMap{
		UIDs: []store.IDRange{{HostID: 100000, Length: 10}}, GIDs: []store.IDRange{{HostID: 100000, Length: 10}},
	}})
	if err == nil {
		t.Fatal("an image whose root directory no id maps to was prepared")
	}
	if list, err := s.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("left %v, %v", list, err)
	}
}
