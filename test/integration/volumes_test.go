package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/images"
)

// dataImage serves, pulls and in the end removes an image of data, in one
// layer or two.
func dataImage(t *testing.T, ctx context.Context, e *harness.Env, name string, layers ...func(*images.Builder)) string {
	t.Helper()
	var ls []*images.Layer
	for _, fill := range layers {
		ls = append(ls, must[*images.Layer](t)(images.NewLayer(fill)))
	}
	img := must[v1.Image](t)(images.New(true, v1.Config{}, ls...))
	must[v1.Hash](t)(e.Registry.Add("tests/"+name+":1", img))
	id := must[string](t)(e.Pull(ctx, "docker.io/tests/"+name+":1"))
	t.Cleanup(func() {
		_, err := e.Image.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
		if err != nil {
			t.Error(err)
		}
	})
	return id
}

func lower(b *images.Builder) {
	b.File("data/file", []byte("from the image"), 0o644)
	b.File("data/run", []byte("#!/bin/sh\necho ran\n"), 0o755)
	b.Symlink("link", "/data")
	b.Symlink("host", "/proc/1/root/etc")
	b.Symlink("up", "../../../../../../data/file")
}

func upper(b *images.Builder) { b.File("data/second", []byte("second layer"), 0o600) }

func imageMount(at, image, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: at, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: sub, Readonly: true}
}

func TestImageVolumes(t *testing.T) {
	for _, user := range []bool{false, true} {
		t.Run(fmt.Sprintf("user namespace %t", user), func(t *testing.T) {
			e, ctx := env(t)
			imageVolumes(t, ctx, e, user)
		})
	}
}

func imageVolumes(t *testing.T, ctx context.Context, e *harness.Env, user bool) {
	one := dataImage(t, ctx, e, "one", lower)
	two := dataImage(t, ctx, e, "two", lower, upper)
	pod := e.Pod("volumes", true)
	if user {
		pod = userPod(e, "volumes", false)
	}
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	c := harness.Shell("main", harness.Forever)
	c.Mounts = []*runtimeapi.Mount{
		imageMount("/one", one, ""), imageMount("/two", two, ""), imageMount("/sub", two, "link"),
		imageMount("/file", one, "up"), imageMount("/by-name", "docker.io/tests/one:1", "data"),
	}
	if user {
		for _, m := range c.Mounts {
			m.UidMappings, m.GidMappings = idMap(), idMap()
		}
	}
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	wantSh(t, ctx, e, id, "cat /one/data/file; echo; cat /two/data/second; echo; cat /sub/second; echo; cat /file; echo; cat /by-name/file",
		"from the image\nsecond layer\nsecond layer\nfrom the image\nfrom the image")
	wantSh(t, ctx, e, id, "stat -c %u:%g /one/data/file /two/data/second | sort -u", "0:0")
	wantSh(t, ctx, e, id, "touch /one/x /two/x /sub/x 2>&1 | grep -c 'Read-only'; /one/data/run 2>/dev/null || echo no exec; ls /one | grep -c x || true", "3\nno exec\n0")
	st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
	if m := st.Mounts[2]; m.Image.GetImage() != two || m.ImageSubPath != "link" || !m.Readonly || m.HostPath != "" {
		t.Errorf("the status shows the mount as %v", m)
	}
	_, err := e.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: one}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("removing an image that is mounted: %v", err)
	}
	check(t, e.Signal(unix.SIGKILL))
	check(t, e.Start(ctx))
	wantSh(t, ctx, e, id, "cat /sub/second", "second layer")
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
}

