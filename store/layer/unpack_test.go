package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
}

// tree makes one of everything that a layer can hold.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	script := `
set -e
umask 022
mkdir -p etc usr/bin usr/lib deep/a/b/c sticky setgid empty
echo root:x:0:0 > etc/passwd
printf 'hello' > usr/bin/tool; chmod 4755 usr/bin/tool
ln usr/bin/tool usr/bin/tool2
ln -s ../lib usr/bin/lib; ln -s /etc/passwd abs; ln -s nowhere dangling
ln -s usr/lib lib
chmod 1777 sticky; chgrp 50 setgid; chmod 2775 setgid
chown 1000:1001 etc/passwd; chown -h 7:8 abs
mknod null c 1 3; mknod blk b 7 9; mkfifo pipe; chmod 640 pipe
head -c 3000000 /dev/urandom > usr/lib/big
truncate -s 5000000 usr/lib/hole; printf x | dd of=usr/lib/hole bs=1 seek=2500000 conv=notrunc status=none
truncate -s 1000000 usr/lib/allhole
n=$(printf 'n%.0s' $(seq 1 250)); echo long > deep/a/b/c/$n
touch -d '2001-02-03 04:05:06.123456789' etc/passwd deep/a
touch -h -d '1969-12-31 12:00:00.5' abs
cp usr/bin/tool usr/bin/ping
touch -d '2030-01-01 00:00:00' .
`
	c := exec.Command("bash", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, value := range map[string]string{"etc/passwd": "hi", "deep": "d"} {
		if err := unix.Setxattr(filepath.Join(dir, name), "user.comment", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	// cap_net_raw=ep in a v2 record (linux/capability.h).
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if err := unix.Setxattr(filepath.Join(dir, "usr/bin/ping"), "security.capability", capability, 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

// describe lists everything about every file of a tree.
func describe(t *testing.T, dir string) []string {
	t.Helper()
	first := map[uint64]string{}
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s mode=%o uid=%d gid=%d rdev=%d mtime=%d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sum=%x", st.Size, sha256.Sum256(b))
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				line += " link=" + first[st.Ino]
			}
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " to=" + to
		}
		out = append(out, line+xattrs(t, p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrs(t *testing.T, p string) string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, b)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range strings.Split(strings.TrimRight(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 1<<16)
		m, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, v[:m]))
	}
	sort.Strings(all)
	return strings.Join(all, "")
}

func pack(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	if len(args) == 0 || strings.HasPrefix(args[0], "--format=pax") {
		args = append(args, "--xattrs", "--xattrs-include=*")
	}
	c := exec.Command("tar", append([]string{"-C", dir, "--numeric-owner", "-cf", "-"}, append(args, ".")...)...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	b, err := c.Output()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, stderr.String())
	}
	return b
}

func unpack(t *testing.T, b []byte, o Options) (string, Result) {
	t.Helper()
	dir := t.TempDir()
	res, err := Unpack(t.Context(), bytes.NewReader(b), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, res
}

// TestLikeTar compares, file by file, what tar extracts with what Unpack makes.
func TestLikeTar(t *testing.T) {
	needRoot(t)
	src := tree(t)
	for name, args := range map[string][]string{
		"pax": {"--format=pax"}, "gnu": {"--format=gnu"}, "gnu sparse": {"--format=gnu", "--sparse"},
		"pax sparse 1.0": {"--format=pax", "--sparse", "--sparse-version=1.0"},
		"pax sparse 0.1": {"--format=pax", "--sparse", "--sparse-version=0.1"},
		"pax sparse 0.0": {"--format=pax", "--sparse", "--sparse-version=0.0"},
		"v7, no abs":     {"--format=v7", "--exclude=./abs", "--exclude=n*nnn", "--exclude=./null", "--exclude=./blk", "--exclude=./pipe"},
		"ustar, no abs":  {"--format=ustar", "--exclude=./abs", "--exclude=n*nnn"},
	} {
		t.Run(name, func(t *testing.T) {
			b := pack(t, src, args...)
			want := t.TempDir()
			c := exec.Command("tar", "-C", want, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-")
			c.Stdin = bytes.NewReader(b)
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			got, res := unpack(t, b, Options{})
			diff(t, describe(t, want), describe(t, got))
			if res.DiffID != digest.FromBytes(b) || res.Size != int64(len(b)) {
				t.Errorf("digest %s of %d bytes, want %s of %d", res.DiffID, res.Size, digest.FromBytes(b), len(b))
			}
			uids, gids := "[0 7 1000]", "[0 8 50 1001]"
			if strings.HasSuffix(name, "no abs") {
				uids, gids = "[0 1000]", "[0 50 1001]"
			}
			if res.RootMode == nil || fmt.Sprint(res.UIDs) != uids || fmt.Sprint(res.GIDs) != gids {
				t.Errorf("root mode %v, owners %v %v", res.RootMode, res.UIDs, res.GIDs)
			}
		})
	}
}

func diff(t *testing.T, want, got []string) {
	t.Helper()
	in := func(list []string) map[string]bool {
		m := map[string]bool{}
		for _, l := range list {
			m[l] = true
		}
		return m
	}
	w, g := in(want), in(got)
	for _, l := range want {
		if !g[l] {
			t.Errorf("tar:  %s", l)
		}
	}
	for _, l := range got {
		if !w[l] {
			t.Errorf("here: %s", l)
		}
	}
}

func TestHoles(t *testing.T) {
	needRoot(t)
	got, _ := unpack(t, pack(t, tree(t)), Options{})
	for name, most := range map[string]int64{"usr/lib/hole": 256 << 10, "usr/lib/allhole": 64 << 10} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(got, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > most {
			t.Errorf("%s takes %d bytes on disk", name, st.Blocks*512)
		}
	}
}

// TestSplit: the record and the files give the very same stream again.
func TestSplit(t *testing.T) {
	needRoot(t)
	for _, format := range []string{"pax", "gnu"} {
		b := append(pack(t, tree(t), "--format="+format), make([]byte, 70000)...)
		var record bytes.Buffer
		dir, _ := unpack(t, b, Options{Split: &record})
		out := asm.NewOutputTarStream(storage.NewPathFileGetter(dir), storage.NewJSONUnpacker(&record))
		again, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%s: %d bytes became %d others", format, len(b), len(again))
		}
	}
}

type member struct {
	name, link string
	typ        byte
	body       string
	xattr      map[string]string
}

func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.typ, Size: int64(len(m.body)), Mode: 0o755, Format: tar.FormatPAX, PAXRecords: map[string]string{}}
		for k, v := range m.xattr {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	reg  = tar.TypeReg
	sub  = tar.TypeDir
	sym  = tar.TypeSymlink
	hard = tar.TypeLink
)

// TestHostile: nothing outside of the target is touched, and what cannot be
// meant well is refused.
func TestHostile(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		members []member
		err     error // nil: unpacked, inside
		inside  string
	}{
		"dots":                 {[]member{{name: "../victim", typ: reg, body: "x"}}, ErrUnsafe, ""},
		"dots in the middle":   {[]member{{name: "a/../../victim", typ: reg, body: "x"}}, ErrUnsafe, ""},
		"dots in a link":       {[]member{{name: "l", link: "../victim", typ: hard}}, ErrUnsafe, ""},
		"absolute":             {[]member{{name: victim, typ: reg, body: "x"}}, nil, victim},
		"absolute hard link":   {[]member{{name: "l", link: victim, typ: hard}}, ErrMalformed, ""},
		"hard link to shadow":  {[]member{{name: "l", link: "/etc/shadow", typ: hard}}, ErrMalformed, ""},
		"through a link":       {[]member{{name: "l", link: outside, typ: sym}, {name: "l/victim", typ: reg, body: "x"}}, ErrMalformed, ""},
		"through a relative":   {[]member{{name: "l", link: "../../../../../../../.." + outside, typ: sym}, {name: "l/victim", typ: reg, body: "x"}}, ErrMalformed, ""},
		"onto a link":          {[]member{{name: "l", link: victim, typ: sym}, {name: "./l", typ: reg, body: "x"}}, nil, "l"},
		"chain of links":       {[]member{{name: "a", link: "b", typ: sym}, {name: "b", link: "a", typ: sym}, {name: "a/x", typ: reg, body: "x"}}, ErrMalformed, ""},
		"hard link to a link":  {[]member{{name: "s", link: victim, typ: sym}, {name: "h", link: "s", typ: hard}, {name: "x", typ: reg}}, nil, "x"},
		"link out and in":      {[]member{{name: "in", typ: sub}, {name: "l", link: "/in", typ: sym}, {name: "l/x", typ: reg, body: "x"}}, nil, "in/x"},
		"whiteout of dots":     {[]member{{name: ".wh...", typ: reg}}, ErrUnsafe, ""},
		"whiteout of nothing":  {[]member{{name: ".wh.", typ: reg}}, ErrUnsafe, ""},
		"whiteout behind link": {[]member{{name: "l", link: outside, typ: sym}, {name: "l/.wh.victim", typ: reg}}, ErrMalformed, ""},
		"opaque behind link":   {[]member{{name: "l", link: outside, typ: sym}, {name: "l/.wh..wh..opq", typ: reg}}, ErrMalformed, ""},
		"file as parent":       {[]member{{name: "f", typ: reg}, {name: "f/x", typ: reg}}, ErrMalformed, ""},
		"root as file":         {[]member{{name: "./", typ: sym, link: outside}}, ErrMalformed, ""},
		"twice":                {[]member{{name: "f", typ: reg}, {name: "f", typ: reg}}, nil, "f"},
		"unknown type":         {[]member{{name: "f", typ: 'Z'}}, ErrMalformed, ""},
		"overlay attributes":   {[]member{{name: "d", typ: sub, xattr: map[string]string{"trusted.overlay.redirect": "/etc", "user.a": "b"}}}, nil, "d"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Unpack(t.Context(), bytes.NewReader(archive(t, c.members...)), dir, Options{})
			if !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if c.inside != "" {
				st, err := os.Lstat(filepath.Join(dir, c.inside))
				if err != nil || st.Mode()&fs.ModeSymlink != 0 {
					t.Errorf("%s: %v %v", c.inside, st, err)
				}
				if n, err := unix.Lgetxattr(filepath.Join(dir, c.inside), "trusted.overlay.redirect", nil); err == nil {
					t.Errorf("an attribute of overlayfs came through, %d bytes", n)
				}
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "safe" {
				t.Errorf("the file outside: %q %v", b, err)
			}
			if l, _ := os.ReadDir(outside); len(l) != 1 || xattrs(t, outside) != "" {
				t.Errorf("the directory outside has %v %s", l, xattrs(t, outside))
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	needRoot(t)
	dir, _ := unpack(t, archive(t,
		member{name: "a/.wh.gone", typ: reg},
		member{name: "o", typ: sub}, member{name: "o/.wh..wh..opq", typ: reg}, member{name: "o/x", typ: reg},
		member{name: ".wh.again", typ: reg}, member{name: "again", typ: sub}, member{name: "again/x", typ: reg},
		member{name: "first", typ: sub}, member{name: "first/x", typ: reg}, member{name: ".wh.first", typ: reg},
		member{name: ".wh.file", typ: reg}, member{name: "file", typ: reg, body: "new"},
		member{name: ".wh..wh.plnk/1", typ: reg},
	), Options{})
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "a/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("a/gone is %o %d: %v", st.Mode, st.Rdev, err)
	}
	for _, d := range []string{"o", "again", "first"} {
		b := make([]byte, 8)
		if n, err := unix.Lgetxattr(filepath.Join(dir, d), "trusted.overlay.opaque", b); err != nil || string(b[:n]) != "y" {
			t.Errorf("%s is not opaque: %v", d, err)
		}
		if _, err := os.Stat(filepath.Join(dir, d, "x")); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "new" {
		t.Errorf("file holds %q: %v", b, err)
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	many := archive(t, member{name: "a", typ: reg}, member{name: "b", typ: reg}, member{name: "c", typ: reg})
	if _, err := Unpack(t.Context(), bytes.NewReader(many), t.TempDir(), Options{MaxEntries: 2}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("three entries with a limit of two: %v", err)
	}
	big := archive(t, member{name: "a", typ: reg, body: strings.Repeat("x", 1<<20)})
	if _, err := Unpack(t.Context(), bytes.NewReader(big), t.TempDir(), Options{MaxBytes: 1 << 19}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a mebibyte with a limit of half of one: %v", err)
	}
	// A header that promises a tebibyte is refused before a byte of it is written.
	var bomb bytes.Buffer
	if err := tar.NewWriter(&bomb).WriteHeader(&tar.Header{Name: "bomb", Typeflag: reg, Size: 1 << 40, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	endless := io.MultiReader(&bomb, zeroReader{})
	if _, err := Unpack(t.Context(), endless, t.TempDir(), Options{}); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrTooLarge) {
		t.Errorf("a tebibyte of zeros: %v", err)
	}
	for cut := 0; cut < len(many); cut += 100 {
		_, err := Unpack(t.Context(), bytes.NewReader(many[:cut]), t.TempDir(), Options{})
		if cut%512 != 0 && err == nil {
			t.Errorf("a stream cut after %d bytes was taken", cut)
		}
	}
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// hole is a layer of one sparse file of any size, in GNU's oldest form: a header
// and a handful of bytes.
func hole(t *testing.T, name string, size int64) []byte {
	t.Helper()
	b := archive(t, member{name: name, typ: reg})[:512]
	copy(b[124:136], "00000000000\x00") // bytes in the stream
	b[156] = 'S'
	copy(b[257:265], "ustar  \x00")
	clear(b[345:512]) // no prefix: GNU's times, map and real size
	copy(b[386:410], fmt.Sprintf("%011o\x00%011o\x00", size, 0))
	copy(b[483:495], fmt.Sprintf("%011o\x00", size))
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, make([]byte, 1024)...)
}

// TestSparse: holes take no bytes in the stream, and time all the same.
func TestSparse(t *testing.T) {
	needRoot(t)
	dir, _ := unpack(t, hole(t, "small", 1<<20), Options{})
	if st, err := os.Stat(filepath.Join(dir, "small")); err != nil || st.Size() != 1<<20 {
		t.Fatalf("a sparse file: %v %v", st, err)
	}
	for _, name := range []string{"large", ".wh.large"} {
		_, err := Unpack(t.Context(), bytes.NewReader(hole(t, name, 1<<20)), t.TempDir(), Options{MaxBytes: 1<<20 - 1})
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: a mebibyte of nothing with a limit of less: %v", name, err)
		}
	}
	both := append(hole(t, "a", 1<<19)[:512], hole(t, "b", 1<<19)...)
	if _, err := Unpack(t.Context(), bytes.NewReader(both), t.TempDir(), Options{MaxBytes: 1<<20 - 1}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("two halves: %v", err)
	}
	if _, err := (patient{ended(t), io.Discard}).Write([]byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("a copy goes on after its end: %v", err)
	}
}

func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestMemory: what waits for the end of the stream does not fill the memory.
func TestMemory(t *testing.T) {
	needRoot(t)
	x := map[string]string{"user.a": strings.Repeat("x", 60000)}
	for name, m := range map[string][]member{
		"attributes": {{name: "a", typ: sub, xattr: x}, {name: "b", typ: sub, xattr: x}},
		"names":      {{name: strings.Repeat("a/", 1000) + "a", typ: reg}, {name: strings.Repeat("a/", 1000) + "b", typ: reg}},
	} {
		if _, err := Unpack(t.Context(), bytes.NewReader(archive(t, m...)), t.TempDir(), Options{MaxKept: 4000}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReplacedLink: an entry goes where its name leads now, not where it led
// before a link on the way was replaced.
func TestReplacedLink(t *testing.T) {
	needRoot(t)
	dir, _ := unpack(t, archive(t, member{name: "old", typ: sub}, member{name: "l", link: "old", typ: sym},
		member{name: "l/x", typ: reg}, member{name: "./l", typ: sub}, member{name: "l/y", typ: reg}), Options{})
	if _, err := os.Stat(filepath.Join(dir, "l", "y")); err != nil {
		t.Error(err)
	}
}

// FuzzUnpack: whatever the stream, nothing happens outside of the target.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	t := new(testing.T)
	f.Add(archive(t, member{name: "d", typ: sub}, member{name: "d/f", typ: reg, body: "x"}, member{name: "l", link: "d/f", typ: hard}))
	f.Add(archive(t, member{name: "l", link: "/etc", typ: sym}, member{name: "l/.wh.x", typ: reg}, member{name: ".wh..wh..opq", typ: reg}))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		res, err := Unpack(t.Context(), bytes.NewReader(b), dir, Options{MaxEntries: 1000, MaxBytes: 1 << 24, Split: io.Discard})
		if err == nil && res.DiffID != digest.FromBytes(b) {
			t.Errorf("digest %s of a stream of digest %s", res.DiffID, digest.FromBytes(b))
		}
		if l, err := os.ReadDir(outer); err != nil || len(l) != 1 {
			t.Errorf("outside: %v %v", l, err)
		}
	})
}

// TestUmask: directories that no entry makes are open to all, whatever the
// process's umask.
func TestUmask(t *testing.T) {
	needRoot(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir, _ := unpack(t, archive(t, member{name: "a/b/f", typ: reg}), Options{})
	for _, d := range []string{"a", "a/b"} {
		if st, err := os.Stat(filepath.Join(dir, d)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v %v", d, st.Mode(), err)
		}
	}
}
