package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// TestInside: links of a hostile image resolve in the image, or not at all.
func TestInside(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(t.TempDir(), "image")
	for _, d := range []string{"a/b", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"abs": "/a/b", "up": "../../../../../a", "out": outside, "loop": "loop", "magic": "/proc/self/root",
		"a/rel": "../etc", "passwd": "/etc/passwd",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{
		"": "", "a": "a", "a/b/": "a/b", "etc/file": "etc/file", "abs": "a/b", "up": "a", "a/rel/file": "etc/file", "up/b": "a/b",
	} {
		got, err := inside(root, sub)
		if err != nil || got != filepath.Join(root, want) {
			t.Errorf("%q is %q, %v; want %q", sub, got, err, filepath.Join(root, want))
		}
	}
	for _, sub := range []string{"no", "out", "loop", "magic", "passwd", "../image", "/a", "etc/file/x", "fifo", ".."} {
		if got, err := inside(root, sub); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%q is %q, %v; want ErrInvalid", sub, got, err)
		}
	}
}

func TestVolumeIDs(t *testing.T) {
	c := runtime.Container{ID: runtime.ContainerID(strings.Repeat("ab", 32))}
	c.Config.Mounts = []runtime.Mount{{Image: "x"}, {HostPath: "/y"}, {Image: "x"}}
	ids := c.VolumeIDs()
	if len(ids) != 2 || ids[0] == ids[1] || len(ids[0]) != 64 || !slices.Equal(ids, c.VolumeIDs()) {
		t.Errorf("ids are %v", ids)
	}
}