func TestImageVolumeErrors(t *testing.T) {
	e, ctx := env(t)
	one := dataImage(t, ctx, e, "errors", lower)
	pod := e.Pod("volumes", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	for name, row := range map[string]struct {
		m    *runtimeapi.Mount
		code codes.Code
		word string // the kubelet looks at the beginning
	}{
		"absent image":     {imageMount("/x", "sha256:"+strings.Repeat("0", 64), ""), codes.NotFound, "ImageVolumeMountFailed"},
		"absent sub-path":  {imageMount("/x", one, "nothing/here"), codes.InvalidArgument, "ImageVolumeMountFailed"},
		"leads to host":    {imageMount("/x", one, "host/passwd"), codes.InvalidArgument, "ImageVolumeMountFailed"},
		"climbs":           {imageMount("/x", one, "../../etc"), codes.InvalidArgument, "invalid"},
		"image and host":   {&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/etc", Image: &runtimeapi.ImageSpec{Image: one}}, codes.InvalidArgument, "invalid"},
		"sub-path of host": {&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/etc", ImageSubPath: "a"}, codes.InvalidArgument, "invalid"},
	} {
		c := harness.Shell("bad", harness.Forever)
		c.Mounts = []*runtimeapi.Mount{row.m}
		_, err := e.CreateContainer(ctx, podID, pod, c)
		s, _ := status.FromError(err)
		if s.Code() != row.code || !strings.Contains(s.Message(), "desc = "+row.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
	list := must[*runtimeapi.ListContainersResponse](t)(e.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{}))
	if len(list.Containers) != 0 {
		t.Errorf("containers were left: %v", list.Containers)
	}
	check(t, e.Down(ctx, podID))
}

// TestMountOptions: what a client asks of a mount holds, over a tree of mounts.
func TestMountOptions(t *testing.T) {
	e, ctx := env(t)
	dir := filepath.Join(e.Dir, "options")
	below := filepath.Join(dir, "below")
	check(t, os.MkdirAll(below, 0o755))
	check(t, unix.Mount("none", below, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH); os.RemoveAll(dir) })
	check(t, os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	check(t, os.Symlink("run", filepath.Join(dir, "link")))
	check(t, unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))

	pod := e.Pod("options", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	c := harness.Shell("main", harness.Forever)
	with := func(at string, options ...string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: at, HostPath: dir, MountOptions: options}
	}
	c.Mounts = []*runtimeapi.Mount{
		with("/plain"), with("/noexec", "noexec"), with("/nodev", "nodev", "nosuid"), with("/nolink", "nosymfollow", "noatime"),
		{ContainerPath: "/ro", HostPath: dir, Readonly: true},
		{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
	}
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	wantSh(t, ctx, e, id, "/plain/run; /noexec/run 2>/dev/null || echo no exec", "ran\nno exec")
	wantSh(t, ctx, e, id, "echo > /plain/null && echo device; echo 2>/dev/null > /nodev/null || echo no device", "device\nno device")
	wantSh(t, ctx, e, id, "cat /plain/link | wc -l; cat /nolink/link 2>/dev/null || echo no link", "2\nno link")
	wantSh(t, ctx, e, id, "touch /ro/x 2>/dev/null || echo ro; touch /ro/below/x && echo written below; touch /rro/x 2>/dev/null || echo ro; touch /rro/below/x 2>/dev/null || echo ro below",
		"ro\nwritten below\nro\nro below")
	wantSh(t, ctx, e, id, "awk '$5 == \"/nodev\" || $5 == \"/nolink\" {print $6}' /proc/self/mountinfo | tr , '\\n' | grep -E 'nosuid|nodev|nosymfollow|noatime' | sort -u | xargs", "noatime nodev nosuid nosymfollow")
	st := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
	if m := st.Mounts[1]; len(m.MountOptions) != 1 || m.MountOptions[0] != "noexec" {
		t.Errorf("the status shows the mount as %v", m)
	}
	for _, o := range []string{"exec", "dev", "suid", "rw", "remount", "tmpcopyup", "noexec,suid", "", "idmap", "context=x"} {
		bad := harness.Shell("bad", harness.Forever)
		bad.Mounts = []*runtimeapi.Mount{with("/x", o)}
		if _, err := e.CreateContainer(ctx, podID, pod, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("option %q: %v", o, err)
		}
	}
	for name, m := range map[string]*runtimeapi.Mount{
		"not read-only": {RecursiveReadOnly: true},
		"slave":         {RecursiveReadOnly: true, Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		"shared":        {RecursiveReadOnly: true, Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		"absent source": {HostPath: filepath.Join(dir, "nothing")},
	} {
		m.ContainerPath = "/x"
		if m.HostPath == "" {
			m.HostPath = dir
		}
		bad := harness.Shell("bad", harness.Forever)
		bad.Mounts = []*runtimeapi.Mount{m}
		if _, err := e.CreateContainer(ctx, podID, pod, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(t, e.Down(ctx, podID))
	check(t, os.RemoveAll(pod.LogDirectory))
}
