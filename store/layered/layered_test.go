package layered_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layered"
	"github.com/ocid-io/ocid/store/storetest"
)

// childEnv makes the test binary a second process on a store.
const childEnv = "OCID_TEST_STORE_CHILD"

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	// Layers are unpacked by children of this binary, which under the race
	// detector would sleep for a second each before they exit.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(m.Run())
}

// child does what it is told on its input, one line each, and answers "ok" or
// the error.
func child(dir string) {
	s, err := layered.Open(options(dir))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ok")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		switch f[0] {
		case "tag":
			err = s.Tag(context.Background(), f[1], f[2])
		case "remove":
			err = s.Remove(context.Background(), f[1])
		case "prepare":
			_, err = s.Prepare(context.Background(), store.RootFSRequest{ID: f[1], ImageID: f[2]})
		case "begin":
			var tmp string
			if tmp, _, err = s.Begin(context.Background()); err == nil {
				err = os.WriteFile(filepath.Join(tmp, "part"), []byte("x"), 0o600)
			}
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
}

type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *bufio.Writer
	out *bufio.Scanner
}

func startChild(t *testing.T, dir string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	p := &process{t: t, cmd: cmd, in: bufio.NewWriter(in), out: bufio.NewScanner(out)}
	p.answer("ok")
	return p
}

func (p *process) answer(want string) {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatal("child is gone")
	}
	if got := p.out.Text(); !strings.Contains(got, want) {
		p.t.Fatalf("child answered %q, want %q", got, want)
	}
}

func (p *process) do(want, format string, args ...any) {
	p.t.Helper()
	fmt.Fprintf(p.in, format+"\n", args...)
	must(p.t, p.in.Flush())
	p.answer(want)
}

func options(dir string) layered.Options {
	return layered.Options{Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run")}
}

func newDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	return t.TempDir()
}

func open(t *testing.T, dir string) *layered.Store {
	t.Helper()
	s, err := layered.Open(options(dir))
	must(t, err)
	t.Cleanup(func() {
		if err := s.Collect(context.Background(), func(string) bool { return false }); err != nil {
			t.Errorf("collect at the end: %v", err)
		}
		must(t, s.Close())
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, s *layered.Store, tag string, img v1.Image) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	ref, err := name.NewTag(tag)
	must(t, err)
	must(t, tarball.WriteToFile(file, ref, img))
	src, err := archive.ParseReference(file)
	must(t, err)
	named, err := reference.ParseDockerRef(tag)
	must(t, err)
	policy, err := signature.NewPolicyContext(&signature.Policy{
		Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()},
	})
	must(t, err)
	tmp, end, err := s.Begin(t.Context())
	must(t, err)
	dest, err := s.Destination(named)
	must(t, err)
	sys := &types.SystemContext{BigFilesTemporaryDir: tmp, BlobInfoCacheDir: tmp}
	_, err = copy.Image(t.Context(), policy, dest, src, &copy.Options{SourceCtx: sys, DestinationCtx: sys})
	end(err == nil)
	must(t, err)
	h, err := img.ConfigName()
	must(t, err)
	must(t, s.Commit(t.Context(), h.String(), []string{named.String()}))
	return h.String()
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (storetest.Backend, storetest.Loader) {
		s := open(t, newDir(t))
		return s, func(t *testing.T, tag string, img v1.Image) { load(t, s, tag, img) }
	})
}

func TestSecondProcess(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	id := load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x")))
	p := startChild(t, dir)
	p.do("ok", "tag %s example.com/bb:2", id)
	img, err := s.Image(t.Context(), "example.com/bb:2")
	if err != nil || img.ID != id {
		t.Fatalf("what the other process tagged: %v, %v", img, err)
	}
	p.do("ok", "prepare theirs %s", id)
	err = s.Remove(t.Context(), id)
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "theirs") {
		t.Fatalf("removing what the other process uses: %v", err)
	}
	must(t, s.Release(t.Context(), "theirs"))
	_, err = s.Prepare(t.Context(), store.RootFSRequest{ID: "ours", ImageID: id})
	must(t, err)
	p.do("ours", "remove %s", id)
	must(t, s.Release(t.Context(), "ours"))
	p.do("ok", "remove %s", id)
	if _, err := s.Image(t.Context(), id); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("what the other process removed: %v", err)
	}
}

