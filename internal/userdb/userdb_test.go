package userdb

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func root(t *testing.T, passwd string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if passwd != "" {
		if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestUsers(t *testing.T) {
	dir := root(t, "root:x:0:0:root:/root:/bin/sh\n# c\n\nbad\nnum:x:12x:1::/:\n:x:1:1::/:\nminus:x:-1:1::/:\nmax:x:4294967294:4294967294::/m:\nover:x:4294967295:1::/:\nshort:x:7:8\nnul\x00:x:1:1::/:\n")
	got, err := Users(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []User{{"root", 0, 0, "/root"}, {"max", MaxID, MaxID, "/m"}, {"short", 7, 8, ""}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestGroups(t *testing.T) {
	got := ParseGroups([]byte("a:x:1:u, v\nb:x:2:\nc:x:q:u\nd:x:3"))
	want := []Group{{"a", 1, []string{"u", "v"}}, {"b", 2, nil}, {"d", 3, nil}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !got[0].Has("v") || got[0].Has("") || got[1].Has("u") {
		t.Error("membership is wrong")
	}
}

func TestMissingFileHasNoUsers(t *testing.T) {
	for _, dir := range []string{root(t, ""), t.TempDir()} {
		if u, err := Users(dir); err != nil || len(u) != 0 {
			t.Errorf("got %v, %v", u, err)
		}
	}
}

func TestHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("host:x:1:1::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		make func(p string) error
		want error
	}{
		"fifo":          {func(p string) error { return unix.Mkfifo(p, 0o644) }, ErrNotRegular},
		"directory":     {func(p string) error { return os.Mkdir(p, 0o755) }, ErrNotRegular},
		"too large":     {func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("a"), MaxFile+1), 0o644) }, ErrTooLarge},
		"link loop":     {func(p string) error { return os.Symlink("passwd", p) }, unix.ELOOP},
		"absolute link": {func(p string) error { return os.Symlink(outside, p) }, nil},
		"dotdot link":   {func(p string) error { return os.Symlink("../../../../../../../.."+outside, p) }, nil},
		"proc link":     {func(p string) error { return os.Symlink("/proc/self/root"+outside, p) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := root(t, "")
			if err := c.make(filepath.Join(dir, "etc/passwd")); err != nil {
				t.Fatal(err)
			}
			u, err := Users(dir)
			if !errors.Is(err, c.want) || len(u) != 0 {
				t.Errorf("got %v, %v, want no users and %v", u, err, c.want)
			}
		})
	}
}

func TestLinkInsideRootIsFollowed(t *testing.T) {
	dir := root(t, "")
	if err := os.WriteFile(filepath.Join(dir, "real"), []byte("in:x:5:6::/h:"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/real", filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := Users(dir); err != nil || len(u) != 1 || u[0].UID != 5 {
		t.Errorf("got %v, %v", u, err)
	}
}

func TestLongLineIsSkipped(t *testing.T) {
	b := []byte("a:x:1:" + strings.Repeat("m,", MaxLine) + "\nb:x:2:")
	if g := ParseGroups(b); len(g) != 1 || g[0].Name != "b" {
		t.Errorf("got %d groups", len(g))
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "root:x:0:0:root:/root:/bin/sh", "a:b", ":::::::", "a:x:99999999999:1", "g:x:1:a,,b", "\x00", "a:x:+1:1", "#", "a:x:1:2:g:\xff\xfe:s"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, u := range ParseUsers(b) {
			if u.Name == "" || u.UID > MaxID || u.GID > MaxID || strings.ContainsAny(u.Name+u.Home, "\n\x00") {
				t.Errorf("user %+v", u)
			}
		}
		for _, g := range ParseGroups(b) {
			if g.Name == "" || g.GID > MaxID || strings.ContainsAny(g.Name, ":\n\x00") || g.Has("") {
				t.Errorf("group %+v", g)
			}
		}
	})
}
