package checkpoint

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// member is one member of a tar that a test writes by hand.
type member struct {
	h    tar.Header
	body string
}

func reg(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func makeTar(t testing.TB, ms ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		h := m.h
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(m.body))
		}
		if err := w.WriteHeader(&h); err != nil {
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

func good() []member {
	return []member{
		reg(ConfigFile, `{"version":1,"id":"a","name":"web"}`), reg(SpecFile, `{"ociVersion":"1.0.2"}`),
		reg(StatusFile, `{}`), reg(DeletedFile, `["gone"]`),
		{tar.Header{Typeflag: tar.TypeDir, Name: ImagesDir + "/", Mode: 0o700}, ""},
		reg(ImagesDir+"/"+Descriptors, `["/dev/null","pipe:[1]","pipe:[2]"]`), reg(ImagesDir+"/core-1.img", "x"),
		reg(DiffFile, "diff"), reg(DumpLog, "log"),
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func small() Limits {
	return Limits{Bytes: 1 << 20, Images: 4, DiffBytes: 1 << 16, DiffFiles: 16, Document: 1 << 12}
}

func extract(t testing.TB, b []byte) (*Content, string, error) {
	dir := t.TempDir()
	c, err := Extract(context.Background(), bytes.NewReader(b), openRoot(t, dir), small())
	return c, dir, err
}

func TestExtract(t *testing.T) {
	c, dir, err := extract(t, makeTar(t, good()...))
	if err != nil || c.Config.Name != "web" || !slices.Equal(c.Deleted, []string{"gone"}) {
		t.Fatalf("%+v, %v", c, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, ImagesDir, "core-1.img")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, DumpLog)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is for people was unpacked: %v", err)
	}
}

func TestExtractRefuses(t *testing.T) {
	big := strings.Repeat("x", 1<<12+1)
	for name, change := range map[string]func([]member) []member{
		"unknown member":  func(m []member) []member { return append(m, reg("evil", "")) },
		"above the root":  func(m []member) []member { return append(m, reg("../evil", "")) },
		"absolute":        func(m []member) []member { return append(m, reg("/etc/passwd", "")) },
		"unclean":         func(m []member) []member { return append(m, reg("checkpoint/../config.dump", "{}")) },
		"deep":            func(m []member) []member { return append(m, reg("checkpoint/a/b.img", "")) },
		"no image":        func(m []member) []member { return append(m, reg("checkpoint/evil.sh", "")) },
		"control groups":  func(m []member) []member { return append(m, reg("checkpoint/cgroup.img", "")) },
		"policies":        func(m []member) []member { return append(m, reg("checkpoint/apparmor.img", "")) },
		"duplicate":       func(m []member) []member { return append(m, reg(ConfigFile, `{"version":1}`)) },
		"duplicate image": func(m []member) []member { return append(m, reg(ImagesDir+"/core-1.img", "y")) },
		"many images": func(m []member) []member {
			return append(m, reg(ImagesDir+"/a.img", ""), reg(ImagesDir+"/b.img", ""), reg(ImagesDir+"/c.img", ""))
		},
		"too large":      func(m []member) []member { return append(m, reg(ImagesDir+"/pages-1.img", strings.Repeat("x", 1<<20))) },
		"large document": func(m []member) []member { m[0].body = `{"version":1,"id":"` + big + `"}`; return m },
		"no JSON":        func(m []member) []member { m[1].body = "{"; return m },
		"wrong type":     func(m []member) []member { m[3].body = `{"a":1}`; return m },
		"later version":  func(m []member) []member { m[0].body = `{"version":2}`; return m },
		"nothing":        func([]member) []member { return nil },
		"no diff":        func(m []member) []member { return slices.Delete(m, 7, 8) },
		"no descriptors": func(m []member) []member { return slices.Delete(m, 5, 6) },
		"other directory": func(m []member) []member {
			return append(m, member{tar.Header{Typeflag: tar.TypeDir, Name: "dir/"}, ""})
		},
		"directory twice": func(m []member) []member { return append(m, m[4]) },
		"symlink": func(m []member) []member {
			return append(m, member{tar.Header{Typeflag: tar.TypeSymlink, Name: "checkpoint/a.img", Linkname: "/etc/shadow"}, ""})
		},
		"hard link": func(m []member) []member {
			return append(m, member{tar.Header{Typeflag: tar.TypeLink, Name: "checkpoint/a.img", Linkname: "/etc/shadow"}, ""})
		},
		"device": func(m []member) []member {
			return append(m, member{tar.Header{Typeflag: tar.TypeBlock, Name: "checkpoint/a.img", Devmajor: 8}, ""})
		},
		"fifo": func(m []member) []member {
			return append(m, member{tar.Header{Typeflag: tar.TypeFifo, Name: DumpLog}, ""})
		},
		"symlink for a dir": func(m []member) []member {
			return append([]member{{tar.Header{Typeflag: tar.TypeSymlink, Name: ImagesDir, Linkname: "/tmp"}, ""}}, m...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := extract(t, makeTar(t, change(good())...)); !errors.Is(err, ErrHostile) {
				t.Errorf("accepted: %v", err)
			}
		})
	}
	b := makeTar(t, good()...)
	if _, _, err := extract(t, b[:len(b)/2+100]); !errors.Is(err, ErrHostile) {
		t.Errorf("cut off: %v", err)
	}
	if _, _, err := extract(t, sparse(t)); !errors.Is(err, ErrHostile) {
		t.Errorf("sparse: %v", err)
	}
}

// sparse is an archive with a file of a terabyte in a few bytes.
func sparse(t testing.TB) []byte {
	b := makeTar(t, append(good(), reg(ImagesDir+"/pages-1.img", "1\n0\n0\n"))...)
	i := bytes.LastIndex(b, []byte(ImagesDir+"/pages-1.img"))
	block := b[i : i+512]
	block[156] = tar.TypeGNUSparse
	copy(block[257:], "ustar  \x00")
	copy(block[386:], "00000000000\x0000000000000\x00")              // one piece, of nothing
	copy(block[483:], []byte{0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0}) // of 2^40 bytes
	sum := 0
	copy(block[148:156], "        ")
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	return b
}

func apply(t testing.TB, rootfs string, b []byte, deleted []string, root bool) error {
	return Apply(context.Background(), bytes.NewReader(b), deleted, rootfs, Policy{Limits: small(), Root: root})
}

// rootfs is an image's tree, with a directory outside that nothing may touch.
func rootfs(t testing.TB) (root, outside string) {
	t.Helper()
	base := t.TempDir()
	root, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{filepath.Join(root, "etc"), filepath.Join(root, "old/deep"), outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(root, "etc/conf"), filepath.Join(root, "old/deep/file"), filepath.Join(outside, "secret")} {
		if err := os.WriteFile(f, []byte("image"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for l, to := range map[string]string{"abs": outside, "rel": "../outside", "up": ".."} {
		if err := os.Symlink(to, filepath.Join(root, l)); err != nil {
			t.Fatal(err)
		}
	}
	return root, outside
}

func TestApply(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	root, outside := rootfs(t)
	at := time.Unix(1000, 5)
	b := makeTar(t,
		member{tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o711, Uid: 5, Gid: 6, ModTime: at, Format: tar.FormatPAX}, ""},
		member{tar.Header{Typeflag: tar.TypeReg, Name: "etc/conf", Mode: 0o4755, Uid: 7, ModTime: at, Format: tar.FormatPAX, PAXRecords: map[string]string{xattrRecord + "user.a": "b"}}, "new"},
		member{tar.Header{Typeflag: tar.TypeLink, Name: "etc/second", Linkname: "etc/conf"}, ""},
		member{tar.Header{Typeflag: tar.TypeDir, Name: "abs/", Mode: 0o755}, ""}, // where the image has a link out
		reg("abs/inside", "x"),
		member{tar.Header{Typeflag: tar.TypeSymlink, Name: "old", Linkname: "/etc"}, ""}, // where the image has a directory
		member{tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}, ""},
	)
	if err := apply(t, root, b, []string{"old/deep", "nothing/here", "rel"}, true); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(root, "etc/conf"))
	if err != nil || st.Mode() != 0o755|os.ModeSetuid || st.Size() != 3 || !st.ModTime().Equal(at) {
		t.Errorf("%v, %v", st, err)
	}
	if d, err := os.Stat(filepath.Join(root, "etc")); err != nil || d.Mode().Perm() != 0o711 || !d.ModTime().Equal(at) {
		t.Errorf("%v, %v", d, err)
	}
	second, err := os.Stat(filepath.Join(root, "etc/second"))
	if err != nil || !os.SameFile(st, second) {
		t.Errorf("the link is no link: %v", err)
	}
	if l, err := os.Readlink(filepath.Join(root, "old")); err != nil || l != "/etc" {
		t.Errorf("%q, %v", l, err)
	}
	if _, err := os.Lstat(filepath.Join(root, "rel")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not deleted: %v", err)
	}
	ents, _ := os.ReadDir(outside)
	if len(ents) != 1 {
		t.Errorf("outside: %v", ents)
	}
}

func TestApplyRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := func(n string) member { return member{tar.Header{Typeflag: tar.TypeDir, Name: n, Mode: 0o755}, ""} }
	with := func(m member, f func(*tar.Header)) member { f(&m.h); return m }
	for name, ms := range map[string][]member{
		"above":                {reg("../outside/evil", "")},
		"absolute":             {reg("/evil", "")},
		"unclean":              {reg("etc/../evil", "")},
		"the root itself":      {dir("./")},
		"through absolute":     {reg("abs/evil", "")},
		"through relative":     {reg("rel/evil", "")},
		"through its own link": {member{tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "etc"}, ""}, reg("l/evil", "")},
		"no parent":            {reg("new/evil", "")},
		"through a file":       {reg("etc/conf/evil", "")},
		"link out":             {member{tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../outside/secret"}, ""}},
		"link to the image's":  {member{tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "etc/conf"}, ""}},
		"link to a symlink":    {member{tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "/x"}, ""}, member{tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "s"}, ""}},
		"device":               {member{tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1, Devminor: 1}, ""}},
		"block device":         {member{tar.Header{Typeflag: tar.TypeBlock, Name: "d", Devmajor: 8}, ""}},
		"whiteout":             {member{tar.Header{Typeflag: tar.TypeChar, Name: "d"}, ""}},
		"duplicate":            {reg("a", "1"), reg("a", "2")},
		"duplicate directory":  {dir("a/"), reg("a", "2")},
		"setuid":               {with(reg("a", ""), func(h *tar.Header) { h.Mode = 0o4755 })},
		"setgid":               {with(reg("a", ""), func(h *tar.Header) { h.Mode = 0o2755 })},
		"capability":           {with(reg("a", ""), func(h *tar.Header) { h.PAXRecords = map[string]string{xattrRecord + "security.capability": "x"} })},
		"overlay attribute":    {with(reg("a", ""), func(h *tar.Header) { h.PAXRecords = map[string]string{xattrRecord + "trusted.overlay.redirect": "/"} })},
		"label":                {with(reg("a", ""), func(h *tar.Header) { h.PAXRecords = map[string]string{xattrRecord + "security.selinux": "x"} })},
		"no owner":             {with(reg("a", ""), func(h *tar.Header) { h.Uid = 1<<32 - 1 })},
		"too large":            {reg("a", strings.Repeat("x", 1<<16)), reg("b", "x")},
		"too long":             {reg(strings.Repeat("a/", maxDepth)+"a", "")},
		"too many": func() (ms []member) {
			for _, c := range "abcdefghijklmnopq" {
				ms = append(ms, reg(string(c), ""))
			}
			return ms
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			root, outside := rootfs(t)
			if err := apply(t, root, makeTar(t, ms...), nil, false); !errors.Is(err, ErrHostile) {
				t.Errorf("accepted: %v", err)
			}
			untouched(t, outside)
		})
	}
	for _, d := range []string{"../outside", "/etc", "abs/secret", "rel/secret", "up/outside", ".", "", "etc/../../outside"} {
		root, outside := rootfs(t)
		if err := apply(t, root, makeTar(t), []string{d}, true); !errors.Is(err, ErrHostile) {
			t.Errorf("deletion of %q: %v", d, err)
		}
		untouched(t, outside)
	}
}

