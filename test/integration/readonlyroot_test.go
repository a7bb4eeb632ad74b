package integration

import (
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/images"
)

// busyboxWith serves and pulls busybox with one more layer.
func busyboxWith(t *testing.T, ctx context.Context, e *harness.Env, name string, change func(*v1.Config), fill func(*images.Builder)) string {
	t.Helper()
	cache := must[string](t)(harness.CacheDir())
	dir := must[string](t)(images.Set(ctx, filepath.Join(cache, "images"), io.Discard))
	idx := must[v1.ImageIndex](t)(layout.ImageIndexFromPath(dir))
	var base v1.Image
	for _, d := range must[*v1.IndexManifest](t)(idx.IndexManifest()).Manifests {
		if d.Annotations[images.RefAnnotation] != "e2e-test-images/busybox:1.29-2" {
			continue
		}
		inner := must[v1.ImageIndex](t)(idx.ImageIndex(d.Digest))
		base = must[v1.Image](t)(inner.Image(must[*v1.IndexManifest](t)(inner.IndexManifest()).Manifests[0].Digest))
	}
	if base == nil {
		t.Fatal("busybox is not in the set of test images")
	}
	layer := must[*images.Layer](t)(images.NewLayer(fill))
	img := must[v1.Image](t)(mutate.AppendLayers(base, layer))
	cfg := must[*v1.ConfigFile](t)(img.ConfigFile()).DeepCopy()
	if change != nil {
		change(&cfg.Config)
	}
	img = must[v1.Image](t)(mutate.ConfigFile(img, cfg))
	must[v1.Hash](t)(e.Registry.Add("tests/"+name+":1", img))
	ref := "docker.io/tests/" + name + ":1"
	id := must[string](t)(e.Pull(ctx, ref))
	t.Cleanup(func() {
		_, err := e.Image.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
		if err != nil {
			t.Error(err)
		}
	})
	return ref
}

// TestReadOnlyRoot: a read-only container gets the image's tree as it is where
// that has every mount point, and an overlay where one must be made.
func TestReadOnlyRoot(t *testing.T) {
	e, ctx := env(t)
	whole := busyboxWith(t, ctx, e, "whole", nil, func(b *images.Builder) {
		for _, f := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf"} {
			b.File(f, nil, 0o644)
		}
		b.Dir("work", 0o755)
		b.Dir("volume", 0o755)
	})
	mount := func(at string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: at, HostPath: e.CNIConf}}
		}
	}
	for _, c := range []struct {
		name, image string
		change      func(*runtimeapi.ContainerConfig)
		user, upper bool
	}{
		{name: "bare", image: whole},
		{name: "bare-user", image: whole, user: true},
		{name: "bare-again", image: whole, change: mount("/volume/")},
		{name: "cwd", image: whole, change: func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/work" }},
		{name: "missing-cwd", image: whole, change: func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/none" }, upper: true},
		{name: "missing-mount", image: whole, change: mount("/made/here"), upper: true},
		{name: "missing-mount-user", image: whole, change: mount("/made/here"), user: true, upper: true},
		{name: "plain", image: harness.Busybox, upper: true},
		{name: "plain-again", image: harness.Busybox, upper: true},
		{name: "writable", image: whole, change: func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = false }, upper: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := e.Pod(c.name, true)
			if c.user {
				pod = userPod(e, c.name, false)
			}
			podID := must[string](t)(e.RunPod(ctx, pod, ""))
			t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
			cfg := harness.Shell("main", harness.Forever)
			cfg.Image.Image = c.image
			cfg.Linux.SecurityContext.ReadonlyRootfs = true
			if c.change != nil {
				c.change(cfg)
			}
			id := must[string](t)(e.RunContainer(ctx, podID, pod, cfg))
			_, err := os.Lstat(filepath.Join(e.Root, "rootfs", id, "upper"))
			if got := err == nil; got != c.upper {
				t.Errorf("writable layer: %t, want %t", got, c.upper)
			}
			want := "read-only"
			if !cfg.Linux.SecurityContext.ReadonlyRootfs {
				want = "written"
			}
			wantSh(t, ctx, e, id, "(touch /x 2>/dev/null && echo written || echo read-only); (touch /etc/hosts 2>/dev/null || true); echo y > /dev/shm/x; cat /dev/shm/x", want+"\ny")
			wantSh(t, ctx, e, id, "pwd; stat -c %u /bin/sh", cmp.Or(cfg.WorkingDir, "/")+"\n0")
			for _, m := range cfg.Mounts {
				wantSh(t, ctx, e, id, "ls "+m.ContainerPath, "10-bridge.conflist")
			}
			stats := must[*runtimeapi.ContainerStatsResponse](t)(e.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))
			if stats.Stats.GetWritableLayer() == nil {
				t.Error("no usage of the writable layer, which is what the kubelet looks for")
			}
			check(t, e.Down(ctx, podID))
			check(t, os.RemoveAll(pod.LogDirectory))
		})
	}
}