func TestCollectLeavesAPullInAnotherProcess(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	p := startChild(t, dir)
	p.do("ok", "begin")
	none := func(string) bool { return false }
	must(t, s.Collect(t.Context(), none))
	if got := entries(t, dir, "tmp"); len(got) != 1 {
		t.Fatalf("downloads of a live pull: %v", got)
	}
	must(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()
	must(t, s.Collect(t.Context(), none))
	if got := entries(t, dir, "tmp"); len(got) != 0 {
		t.Fatalf("downloads of a dead pull: %v", got)
	}
}

func entries(t *testing.T, dir, sub string) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(dir, "root", sub))
	must(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func TestCollectAfterCrash(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	id := load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x"), storetest.File("g", "y")))
	hex := strings.TrimPrefix(id, "sha256:")
	for _, n := range []string{"kept", "dropped", "half", "mnt-hand"} {
		_, err := s.Prepare(t.Context(), store.RootFSRequest{ID: n, ImageID: id})
		must(t, err)
	}
	root := filepath.Join(dir, "root")
	// Died between mkdir and record, after a rename to the trash, between pin
	// and record, with a mount whose directory is gone.
	must(t, os.Remove(filepath.Join(root, "rootfs/half/record.json")))
	must(t, os.Mkdir(filepath.Join(root, "rootfs/new"), 0o700))
	must(t, os.MkdirAll(filepath.Join(root, "trash/old.1/upper"), 0o700))
	must(t, os.WriteFile(filepath.Join(root, "pins", hex, "ghost"), nil, 0o600))
	stray := filepath.Join(dir, "run/rootfs/stray")
	must(t, os.Mkdir(stray, 0o700))
	must(t, unix.Mount("tmpfs", stray, "tmpfs", 0, ""))

	must(t, s.Collect(t.Context(), func(id string) bool { return id == "kept" }))
	if got := fmt.Sprint(entries(t, dir, "rootfs")); got != "[kept mnt-hand]" {
		t.Fatalf("root file systems left: %s", got)
	}
	if got := fmt.Sprint(entries(t, dir, "pins/"+hex)); got != "[kept mnt-hand]" {
		t.Fatalf("pins left: %s", got)
	}
	if got := entries(t, dir, "trash"); len(got) != 0 {
		t.Fatalf("trash left: %v", got)
	}
	if _, err := os.Lstat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("stray mount: %v", err)
	}
	// A reboot takes the mounts, and with them what was mounted by hand.
	must(t, unix.Unmount(filepath.Join(dir, "run/rootfs/mnt-hand"), unix.MNT_DETACH))
	must(t, s.Collect(t.Context(), func(string) bool { return false }))
	if got := entries(t, dir, "rootfs"); len(got) != 0 {
		t.Fatalf("root file systems left: %v", got)
	}
	must(t, s.Remove(t.Context(), id))
}

func TestDamagedLayer(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	id := load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x")))
	layers, err := filepath.Glob(filepath.Join(dir, "root/storage/overlay/*/diff"))
	must(t, err)
	for _, l := range layers {
		must(t, os.RemoveAll(filepath.Dir(l)))
	}
	_, err = s.Prepare(t.Context(), store.RootFSRequest{ID: "one", ImageID: id})
	if !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("Prepare: %v", err)
	}
	if got := entries(t, dir, "rootfs"); len(got) != 0 {
		t.Fatalf("left of a failed Prepare: %v", got)
	}
	if s.Has(t.Context(), id) {
		t.Fatal("an image without its layers counts as whole")
	}
	if list, err := s.Images(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("broken image after Has: %v, %v", list, err)
	}
}

func TestNoContainersFile(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	id := load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x")))
	_, err := s.Prepare(t.Context(), store.RootFSRequest{ID: "one", ImageID: id})
	must(t, err)
	data, err := os.ReadFile(filepath.Join(dir, "root/storage/overlay-containers/containers.json"))
	if err == nil && len(data) > len("[]\n") {
		t.Fatalf("the library was told of containers: %s", data)
	}
}

func TestUsageCountsInodesOnce(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x"), storetest.File("g", "y")))
	_, err := s.Usage(t.Context())
	must(t, err)
	must(t, s.Close()) // waits for the count
	u, err := s.Usage(t.Context())
	must(t, err)
	if u.Inodes != 4 { // two layers of a directory and a file
		t.Fatalf("%d inodes", u.Inodes)
	}
	if got := entries(t, dir, "usage"); len(got) != 2 {
		t.Fatalf("counts kept: %v", got)
	}
	must(t, s.Remove(t.Context(), "example.com/aa:1"))
	if got := entries(t, dir, "usage"); len(got) != 0 {
		t.Fatalf("counts of removed layers kept: %v", got)
	}
}

func TestMoreLowersThanAPageHolds(t *testing.T) {
	s := open(t, newDir(t))
	var layers []storetest.Layer
	for i := range 40 {
		layers = append(layers, storetest.File(fmt.Sprintf("f%d", i), "x"))
	}
	id := load(t, s, "example.com/aa:1", storetest.Image(t, layers...))
	check := func(prefix string) {
		for _, ro := range []bool{false, true} {
			fs, err := s.Prepare(t.Context(), store.RootFSRequest{ID: fmt.Sprintf("%s-%t", prefix, ro), ImageID: id, ReadOnly: ro})
			must(t, err)
			if _, err := os.Stat(filepath.Join(fs.Path, "f0")); err != nil {
				t.Fatal(err)
			}
		}
	}
	check("new")
	defer layered.OldKernel()()
	check("old")
}

// A runtime that outlives its monitor may go on in the mount point.
func TestReleaseRemovesStrays(t *testing.T) {
	s := open(t, t.TempDir())
	id := load(t, s, "example.com/aa:1", storetest.Image(t, storetest.File("f", "x")))
	fs, err := s.Prepare(t.Context(), store.RootFSRequest{ID: "one", ImageID: id})
	must(t, err)
	must(t, unix.Unmount(fs.Path, unix.MNT_DETACH))
	must(t, os.MkdirAll(filepath.Join(fs.Path, "dev/pts"), 0o755))
	must(t, s.Release(t.Context(), "one"))
	if _, err := os.Lstat(fs.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount point is still there: %v", err)
	}
	// What is mounted below is not entered, and not lost.
	fs, err = s.Prepare(t.Context(), store.RootFSRequest{ID: "two", ImageID: id})
	must(t, err)
	must(t, unix.Unmount(fs.Path, unix.MNT_DETACH))
	sub := filepath.Join(fs.Path, "sub")
	must(t, os.MkdirAll(sub, 0o755))
	must(t, unix.Mount("tmpfs", sub, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(sub, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(sub, "kept"), nil, 0o600))
	if err := s.Release(t.Context(), "two"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("release with something mounted below: %v", err)
	}
	if _, err := os.Stat(filepath.Join(sub, "kept")); err != nil {
		t.Error(err)
	}
	must(t, unix.Unmount(sub, unix.MNT_DETACH))
	must(t, s.Release(t.Context(), "two"))
}
