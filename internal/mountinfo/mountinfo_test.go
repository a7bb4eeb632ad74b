package mountinfo

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func mount(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Unmount(dir) })
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
}

func TestMountedAndUnder(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	a := filepath.Join(base, `with space\and	tab`)
	mount(t, a)
	b := filepath.Join(a, "inner")
	mount(t, b)
	mount(t, b) // stacked
	sibling := a + "-sibling"
	mount(t, sibling)

	for path, want := range map[string]bool{a: true, b: true, base: false, filepath.Join(base, "absent"): false} {
		if got, err := Mounted(path); err != nil || got != want {
			t.Errorf("Mounted(%q) = %v, %v; want %v", path, got, err, want)
		}
	}
	got, err := Under(a)
	if err != nil || !slices.Equal(got, []string{a, b, b}) {
		t.Fatalf("Under = %q, %v", got, err)
	}
	if err := UnmountUnder(a); err != nil {
		t.Fatal(err)
	}
	if got, _ := Under(a); len(got) != 0 {
		t.Fatalf("left mounted: %q", got)
	}
	if ok, _ := Mounted(sibling); !ok {
		t.Fatal("unmounted a sibling that shares the prefix")
	}
	if err := UnmountUnder(a); err != nil {
		t.Fatalf("second time: %v", err)
	}
}

func TestMountedDoesNotFollowLink(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	m := filepath.Join(base, "m")
	mount(t, m)
	link := filepath.Join(base, "link")
	if err := os.Symlink(m, link); err != nil {
		t.Fatal(err)
	}
	if ok, err := Mounted(link); err != nil || ok {
		t.Fatalf("Mounted(link) = %v, %v", ok, err)
	}
	if err := Unmount(link); err != nil {
		t.Fatal(err)
	}
	if ok, _ := Mounted(m); !ok {
		t.Fatal("Unmount followed the link")
	}
}

func TestRefusesRoot(t *testing.T) {
	if err := UnmountUnder("//"); err == nil {
		t.Fatal("UnmountUnder(/) must be refused")
	}
}

func FuzzMountPoint(f *testing.F) {
	f.Add([]byte(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw`))
	f.Add([]byte(`36 35 98:0 / `))
	f.Add([]byte(`\04`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if p, ok := mountPoint(line); ok && p == "" {
			t.Fatal("empty mount point")
		}
	})
}
