package integration

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/images"
)

// wantError checks that a call failed with one of the codes and that the
// message names the cause.
func wantError(t *testing.T, err error, names string, want ...codes.Code) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one that names %q", names)
		return
	}
	var g interface{ GRPCStatus() *status.Status }
	code := codes.Unknown
	if errors.As(err, &g) {
		code = g.GRPCStatus().Code()
	}
	ok := len(want) == 0
	for _, w := range want {
		ok = ok || w == code
	}
	if !ok {
		t.Errorf("error has code %v, want %v: %v", code, want, err)
	}
	if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(names)) {
		t.Errorf("error does not name %q: %v", names, err)
	}
}

func TestBadPods(t *testing.T) {
	e, ctx := env(t)
	_, err := e.RunPod(ctx, e.Pod("handler", true), "no-such-handler")
	wantError(t, err, "no-such-handler", codes.InvalidArgument, codes.NotFound)

	nameless := e.Pod("x", true)
	nameless.Metadata = nil
	_, err = e.RunPod(ctx, nameless, "")
	wantError(t, err, "metadata", codes.InvalidArgument)

	_, err = e.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: strings.Repeat("a", 64)})
	wantError(t, err, "", codes.NotFound)
}

func TestBadContainers(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("bad", true)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	t.Cleanup(func() { check(t, e.Down(context.Background(), podID)) })
	noLeaks(t, e)

	cases := []struct {
		name, names string
		change      func(*runtimeapi.ContainerConfig)
	}{
		{"missing image", "nowhere", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "docker.io/library/nowhere:latest" }},
		{"malformed image", "UPPER", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "docker.io/UPPER//x:::" }},
		{"absent mount source", "/no/such/source", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/no/such/source", ContainerPath: "/x"}}
		}},
		{"relative mount target", "mount", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/tmp", ContainerPath: "../../x"}}
		}},
		{"bad user name", "nosuchuser", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "nosuchuser"
		}},
		{"unknown capability", "NONSENSE", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NONSENSE"}}
		}},
		{"absent device", "/dev/nothing-here", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/nothing-here", ContainerPath: "/dev/x", Permissions: "rw"}}
		}},
		{"no metadata", "metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }},
		{"log path that escapes", "log", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../escape.log" }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t, e)
			cfg := harness.Shell("bad-"+strings.ReplaceAll(c.name, " ", "-"), harness.Forever)
			c.change(cfg)
			id, err := e.CreateContainer(ctx, podID, pod, cfg)
			if err == nil {
				err = e.StartContainer(ctx, id)
				check(t, e.RemoveContainer(ctx, id))
			}
			wantError(t, err, c.names)
		})
	}
	t.Run("missing command", func(t *testing.T) {
		noLeaks(t, e)
		cfg := harness.Container("missing", harness.Busybox, "/no/such/program")
		id, err := e.CreateContainer(ctx, podID, pod, cfg)
		if err == nil {
			err = e.StartContainer(ctx, id)
			check(t, e.RemoveContainer(ctx, id))
		}
		wantError(t, err, "/no/such/program")
	})
}

func TestBadNetwork(t *testing.T) {
	need(t)
	dir := t.TempDir()
	script := func(name, body string) {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755))
	}
	// VERSION is asked first and must be answered for a plugin to be used.
	const version = `if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit 0; fi
`
	script("failing", version+`[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{"cniVersion":"1.0.0","code":99,"msg":"the switch is on fire"}'; exit 1`)
	script("hanging", version+`[ "$CNI_COMMAND" = DEL ] && exit 0
exec sleep 3600`)
	e, ctx := own(t, harness.Options{CNIDir: dir})
	check(t, e.Down(ctx, must[string](t)(e.RunPod(ctx, e.Pod("first", true), "")))) // makes what is made once
	for _, c := range []struct{ plugin, names string }{{"absent", "absent"}, {"failing", "on fire"}, {"hanging", ""}} {
		t.Run(c.plugin, func(t *testing.T) {
			conf := `{"cniVersion":"1.0.0","name":"ocid-test","plugins":[{"type":"` + c.plugin + `"}]}`
			check(t, os.WriteFile(filepath.Join(e.CNIConf, "10-bridge.conflist"), []byte(conf), 0o644))
			noLeaks(t, e)
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			// The daemon may need a moment to see the new file.
			var err error
			for ctx.Err() == nil {
				_, err = e.RunPod(ctx, e.Pod("net-"+c.plugin, false), "")
				if err != nil && strings.Contains(err.Error(), c.names) {
					break
				}
			}
			wantError(t, err, c.names)
			// Another pod is not held up by the one that hangs.
			host := e.Pod("beside-"+c.plugin, true)
			check(t, e.Down(context.WithoutCancel(ctx), must[string](t)(e.RunPod(context.WithoutCancel(ctx), host, ""))))
			// The operation goes on without its caller; it ends when the plugin does.
			for _, p := range e.Processes() {
				if p.Args == "sleep 3600" {
					check(t, unix.Kill(p.PID, unix.SIGKILL))
				}
			}
			removeAll(t, e)
		})
	}
}

// removeAll takes down every pod that a client can see.
func removeAll(t *testing.T, e *harness.Env) {
	t.Helper()
	ctx := deadline(t, 3*time.Minute)
	list := must[*runtimeapi.ListPodSandboxResponse](t)(e.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}))
	for _, p := range list.Items {
		check(t, e.Down(ctx, p.Id))
	}
}