func untouched(t *testing.T, outside string) {
	t.Helper()
	ents, err := os.ReadDir(outside)
	b, rerr := os.ReadFile(filepath.Join(outside, "secret"))
	if err != nil || rerr != nil || len(ents) != 1 || string(b) != "image" {
		t.Errorf("what is outside was changed: %v %q %v %v", ents, b, err, rerr)
	}
}

// TestMountsAreNotCrossed: a path of the difference does not lead into a mount.
func TestMountsAreNotCrossed(t *testing.T) {
	root, outside := rootfs(t)
	if err := unix.Mount(outside, filepath.Join(root, "etc"), "", unix.MS_BIND, ""); err != nil {
		t.Skip("needs CAP_SYS_ADMIN to mount: " + err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(root, "etc"), unix.MNT_DETACH) })
	if err := apply(t, root, makeTar(t, reg("etc/evil", "")), []string{"etc/secret"}, true); err == nil {
		t.Error("accepted")
	}
	untouched(t, outside)
}

// TestDiffRoundTrip: what Diff writes, Apply makes again.
func TestDiffRoundTrip(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	upper := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(upper, "etc/new"), 0o755))
	must(os.WriteFile(filepath.Join(upper, "etc/conf"), []byte("changed"), 0o640))
	must(os.Link(filepath.Join(upper, "etc/conf"), filepath.Join(upper, "etc/hard")))
	must(os.Symlink("/etc/conf", filepath.Join(upper, "etc/soft")))
	must(unix.Mknod(filepath.Join(upper, "old"), unix.S_IFCHR, 0))
	must(unix.Mknod(filepath.Join(upper, "sock"), unix.S_IFSOCK|0o600, 0))
	opaque := unix.Setxattr(filepath.Join(upper, "etc/new"), overlay+"opaque", []byte("y"), 0) == nil
	var b bytes.Buffer
	deleted, err := Diff(t.Context(), upper, &b, small())
	must(err)
	if want := []string{"etc/new", "old"}; opaque && !slices.Equal(deleted, want) {
		t.Errorf("deleted: %v", deleted)
	}
	root, _ := rootfs(t)
	must(apply(t, root, b.Bytes(), deleted, false))
	if c, err := os.ReadFile(filepath.Join(root, "etc/hard")); err != nil || string(c) != "changed" {
		t.Errorf("%q, %v", c, err)
	}
	for _, n := range []string{"old", "sock"} {
		if _, err := os.Lstat(filepath.Join(root, n)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", n, err)
		}
	}
	must(unix.Mknod(filepath.Join(upper, "dev"), unix.S_IFCHR, 0x103))
	if _, err := Diff(t.Context(), upper, io.Discard, small()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a device: %v", err)
	}
}

