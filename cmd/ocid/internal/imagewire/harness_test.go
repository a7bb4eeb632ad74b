package imagewire_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/cmd/ocid/internal/imagewire"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store/layered"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	// Layers are unpacked by children of this binary, which under the race
	// detector would sleep for a second each before they exit.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	imagewire.Logs(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// upstream is a registry whose answers a test can spoil.
type upstream struct {
	*httptest.Server
	host string

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request) (handled bool)
	seen  map[string]int // requests by "METHOD kind"
}

func newUpstream(t *testing.T, start func(http.Handler) *httptest.Server) *upstream {
	t.Helper()
	u := &upstream{seen: map[string]int{}}
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	u.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := "other"
		for _, k := range []string{"manifests", "blobs"} {
			if strings.Contains(r.URL.Path, "/"+k+"/") {
				kind = k
			}
		}
		u.mu.Lock()
		u.seen[r.Method+" "+kind]++
		spoil := u.spoil
		u.mu.Unlock()
		if spoil != nil && spoil(w, r) {
			return
		}
		reg.ServeHTTP(w, r)
	}))
	u.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		u.CloseClientConnections()
		u.Close()
	})
	_, u.host, _ = strings.Cut(u.URL, "://")
	return u
}

func plain(t *testing.T) *upstream { return newUpstream(t, httptest.NewServer) }

func (u *upstream) set(spoil func(w http.ResponseWriter, r *http.Request) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.spoil = spoil
	u.seen = map[string]int{}
}

func (u *upstream) count(what string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen[what]
}

// push stores an image or index and returns its full name.
func (u *upstream) push(t *testing.T, repoTag string, what remote.Taggable, opts ...remote.Option) string {
	t.Helper()
	ref, err := name.ParseReference(u.host+"/"+repoTag, name.Insecure)
	must(t, err)
	opts = append(opts, remote.WithTransport(u.Client().Transport))
	switch x := what.(type) {
	case v1.ImageIndex:
		must(t, remote.WriteIndex(ref, x, opts...))
	case v1.Image:
		must(t, remote.Write(ref, x, opts...))
	}
	return u.host + "/" + repoTag
}

// node is a machine: a store and a puller on it.
type node struct {
	*pull.Puller
	store *layered.Store
	dir   string
}

type setup struct {
	root   string // default: a new directory
	conf   string // registries.conf
	policy string
	edit   func(*pull.Options)
}

func newNode(t *testing.T, s setup) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to unpack layers")
	}
	dir := t.TempDir()
	if s.root == "" {
		s.root = filepath.Join(dir, "root")
	}
	st, err := layered.Open(layered.Options{Root: s.root, RunRoot: filepath.Join(dir, "run")})
	must(t, err)
	write := func(file, data string) string {
		p := filepath.Join(dir, file)
		must(t, os.WriteFile(p, []byte(data), 0o600))
		return p
	}
	if s.policy == "" {
		s.policy = `{"default":[{"type":"insecureAcceptAnything"}]}`
	}
	must(t, os.MkdirAll(filepath.Join(dir, "empty"), 0o700))
	opts := pull.Options{
		Dest: st, Log: slog.New(slog.DiscardHandler),
		RegistriesConf: write("registries.conf", s.conf), RegistriesConfDir: filepath.Join(dir, "empty"),
		RegistriesDir: filepath.Join(dir, "empty"), PolicyFile: write("policy.json", s.policy),
		AuthFile: write("auth.json", "{}"), BlobCacheDir: filepath.Join(dir, "cache"),
		StallTimeout: 20 * time.Second,
	}
	if s.edit != nil {
		s.edit(&opts)
	}
	t.Cleanup(func() { must(t, st.Close()) })
	return &node{Puller: pull.New(opts), store: st, dir: s.root}
}

func insecure(hosts ...string) string {
	var b strings.Builder
	for _, h := range hosts {
		fmt.Fprintf(&b, "[[registry]]\nlocation = %q\ninsecure = true\n", h)
	}
	return b.String()
}

func (n *node) get(t *testing.T, ref string) pull.Result {
	t.Helper()
	res, err := n.Pull(t.Context(), pull.Request{Reference: ref})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return res
}

// left lists what a failed pull must not leave.
func (n *node) left(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"tmp/*", "storage/overlay/[0-9a-f]*", "storage/overlay-images/[0-9a-f]*", "storage/overlay/tempdirs/*/*", "storage/overlay/staging/*"} {
		m, err := filepath.Glob(filepath.Join(n.dir, pattern))
		must(t, err)
		for _, p := range m {
			if st, err := os.Stat(p); err == nil && len(filepath.Base(p)) >= 20 && st.IsDir() || strings.HasPrefix(pattern, "tmp") || strings.Contains(pattern, "staging") {
				out = append(out, p)
			}
		}
	}
	imgs, err := n.store.Images(context.Background())
	must(t, err)
	for _, i := range imgs {
		out = append(out, i.ID)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}
