package imagecmd_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/spf13/cobra"
	"go.podman.io/storage/pkg/reexec"

	"github.com/ocid-io/ocid/cmd/ocid/internal/imagecmd"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store/layered"
	"github.com/ocid-io/ocid/store/storetest"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	// Layers are unpacked by children of this binary, which under the race
	// detector would sleep for a second each before they exit.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(m.Run())
}

type cli struct {
	t   *testing.T
	dir string
}

// run runs a command line and returns its output.
func (c *cli) run(args ...string) (stdout, stderr string, err error) {
	root := &cobra.Command{Use: "ocid", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(imagecmd.Commands(func() (*layered.Store, *pull.Puller, error) {
		s, err := layered.Open(layered.Options{Root: filepath.Join(c.dir, "root"), RunRoot: filepath.Join(c.dir, "run")})
		if err != nil {
			return nil, nil, err
		}
		policy := filepath.Join(c.dir, "policy.json")
		if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
			return nil, nil, err
		}
		return s, pull.New(pull.Options{Dest: s, Log: slog.New(slog.DiscardHandler), PolicyFile: policy, BlobCacheDir: c.dir}), nil
	})...)
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetArgs(args)
	err = root.ExecuteContext(c.t.Context())
	return out.String(), errOut.String(), err
}

func (c *cli) ok(args ...string) string {
	c.t.Helper()
	out, _, err := c.run(args...)
	if err != nil {
		c.t.Fatalf("ocid %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

func TestCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to unpack and mount")
	}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/app:v1"
	img := storetest.Image(t, storetest.File("f", "x"))
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	id := config.String()
	c := &cli{t: t, dir: t.TempDir()}

	if got := c.ok("inspect", "--insecure", "-o", "json", ref); !strings.Contains(got, id) {
		t.Fatalf("inspect: %s", got)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ok("inspect", "--insecure", "--raw", ref); got != string(manifest) {
		t.Fatalf("inspect --raw: %s", got)
	}
	if got := c.ok("images", "-q"); got != "" {
		t.Fatalf("inspect pulled: %s", got)
	}
	out, progress, err := c.run("pull", "--insecure", ref)
	if err != nil || strings.TrimSpace(out) != id || !strings.Contains(progress, "resolving") || strings.Contains(progress, "\r") {
		t.Fatalf("pull: %q, %q, %v", out, progress, err)
	}
	c.ok("tag", ref, "example.com/other:v2")
	var list []struct {
		ID   string
		Tags []string
	}
	if err := json.Unmarshal([]byte(c.ok("images", "-o", "json")), &list); err != nil || len(list) != 1 || list[0].ID != id || len(list[0].Tags) != 2 {
		t.Fatalf("images: %+v, %v", list, err)
	}
	if got := c.ok("images"); !strings.Contains(got, "example.com/other:v2") {
		t.Fatalf("images: %s", got)
	}
	path := c.ok("mount", ref)
	if data, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(data) != "x" {
		t.Fatalf("mounted file: %q, %v", data, err)
	}
	if _, _, err := c.run("rmi", id); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("rmi of a mounted image: %v", err)
	}
	c.ok("unmount", ref)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Fatalf("after unmount: %v", err)
	}
	c.ok("rmi", "example.com/other:v2")
	c.ok("rmi", ref)
	if got := c.ok("images", "-q"); got != "" {
		t.Fatalf("after rmi: %s", got)
	}
	if _, _, err := c.run("rmi", ref); err == nil {
		t.Fatal("rmi of what is not there succeeds")
	}
}

func TestUsageErrors(t *testing.T) {
	c := &cli{t: t, dir: t.TempDir()}
	for _, args := range [][]string{
		{"pull"},
		{"pull", "--creds", "nocolon", "a.example/b"},
		{"pull", "--platform", "linux", "a.example/b"},
		{"images", "-o", "yaml"},
		{"tag", "one"},
		{"inspect"},
		{"mount"},
	} {
		_, _, err := c.run(args...)
		coded, ok := err.(interface{ ExitCode() int }) //nolint:errorlint // as the command's main sees it
		if !ok || coded.ExitCode() != 2 {
			t.Errorf("%q: %v, want a usage error", args, err)
		}
	}
}