func TestWriteThenExtract(t *testing.T) {
	dir := t.TempDir()
	r := openRoot(t, dir)
	if err := r.Mkdir(ImagesDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for n, body := range map[string]string{
		ImagesDir + "/" + Descriptors: `["/dev/null","pipe:[1]","pipe:[2]"]`, ImagesDir + "/core-1.img": "core",
		ImagesDir + "/cgroup.img": "left out", ImagesDir + "/apparmor.img": "left out", DumpLog: "log", "diff": "the diff",
	} {
		if err := r.WriteFile(n, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	diff, err := r.Open("diff")
	if err != nil {
		t.Fatal(err)
	}
	defer diff.Close()
	var b bytes.Buffer
	s := Source{Config: Config{Version: Version, Name: "web"}, Spec: []byte(`{"ociVersion":"1.0.2"}`), Dir: r, Diff: diff, Deleted: []string{"a"}, Log: diff}
	if err := Write(t.Context(), &b, s); err != nil {
		t.Fatal(err)
	}
	c, _, err := extract(t, b.Bytes())
	if err != nil || c.Config.Name != "web" || c.Spec.Version != "1.0.2" {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestDescriptors(t *testing.T) {
	for s, ok := range map[string]bool{
		`["/dev/null","pipe:[1]","pipe:[2]"]`: true, `["/dev/pts/0","/dev/pts/0","/dev/pts/0"]`: true,
		`["a","b"]`: false, `["","","","","pipe:[3]"]`: false, `["pipe:[x]","",""]`: false, `["pipe:[1] ","",""]`: false, `{}`: false, ``: false, `[1,2,3]`: false,
	} {
		if err := ReadDescriptors([]byte(s)); (err == nil) != ok || err != nil && !errors.Is(err, ErrHostile) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestReadPod(t *testing.T) {
	one := Pod{Version: 1, Containers: []PodContainer{{Name: "web", File: "web.tar"}}}
	for name, change := range map[string]func(*Pod){
		"":        func(*Pod) {},
		"none":    func(p *Pod) { p.Containers = nil },
		"version": func(p *Pod) { p.Version = 2 },
		"climbs":  func(p *Pod) { p.Containers[0] = PodContainer{Name: "../x", File: "../x.tar"} },
		"other":   func(p *Pod) { p.Containers[0].File = "/etc/shadow" },
		"twice":   func(p *Pod) { p.Containers = append(p.Containers, p.Containers[0]) },
	} {
		p := one
		p.Containers = slices.Clone(one.Containers)
		change(&p)
		b, _ := json.Marshal(p)
		if _, err := ReadPod(b); (err == nil) != (name == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Images, written by hand.

func image(magic uint32, msgs ...[]byte) string {
	b := binary.LittleEndian.AppendUint32(nil, magicCommon)
	b = binary.LittleEndian.AppendUint32(b, magic)
	for _, m := range msgs {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(m)))
		b = append(b, m...)
	}
	return string(b)
}

func num(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func sub(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

type thread struct {
	uid, gid, caps, nnp, seccomp uint64
	profile                      string
	groups                       []byte // packed
	oom                          int32
}

func (c thread) bytes() []byte {
	var cr []byte
	for n := protowire.Number(1); n <= 8; n += 2 {
		cr = num(num(cr, n, c.uid), n+1, c.gid)
	}
	for n := protowire.Number(9); n <= 12; n++ {
		cr = num(num(cr, n, c.caps&0xffffffff), n, c.caps>>32)
	}
	if c.profile != "" {
		cr = sub(cr, 15, []byte(c.profile))
	}
	if c.groups != nil {
		cr = sub(cr, 14, c.groups)
	}
	cr = num(cr, 18, c.nnp)
	task := sub(num(nil, 1, 1), 3, num(nil, 14, uint64(int64(c.oom))))
	return sub(task, 5, num(sub(nil, 10, cr), 11, c.seccomp))
}

func mnt(point string, typ, flags uint64, key string) []byte {
	b := num(num(nil, 1, typ), 5, flags)
	b = sub(b, 7, []byte(point))
	if key != "" {
		b = sub(num(b, 13, 1), 18, []byte(key))
	}
	return b
}

func TestCheckImages(t *testing.T) {
	expect := Expect{
		Bounding: 1<<3 | 1<<39, NoNewPrivileges: true, UID: 7, GIDs: []uint32{8, 20}, Seccomp: true, Profile: "web", MinOOMScore: 2,
		Mounts: []Mount{
			{Point: "/", Types: []string{"overlay"}},
			{Point: "/proc", Types: []string{"proc"}},
			{Point: "/proc/kcore", Types: []string{"bind"}},
			{Point: "/sys", Types: []string{"sysfs"}, ReadOnly: true},
			{Point: "/data", Types: []string{"bind"}},
			{Point: "/secret", Types: []string{"bind"}, ReadOnly: true},
			{Point: "/proc/sys", Types: []string{"proc", "sysfs", "bind"}, ReadOnly: true},
			{Point: "/sys/fs/cgroup", Types: []string{"cgroup", "tmpfs", "bind"}, Below: true},
		},
		Covered: []string{"/proc/kcore"},
	}
	ok := thread{uid: 7, gid: 8, caps: 1 << 39, nnp: 1, seccomp: 2, profile: "web", groups: []byte{20, 8}, oom: 3}
	plain := func() [][]byte {
		return [][]byte{
			mnt("./", 17, 0, ""), mnt("/proc", 1, 0, ""), mnt("/proc/kcore", 3, 0, "/dev/null"),
			sub(mnt("/proc/sys", 1, 1, ""), 6, []byte("/sys")),
			mnt("/sys", 2, 1, ""), mnt("/data", 0, 0, "/data"), mnt("/sys/fs/cgroup/cpu", 12, 1, ""),
		}
	}
	for name, c := range map[string]struct {
		thread func(*thread)
		mounts func([][]byte) [][]byte
	}{
		"":                      {},
		"capability":            {thread: func(c *thread) { c.caps |= 1 << 21 }},
		"high capability":       {thread: func(c *thread) { c.caps |= 1 << 38 }},
		"new privileges":        {thread: func(c *thread) { c.nnp = 0 }},
		"root":                  {thread: func(c *thread) { c.uid = 0 }},
		"group":                 {thread: func(c *thread) { c.gid = 0 }},
		"further group":         {thread: func(c *thread) { c.groups = []byte{20, 6} }},
		"spared by the kernel":  {thread: func(c *thread) { c.oom = -999 }},
		"no filter":             {thread: func(c *thread) { c.seccomp = 0 }},
		"unconfined":            {thread: func(c *thread) { c.profile = "unconfined" }},
		"other profile":         {thread: func(c *thread) { c.profile = "lax" }},
		"further mount":         {mounts: func(m [][]byte) [][]byte { return append(m, mnt("/host", 16, 0, "")) }},
		"devices":               {mounts: func(m [][]byte) [][]byte { return append(m, mnt("/sys/fs/cgroup/x", 3, 0, "")) }},
		"another kind":          {mounts: func(m [][]byte) [][]byte { m[5] = mnt("/data", 5, 0, ""); return m }},
		"writable":              {mounts: func(m [][]byte) [][]byte { m[4] = mnt("/sys", 2, 0, ""); return m }},
		"not covered":           {mounts: func(m [][]byte) [][]byte { return slices.Delete(m, 2, 3) }},
		"a second one on top":   {mounts: func(m [][]byte) [][]byte { return append(m, mnt("/proc", 1, 0, "")) }},
		"the same, named oddly": {mounts: func(m [][]byte) [][]byte { return append(m, mnt("./x/..//proc/", 1, 0, "")) }},
		"another's source":      {mounts: func(m [][]byte) [][]byte { m[5] = mnt("/data", 0, 0, "/secret"); return m }},
		"masked, elsewhere":     {mounts: func(m [][]byte) [][]byte { m[3] = mnt("/proc/sys", 1, 1, ""); return m }},
		"a part of proc":        {mounts: func(m [][]byte) [][]byte { m[1] = sub(m[1], 6, []byte("/sys")); return m }},
		"no mounts":             {mounts: func([][]byte) [][]byte { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			th, ms := ok, plain()
			if c.thread != nil {
				c.thread(&th)
			}
			if c.mounts != nil {
				ms = c.mounts(ms)
			}
			err := checkFiles(t, expect, map[string]string{"core-1.img": image(magicCore, th.bytes()), "mountpoints-9.img": image(magicMounts, ms...)})
			if (err == nil) != (name == "") || err != nil && !errors.Is(err, ErrHostile) {
				t.Errorf("%v", err)
			}
		})
	}
	mounts := image(magicMounts, plain()...)
	for name, files := range map[string]map[string]string{
		"no process":     {"mountpoints-9.img": mounts},
		"no mounts":      {"core-1.img": image(magicCore, ok.bytes())},
		"bad magic":      {"core-1.img": image(magicMounts, ok.bytes()), "mountpoints-9.img": mounts},
		"cut off":        {"core-1.img": image(magicCore, ok.bytes())[:40], "mountpoints-9.img": mounts},
		"large":          {"core-1.img": image(magicCore) + "\xff\xff\xff\xff", "mountpoints-9.img": mounts},
		"no credentials": {"core-1.img": image(magicCore, sub(nil, 5, num(nil, 11, 2))), "mountpoints-9.img": mounts},
		"twice":          {"core-1.img": image(magicCore, append(ok.bytes(), ok.bytes()...)), "mountpoints-9.img": mounts},
		"one of two":     {"core-1.img": image(magicCore, ok.bytes()), "core-2.img": image(magicCore, thread{}.bytes()), "mountpoints-9.img": mounts},
		"user namespace": {"core-1.img": image(magicCore, ok.bytes()), "mountpoints-9.img": mounts, "userns-3.img": ""},
	} {
		if err := checkFiles(t, expect, files); !errors.Is(err, ErrHostile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func checkFiles(t testing.TB, e Expect, files map[string]string) error {
	t.Helper()
	r := openRoot(t, t.TempDir())
	if err := r.Mkdir(ImagesDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for n, b := range files {
		if err := r.WriteFile(ImagesDir+"/"+n, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return CheckImages(r, e)
}

func FuzzExtract(f *testing.F) {
	f.Add(makeTar(f, good()...))
	f.Add(sparse(f))
	f.Add(makeTar(f, reg("../x", "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, dir, err := extract(t, b)
		if err != nil && !errors.Is(err, ErrHostile) {
			t.Fatalf("%v", err)
		}
		var size int64
		if err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if !e.Type().IsRegular() {
				t.Errorf("%s is %s", e.Name(), e.Type())
			}
			i, err := e.Info()
			size += i.Size()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if size > small().Bytes {
			t.Errorf("%d bytes were written", size)
		}
	})
}

func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, reg("a", "b"), reg("etc/conf", "x")), "old")
	f.Add(makeTar(f, reg("rel/evil", "b")), "rel/secret")
	f.Fuzz(func(t *testing.T, b []byte, deleted string) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		root, outside := rootfs(t)
		_ = apply(t, root, b, []string{deleted}, false)
		untouched(t, outside)
	})
}

func FuzzImages(f *testing.F) {
	f.Add(thread{uid: 1, seccomp: 2}.bytes(), mnt("/proc", 1, 0, ""))
	f.Fuzz(func(t *testing.T, core, mount []byte) {
		err := checkFiles(t, Expect{Mounts: []Mount{{Point: "/proc", Types: []string{"proc"}}}}, map[string]string{
			"core-1.img": image(magicCore, core), "mountpoints-9.img": image(magicMounts, mount),
		})
		if err != nil && !errors.Is(err, ErrHostile) {
			t.Fatal(err)
		}
	})
}

// Root without the capability to become another user has become none; a
// process that gave the capability up may have used it before.
func TestRootThatBecameAnother(t *testing.T) {
	mounts := image(magicMounts, mnt("./", 17, 0, ""))
	for _, c := range []struct {
		bounding uint64
		nnp      bool
		t        thread
		ok       bool
	}{
		{0, true, thread{uid: 33, nnp: 1}, false},
		{0, true, thread{gid: 33, nnp: 1}, false},
		{0, false, thread{uid: 33, gid: 33}, true},
		{1 << capSetuid, true, thread{uid: 33, nnp: 1}, true},
		{1 << capSetuid, true, thread{uid: 33, gid: 33, nnp: 1}, false},
		{1 << capSetgid, true, thread{gid: 33, nnp: 1}, true},
	} {
		e := Expect{Bounding: c.bounding, NoNewPrivileges: c.nnp, GIDs: []uint32{0}, Mounts: []Mount{{Point: "/", Types: []string{"overlay"}}}}
		err := checkFiles(t, e, map[string]string{"core-1.img": image(magicCore, c.t.bytes()), "mountpoints-9.img": mounts})
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
