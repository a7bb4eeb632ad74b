// Package registry serves images on loopback over the distribution protocol,
// read-only: OCI layouts from disk and images from memory. Tests can put a
// handler in front of it that stalls, truncates or lies.
//
// A repository name is not checked when a blob is asked for by digest; a tag or
// manifest digest is only served under the names it was added for.
package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ocid-io/ocid/test/images"
)

// Registry is a running server. Close it.
type Registry struct {
	srv  *http.Server
	addr string
	dirs []string

	mu        sync.Mutex
	tags      map[string]v1.Descriptor // "repo:tag" and "repo@digest"
	blobs     map[string]func() (io.ReadCloser, error)
	intercept func(http.Handler) http.Handler
}

// Start listens on an address such as "127.0.0.1:0" and serves the layouts.
func Start(listen string, layouts ...string) (*Registry, error) {
	r := &Registry{tags: map[string]v1.Descriptor{}, blobs: map[string]func() (io.ReadCloser, error){}}
	for _, d := range layouts {
		if err := r.AddLayout(d); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	r.addr = l.Addr().String()
	r.srv = &http.Server{Handler: http.HandlerFunc(r.entry), ReadHeaderTimeout: 10 * time.Second}
	go r.srv.Serve(l)
	return r, nil
}

// Addr is the host and port.
func (r *Registry) Addr() string { return r.addr }

// Close stops the server and drops its connections.
func (r *Registry) Close() error { return r.srv.Close() }

// Intercept puts a handler in front of the registry; nil removes it.
func (r *Registry) Intercept(f func(http.Handler) http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// AddLayout serves every named image of an OCI layout.
func (r *Registry) AddLayout(dir string) error {
	idx, err := images.Index(dir)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirs = append(r.dirs, dir)
	for _, d := range idx.Manifests {
		ref := d.Annotations[images.RefAnnotation]
		repo, _, ok := strings.Cut(ref, ":")
		if !ok {
			continue
		}
		r.tags[ref] = d
		r.tags[repo+"@"+d.Digest.String()] = d
		if !d.MediaType.IsIndex() {
			continue
		}
		var sub v1.IndexManifest
		b, err := os.ReadFile(blobFile(dir, d.Digest))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &sub); err != nil {
			return err
		}
		for _, s := range sub.Manifests {
			r.tags[repo+"@"+s.Digest.String()] = s
		}
	}
	return nil
}

// Add serves an image from memory under "repo:tag".
func (r *Registry) Add(ref string, img v1.Image) (v1.Hash, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	mt, err := img.MediaType()
	if err != nil {
		return v1.Hash{}, err
	}
	cfg, err := img.RawConfigFile()
	if err != nil {
		return v1.Hash{}, err
	}
	cfgName, err := img.ConfigName()
	if err != nil {
		return v1.Hash{}, err
	}
	layers, err := img.Layers()
	if err != nil {
		return v1.Hash{}, err
	}
	r.AddRaw(ref, digest, mt, raw)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[cfgName.String()] = bytesOpener(cfg)
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return v1.Hash{}, err
		}
		r.blobs[d.String()] = l.Compressed
	}
	return digest, nil
}

// AddRaw serves any bytes as the manifest of "repo:tag", also malformed ones.
func (r *Registry) AddRaw(ref string, digest v1.Hash, mt types.MediaType, raw []byte) {
	repo, _, _ := strings.Cut(ref, ":")
	d := v1.Descriptor{MediaType: mt, Size: int64(len(raw)), Digest: digest}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[ref] = d
	r.tags[repo+"@"+digest.String()] = d
	r.blobs[digest.String()] = bytesOpener(raw)
}

func bytesOpener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(b))), nil }
}

func blobFile(dir string, h v1.Hash) string {
	return filepath.Join(dir, "blobs", h.Algorithm, h.Hex)
}

func (r *Registry) entry(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	f := r.intercept
	r.mu.Unlock()
	h := http.Handler(http.HandlerFunc(r.serve))
	if f != nil {
		h = f(h)
	}
	h.ServeHTTP(w, req)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED")
		return
	}
	p := strings.TrimPrefix(req.URL.Path, "/v2/")
	if p == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	if i := strings.LastIndex(p, "/manifests/"); i > 0 {
		r.manifest(w, req, p[:i], p[i+len("/manifests/"):])
		return
	}
	if i := strings.LastIndex(p, "/blobs/"); i > 0 {
		h, err := v1.NewHash(p[i+len("/blobs/"):])
		if err != nil {
			fail(w, http.StatusBadRequest, "DIGEST_INVALID")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		r.blob(w, req, h, "BLOB_UNKNOWN")
		return
	}
	fail(w, http.StatusNotFound, "NAME_UNKNOWN")
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, repo, ref string) {
	key := repo + ":" + ref
	if strings.Contains(ref, ":") {
		key = repo + "@" + ref
	}
	r.mu.Lock()
	d, ok := r.tags[key]
	r.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", string(d.MediaType))
	w.Header().Set("Docker-Content-Digest", d.Digest.String())
	r.blob(w, req, d.Digest, "MANIFEST_UNKNOWN")
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, h v1.Hash, code string) {
	r.mu.Lock()
	open, ok := r.blobs[h.String()]
	dirs := r.dirs
	r.mu.Unlock()
	if ok {
		rc, err := open()
		if err != nil {
			fail(w, http.StatusInternalServerError, "UNKNOWN")
			return
		}
		defer rc.Close()
		b, err := io.ReadAll(rc)
		if err != nil {
			fail(w, http.StatusInternalServerError, "UNKNOWN")
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		if req.Method == http.MethodGet {
			w.Write(b)
		}
		return
	}
	for _, d := range dirs {
		f, err := os.Open(blobFile(d, h))
		if err != nil {
			continue
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			fail(w, http.StatusInternalServerError, "UNKNOWN")
			return
		}
		http.ServeContent(w, req, "", st.ModTime(), f)
		return
	}
	fail(w, http.StatusNotFound, code)
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q}]}`, code)
}

// WriteConf writes a registries.conf in which this registry mirrors every
// public one that the tests name, and returns its path.
func (r *Registry) WriteConf(dir string) (string, error) {
	var b strings.Builder
	b.WriteString("unqualified-search-registries = []\n")
	for _, host := range []string{"gcr.io", "registry.k8s.io", "k8s.gcr.io", "public.ecr.aws", "docker.io"} {
		fmt.Fprintf(&b, "\n[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", host, r.addr)
	}
	fmt.Fprintf(&b, "\n[[registry]]\nlocation = %q\ninsecure = true\n", r.addr)
	p := filepath.Join(dir, "registries.conf")
	return p, os.WriteFile(p, []byte(b.String()), 0o644)
}