func TestFullDisk(t *testing.T) {
	e, ctx := own(t, harness.Options{TmpRoot: "24m"})
	must[string](t)(e.Pull(ctx, harness.Busybox)) // makes what is made once
	t.Run("pull", func(t *testing.T) {
		noLeaks(t, e)
		// Not zeros: a file of those is a hole and takes no room.
		content := make([]byte, 64<<20)
		must[int](t)(rand.NewChaCha8([32]byte{}).Read(content))
		big := must[*images.Layer](t)(images.NewLayer(func(b *images.Builder) { b.File("big", content, 0o644) }))
		img := must[v1.Image](t)(images.New(true, v1.Config{Cmd: []string{"/big"}}, big))
		must[v1.Hash](t)(e.Registry.Add("tests/too-big:latest", img))
		_, err := e.Pull(ctx, "docker.io/tests/too-big:latest")
		wantError(t, err, "no space")
	})
	t.Run("create", func(t *testing.T) {
		pod := e.Pod("full", true)
		podID := must[string](t)(e.RunPod(ctx, pod, ""))
		fill := filepath.Join(e.Root, "fill")
		f := must[*os.File](t)(os.Create(fill))
		for b := make([]byte, 4096); ; {
			if _, err := f.Write(b); err != nil {
				break
			}
		}
		f.Close()
		_, err := e.CreateContainer(ctx, podID, pod, harness.Shell("full", harness.Forever))
		wantError(t, err, "no space")
		check(t, os.Remove(fill))
		id := must[string](t)(e.RunContainer(ctx, podID, pod, harness.Shell("full", harness.Forever)))
		must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
		check(t, e.Down(ctx, podID))
	})
}

func TestHostileRegistry(t *testing.T) {
	e, ctx := env(t)
	layer := must[*images.Layer](t)(images.NewLayer(func(b *images.Builder) { b.File("f", []byte(strings.Repeat("content", 9999)), 0o644) }))
	img := must[v1.Image](t)(images.New(true, v1.Config{Cmd: []string{"/f"}}, layer))
	must[v1.Hash](t)(e.Registry.Add("tests/hostile:latest", img))
	const name = "docker.io/tests/hostile:latest"
	t.Cleanup(func() { e.Registry.Intercept(nil) })

	t.Run("truncates", func(t *testing.T) {
		noLeaks(t, e)
		e.Registry.Intercept(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") {
					w.Header().Set("Content-Length", "500")
					w.Write([]byte("short"))
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			})
		})
		_, err := e.Pull(ctx, name)
		wantError(t, err, "")
	})
	t.Run("lies about content", func(t *testing.T) {
		noLeaks(t, e)
		e.Registry.Intercept(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") {
					w.Write([]byte("something else altogether"))
					return
				}
				next.ServeHTTP(w, r)
			})
		})
		_, err := e.Pull(ctx, name)
		wantError(t, err, "")
	})
	t.Run("malformed manifest", func(t *testing.T) {
		noLeaks(t, e)
		e.Registry.Intercept(nil)
		raw := []byte(`{"schemaVersion": 2, "layers": "many"`)
		h, _, err := v1.SHA256(strings.NewReader(string(raw)))
		check(t, err)
		e.Registry.AddRaw("tests/malformed:latest", h, types.OCIManifestSchema1, raw)
		_, err = e.Pull(ctx, "docker.io/tests/malformed:latest")
		wantError(t, err, "")
	})
	t.Run("wrong digest", func(t *testing.T) {
		noLeaks(t, e)
		_, err := e.Pull(ctx, "docker.io/tests/hostile@sha256:"+strings.Repeat("0", 64))
		wantError(t, err, strings.Repeat("0", 64))
	})
	t.Run("stalls, caller gives up", func(t *testing.T) {
		release := make(chan struct{})
		e.Registry.Intercept(func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") {
					<-release
				}
				next.ServeHTTP(w, r)
			})
		})
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err := e.Pull(short, name)
		wantError(t, err, "", codes.DeadlineExceeded)
		close(release)
		e.Registry.Intercept(nil)
		id := must[string](t)(e.Pull(ctx, name))
		_, err = e.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
		check(t, err)
	})
}

func TestHostileLayers(t *testing.T) {
	e, ctx := env(t)
	canary := filepath.Join(t.TempDir(), "canary")
	for name, fill := range hostileLayers(canary) {
		t.Run(name, func(t *testing.T) {
			noLeaks(t, e)
			layer := must[*images.Layer](t)(images.NewLayer(fill))
			img := must[v1.Image](t)(images.New(true, v1.Config{Cmd: []string{"/x"}}, layer))
			ref := "tests/" + strings.ReplaceAll(name, " ", "-")
			must[v1.Hash](t)(e.Registry.Add(ref+":latest", img))
			id, err := e.Pull(ctx, "docker.io/"+ref+":latest")
			if _, serr := os.Lstat(canary); serr == nil {
				t.Fatal("the layer wrote outside its root")
			}
			if err == nil {
				// What can be unpacked inside the root harmlessly may be.
				_, err = e.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
				check(t, err)
			}
		})
	}
}
