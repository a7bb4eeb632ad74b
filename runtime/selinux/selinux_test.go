package selinux

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

func TestLevels(t *testing.T) {
	s := newSELinux()
	seen := map[string]bool{}
	form := regexp.MustCompile(`^s0:c\d+,c\d+$`)
	for i := range 2000 {
		id := runtime.PodID(rune(i + 1))
		l, err := s.Level(id, nil)
		if err != nil || seen[l] || !form.MatchString(l) {
			t.Fatalf("pod %d: %q %v", i, l, err)
		}
		if again, _ := s.Level(id, nil); again != l {
			t.Fatalf("a second call gives %q after %q", again, l)
		}
		seen[l] = true
	}
	// A level asked for is given, and to nobody else.
	l, err := s.Level("asked", &runtime.SELinux{Level: "s0:c1,c2"})
	if err != nil || l != "s0:c1,c2" {
		t.Fatal(l, err)
	}
	s.Keep("kept", "s0:c3,c4")
	if s.users["s0:c3,c4"] == 0 {
		t.Error("a level of an earlier run is free")
	}
	before := s.users["s0:c1,c2"]
	s.Release("asked")
	s.Release("asked")
	if s.users["s0:c1,c2"] != before-1 {
		t.Errorf("%d pods have the level, had %d", s.users["s0:c1,c2"], before)
	}
}

func TestAllTaken(t *testing.T) {
	s := newSELinux()
	s.categories = 12
	for a := range s.categories {
		for b := a + 1; b < s.categories; b++ {
			s.users[level(a, b)] = 1
		}
	}
	delete(s.users, level(10, 11))
	if l, err := s.Level("last", nil); err != nil || l != level(10, 11) {
		t.Errorf("the last free level: %q %v", l, err)
	}
	if _, err := s.Level("none", nil); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("none is left: %v", err)
	}
}

const label = "system_u:object_r:container_file_t:s0:c1,c2"

func read(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, xattr, buf)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return string(buf[:n])
}

func TestRelabel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to write security attributes")
	}
	dir := t.TempDir()
	volume, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "outside")
	for _, d := range []string{filepath.Join(volume, "a", "b"), outside} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(volume, "a", "b", "file"), filepath.Join(outside, "file")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(volume, "link")); err != nil {
		t.Fatal(err)
	}
	s := newSELinux()
	for range 2 {
		if err := s.Relabel(t.Context(), volume, label); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]string{
		volume: label, filepath.Join(volume, "a", "b", "file"): label, filepath.Join(volume, "link"): label,
		outside: "", filepath.Join(outside, "file"): "",
	} {
		if got := read(t, p); got != want {
			t.Errorf("%s has label %q, want %q", p, got, want)
		}
	}
	toRoot := filepath.Join(dir, "to-root")
	if err := os.Symlink("/", toRoot); err != nil {
		t.Fatal(err)
	}
	// Out of time at once: if the check fails, this machine is not relabelled.
	gone, stop := context.WithCancel(t.Context())
	stop()
	if err := relabel(gone, toRoot, label); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("a link to a directory of the machine's: %v", err)
	}
	for _, p := range []string{"/", "/etc", "/usr/", "/var/lib"} {
		if err := s.Relabel(t.Context(), p, label); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", p, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Relabel(ctx, volume, label); !errors.Is(err, runtime.ErrTimeout) {
		t.Errorf("out of time: %v", err)
	}
}

// A container can nest directories as deep as it likes; each level costs files.
func TestRelabelTooDeep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to write security attributes")
	}
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 1 {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	_ = unix.Close(fd)
	if err := newSELinux().Relabel(t.Context(), dir, label); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("a volume that is too deep: %v", err)
	}
}
