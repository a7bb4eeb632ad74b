package imagewire_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/storetest"
)

func small(t *testing.T, data string) v1.Image {
	return storetest.Image(t, storetest.File("f", data), storetest.File("g", data+data))
}

func TestNames(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	one, two := small(t, "1"), small(t, "2")
	tag := u.push(t, "dir/app:v1", one)
	res := n.get(t, tag)
	config, err := one.ConfigName()
	must(t, err)
	digest, err := one.Digest()
	must(t, err)
	if res.ImageID != config.String() || res.Digest.String() != digest.String() {
		t.Fatalf("result %+v, want id %s digest %s", res, config, digest)
	}
	img, err := n.store.Image(t.Context(), tag)
	must(t, err)
	wantDigest := u.host + "/dir/app@" + digest.String()
	if !slices.Equal(img.Tags, []string{tag}) || !slices.Equal(img.Digests, []string{wantDigest}) {
		t.Fatalf("names: %q %q", img.Tags, img.Digests)
	}
	// The tag moves; the old image stays, by its digest.
	u.push(t, "dir/app:v1", two)
	moved := n.get(t, tag)
	if img, err = n.store.Image(t.Context(), res.ImageID); err != nil || len(img.Tags) != 0 || len(img.Digests) != 1 {
		t.Fatalf("image that lost its tag: %+v, %v", img, err)
	}
	if img, err = n.store.Image(t.Context(), tag); err != nil || img.ID != moved.ImageID {
		t.Fatalf("moved tag: %+v, %v", img, err)
	}
	// By digest there is no tag.
	must(t, n.store.Remove(t.Context(), res.ImageID))
	if got := n.get(t, u.host+"/dir/app:ignored@"+digest.String()); got.ImageID != res.ImageID {
		t.Fatalf("by digest: %+v", got)
	}
	if img, err = n.store.Image(t.Context(), res.ImageID); err != nil || len(img.Tags) != 0 || !slices.Equal(img.Digests, []string{wantDigest}) {
		t.Fatalf("pulled by digest: %+v, %v", img, err)
	}
}

func TestSecondPullCopiesNothing(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	tag := u.push(t, "app:v1", small(t, "1"))
	n.get(t, tag)
	u.push(t, "app:v2", small(t, "1"))
	u.set(nil)
	n.get(t, u.host+"/app:v2")
	if got := u.count("GET blobs"); got != 0 {
		t.Fatalf("%d blobs fetched for an image that is here", got)
	}
	img, err := n.store.Image(t.Context(), tag)
	must(t, err)
	if len(img.Tags) != 2 {
		t.Fatalf("tags %q", img.Tags)
	}
}

func TestManifestList(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: small(t, "arm"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: small(t, "amd"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	tag := u.push(t, "app:v1", idx)
	listDigest, err := idx.Digest()
	must(t, err)
	for arch, data := range map[string]string{"arm64": "arm", "amd64": "amd"} {
		res, err := n.Pull(t.Context(), pull.Request{Reference: tag, Platform: pull.Platform{OS: "linux", Arch: arch}})
		must(t, err)
		want, err := small(t, data).ConfigName()
		must(t, err)
		if res.ImageID != want.String() || res.Digest.String() != listDigest.String() {
			t.Fatalf("%s: %+v, want %s of list %s", arch, res, want, listDigest)
		}
	}
	_, err = n.Pull(t.Context(), pull.Request{Reference: tag, Platform: pull.Platform{OS: "linux", Arch: "s390x"}})
	if !errors.Is(err, pull.ErrNotFound) {
		t.Fatalf("platform that is not there: %v", err)
	}
}

func withAuth(user, password string) func(http.Handler) *httptest.Server {
	return func(h http.Handler) *httptest.Server {
		return httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		}))
	}
}

func TestTLSAndCredentials(t *testing.T) {
	u := newUpstream(t, withAuth("joe", "secret"))
	tag := u.push(t, "app:v1", small(t, "1"), remote.WithAuth(&authn.Basic{Username: "joe", Password: "secret"}))
	encoded := base64.StdEncoding.EncodeToString([]byte("joe:secret"))
	certs := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(certs, u.host), 0o700))
	pemCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(certs, u.host, "ca.crt"), pemCert, 0o600))
	helpers := t.TempDir()
	must(t, os.WriteFile(filepath.Join(helpers, "docker-credential-ocidtest"),
		[]byte("#!/bin/sh\necho '{\"Username\":\"joe\",\"Secret\":\"secret\"}'\n"), 0o700))
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))

	for _, c := range []struct {
		name     string
		auth     *pull.Auth
		authFile string
		want     error
	}{
		{name: "password", auth: &pull.Auth{Username: "joe", Password: "secret"}},
		{name: "encoded", auth: &pull.Auth{Auth: encoded, ServerAddress: "https://" + u.host + "/v2/"}},
		{name: "auth file", authFile: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, u.host, encoded)},
		{name: "helper", authFile: fmt.Sprintf(`{"credHelpers":{%q:"ocidtest"}}`, u.host)},
		{name: "none", want: pull.ErrUnauthorized},
		{name: "wrong", auth: &pull.Auth{Username: "joe", Password: "guess"}, want: pull.ErrUnauthorized},
		{name: "for another host", auth: &pull.Auth{Username: "joe", Password: "secret", ServerAddress: "other.example"}, want: pull.ErrUnauthorized},
		{name: "nonsense", auth: &pull.Auth{Auth: "%%%"}, want: pull.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, setup{edit: func(o *pull.Options) {
				o.CertsDir = certs
				if c.authFile != "" {
					o.AuthFile = filepath.Join(t.TempDir(), "auth.json")
					must(t, os.WriteFile(o.AuthFile, []byte(c.authFile), 0o600))
				}
			}})
			_, err := n.Pull(t.Context(), pull.Request{Reference: tag, Auth: c.auth})
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		n := newNode(t, setup{})
		_, err := n.Pull(t.Context(), pull.Request{Reference: tag})
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Fatalf("error %v, want one about the certificate", err)
		}
	})
}

func TestMirrorServesWithoutTheOriginal(t *testing.T) {
	mirror, original := plain(t), plain(t)
	mirror.push(t, "app:v1", small(t, "1"))
	original.set(nil)
	n := newNode(t, setup{conf: fmt.Sprintf(`
[[registry]]
prefix = "registry.example"
location = %q
insecure = true
[[registry.mirror]]
location = %q
insecure = true
`, original.host, mirror.host)})
	n.get(t, "registry.example/app:v1")
	img, err := n.store.Image(t.Context(), "registry.example/app:v1")
	must(t, err)
	if !slices.Equal(img.Tags, []string{"registry.example/app:v1"}) || !strings.HasPrefix(img.Digests[0], "registry.example/app@") {
		t.Fatalf("names: %q %q", img.Tags, img.Digests)
	}
	for _, what := range []string{"GET other", "GET manifests", "HEAD manifests", "GET blobs"} {
		if got := original.count(what); got != 0 {
			t.Fatalf("original host saw %d of %s", got, what)
		}
	}
}

func TestReferences(t *testing.T) {
	n := newNode(t, setup{conf: `unqualified-search-registries = []`})
	for _, ref := range []string{"", "busybox", "busybox:1", "UPPER.example/X", "example.com/a@sha256:12", strings.Repeat("x", 5000)} {
		if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); !errors.Is(err, pull.ErrInvalid) {
			t.Fatalf("%.40q: %v, want %v", ref, err, pull.ErrInvalid)
		}
	}
	u := plain(t)
	u.push(t, "library/app:latest", small(t, "1"))
	n = newNode(t, setup{conf: fmt.Sprintf("unqualified-search-registries = [%q]\n%s", u.host, insecure(u.host))})
	if _, err := n.Pull(t.Context(), pull.Request{Reference: "library/app"}); !errors.Is(err, pull.ErrInvalid) {
		t.Fatalf("short name for CRI: %v", err)
	}
	res, err := n.Pull(t.Context(), pull.Request{Reference: "library/app", ShortNames: true})
	if err != nil || res.Reference != u.host+"/library/app:latest" {
		t.Fatalf("short name for the command line: %+v, %v", res, err)
	}
}

func TestPolicy(t *testing.T) {
	u := plain(t)
	tag := u.push(t, "app:v1", small(t, "1"))
	n := newNode(t, setup{conf: insecure(u.host) + "[[registry]]\nlocation = \"blocked.example\"\nblocked = true\n", policy: `{"default":[{"type":"reject"}]}`})
	for _, ref := range []string{tag, "blocked.example/app:v1"} {
		if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); !errors.Is(err, pull.ErrDenied) {
			t.Fatalf("%s: %v", ref, err)
		}
	}
	if left := n.left(t); len(left) != 0 {
		t.Fatalf("left: %q", left)
	}
	if got := u.count("GET blobs"); got > 1 {
		t.Fatalf("%d blobs fetched of an image that is refused", got)
	}
}

func TestAbandonedPullLeavesNothing(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	tag := u.push(t, "app:v1", small(t, "1"))
	arrived := make(chan struct{})
	var once sync.Once
	u.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			once.Do(func() { close(arrived) })
			<-r.Context().Done()
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := n.Pull(ctx, pull.Request{Reference: tag}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	u.set(nil)
	n.get(t, tag)
}

// blobs calls spoil for each layer or config that is fetched.
func blobs(spoil func(w http.ResponseWriter, r *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && spoil(w, r)
	}
}

func TestBadRegistries(t *testing.T) {
	big, err := random.Image(1<<20, 2)
	must(t, err)
	layers, err := big.Layers()
	must(t, err)
	victim, err := layers[0].Digest()
	must(t, err)
	size, err := layers[0].Size()
	must(t, err)
	ofVictim := func(f func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return blobs(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, victim.String()) {
				return false
			}
			f(w, r)
			return true
		})
	}
	for _, c := range []struct {
		name  string
		spoil func(http.ResponseWriter, *http.Request) bool
		want  error
		text  string
	}{
		{name: "gone", spoil: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.WriteHeader(http.StatusNotFound)
			return true
		}, want: pull.ErrNotFound},
		{name: "wrong bytes", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte{'x'}, int(size)))
		}), want: pull.ErrCorrupt},
		{name: "truncates", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(make([]byte, 1000))
		}), text: victim.String()[7:]},
		{name: "breaks off", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = w.Write(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		}), text: "EOF"},
		{name: "never ends", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}), want: pull.ErrCorrupt, text: "promised"},
		{name: "stalls in a blob", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = w.Write(make([]byte, 1000))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), want: pull.ErrStalled, text: "no bytes for"},
		{name: "never says that it ends", spoil: ofVictim(func(w http.ResponseWriter, r *http.Request) {
			rc, err := layers[0].Compressed()
			must(t, err)
			_, _ = io.Copy(w, rc)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}), want: pull.ErrStalled, text: "no bytes for"},
		{name: "stalls before the manifest", spoil: func(w http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}, want: pull.ErrStalled},
		{name: "endless manifest", spoil: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte{' '}, 1<<16)); err != nil {
					break
				}
			}
			return true
		}, text: "exceed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u := plain(t)
			n := newNode(t, setup{conf: insecure(u.host), edit: func(o *pull.Options) {
				if errors.Is(c.want, pull.ErrStalled) {
					o.StallTimeout = 400 * time.Millisecond
				}
			}})
			tag := u.push(t, "app:v1", big)
			u.set(c.spoil)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := n.Pull(ctx, pull.Request{Reference: tag})
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v, want %v with %q", err, c.want, c.text)
			}
			if left := n.left(t); len(left) != 0 {
				t.Fatalf("left: %q", left)
			}
			// The registry recovers, and so do we: patient now, since the
			// machine that runs the tests may be slow.
			u.set(nil)
			patient := newNode(t, setup{root: n.dir, conf: insecure(u.host)})
			patient.get(t, tag)
		})
	}
}

func TestWrongDigest(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	one, two := small(t, "1"), small(t, "2")
	u.push(t, "app:v1", one)
	u.push(t, "app:v2", two)
	d1, err := one.Digest()
	must(t, err)
	raw, err := two.RawManifest()
	must(t, err)
	u.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
		_, _ = w.Write(raw)
		return true
	})
	_, err = n.Pull(t.Context(), pull.Request{Reference: u.host + "/app@" + d1.String()})
	if !errors.Is(err, pull.ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
	if left := n.left(t); len(left) != 0 {
		t.Fatalf("left: %q", left)
	}
}

func TestGiantConfig(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	img := small(t, "1")
	tag := u.push(t, "app:v1", img)
	raw, err := img.RawManifest()
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(raw, &m))
	m["config"].(map[string]any)["size"] = 1 << 30
	forged, err := json.Marshal(m)
	must(t, err)
	for name, honest := range map[string]bool{"announced": true, "not announced": false} {
		t.Run(name, func(t *testing.T) {
			config, err := img.ConfigName()
			must(t, err)
			u.set(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case honest && strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
					_, _ = w.Write(forged)
					return true
				case strings.HasSuffix(r.URL.Path, config.String()):
					for r.Context().Err() == nil {
						if _, err := w.Write(make([]byte, 1<<16)); err != nil {
							break
						}
					}
					return true
				}
				return false
			})
			if _, err := n.Pull(t.Context(), pull.Request{Reference: tag}); err == nil || !strings.Contains(err.Error(), "config") && !strings.Contains(err.Error(), "exceed") {
				t.Fatalf("error %v", err)
			}
			if left := n.left(t); len(left) != 0 {
				t.Fatalf("left: %q", left)
			}
		})
	}
}

func TestHostileLayers(t *testing.T) {
	link := func(name, target string) storetest.Entry {
		return storetest.Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
	}
	file := func(name string) storetest.Entry {
		return storetest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, Data: "evil"}
	}
	outside := t.TempDir()
	mark := filepath.Join(outside, "mark")
	for name, layer := range map[string]storetest.Layer{
		"dotdot":            {file("../../../../../../../.." + mark)},
		"absolute":          {file(mark)},
		"through a symlink": {link("out", outside), file("out/mark")},
		"relative symlink":  {link("out", "../../../../../../../.."+outside), file("out/mark")},
		"hardlink out":      {storetest.Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "mark", Linkname: "../../../../../../../../etc/passwd"}}},
		"device":            {storetest.Entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8, Mode: 0o666}}},
	} {
		t.Run(name, func(t *testing.T) {
			u := plain(t)
			n := newNode(t, setup{conf: insecure(u.host)})
			tag := u.push(t, "app:v1", storetest.Image(t, layer))
			res, err := n.Pull(t.Context(), pull.Request{Reference: tag})
			if _, statErr := os.Lstat(mark); !errors.Is(statErr, os.ErrNotExist) {
				t.Fatalf("written outside the layer: %v", statErr)
			}
			if err != nil {
				if left := n.left(t); len(left) != 0 {
					t.Fatalf("left: %q", left)
				}
				return
			}
			// It was contained; then it can be used like any other.
			_, err = n.store.Prepare(t.Context(), store.RootFSRequest{ID: "x", ImageID: res.ImageID})
			must(t, err)
			must(t, n.store.Release(t.Context(), "x"))
		})
	}
}

func TestFullDisk(t *testing.T) {
	u := plain(t)
	img, err := random.Image(4<<20, 2)
	must(t, err)
	tag := u.push(t, "app:v1", img)
	root := tmpfs(t, "40m")
	n := newNode(t, setup{root: filepath.Join(root, "root"), conf: insecure(u.host)})
	ballast := filepath.Join(root, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 35<<20), 0o600))
	_, err = n.Pull(t.Context(), pull.Request{Reference: tag})
	if !errors.Is(err, pull.ErrNoSpace) || !strings.Contains(err.Error(), root) {
		t.Fatalf("error %v, want %v naming %s", err, pull.ErrNoSpace, root)
	}
	if left := n.left(t); len(left) != 0 {
		t.Fatalf("left: %q", left)
	}
	must(t, os.Remove(ballast))
	n.get(t, tag)
}

func TestProgress(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	tag := u.push(t, "app:v1", small(t, "1"))
	var seen []pull.Progress
	_, err := n.Pull(t.Context(), pull.Request{Reference: tag, Progress: func(p pull.Progress) { seen = append(seen, p) }})
	must(t, err)
	last := seen[len(seen)-1]
	if seen[0].Phase != pull.Resolving || last.Phase != pull.Finishing || last.Layers != 2 || last.LayersDone != 2 || last.Bytes != last.Total || last.Total == 0 {
		t.Fatalf("progress: %+v", seen)
	}
}

func TestInspect(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	img := small(t, "1")
	tag := u.push(t, "app:v1", img)
	in, err := n.Inspect(t.Context(), pull.Request{Reference: tag})
	must(t, err)
	raw, err := img.RawManifest()
	must(t, err)
	config, err := img.RawConfigFile()
	must(t, err)
	if !bytes.Equal(in.Manifest, raw) || !bytes.Equal(in.Config, config) {
		t.Fatalf("inspection %+v", in)
	}
	if left := n.left(t); len(left) != 0 {
		t.Fatalf("inspect left: %q", left)
	}
}

func TestDamageIsRepaired(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	tag := u.push(t, "app:v1", small(t, "1"))
	for name, damage := range map[string]func(id string){
		"layers": func(string) {
			dirs, err := filepath.Glob(filepath.Join(n.dir, "storage/overlay/*/diff"))
			must(t, err)
			for _, d := range dirs {
				must(t, os.RemoveAll(filepath.Dir(d)))
			}
		},
		"config": func(id string) {
			files, err := filepath.Glob(filepath.Join(n.dir, "storage/overlay-images", strings.TrimPrefix(id, "sha256:"), "=*"))
			must(t, err)
			for _, f := range files {
				must(t, os.Truncate(f, 3))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := n.get(t, tag).ImageID
			damage(id)
			// A new store, as after a power cut: nothing is remembered.
			again := newNode(t, setup{root: n.dir, conf: insecure(u.host)})
			again.get(t, tag)
			fs, err := again.store.Prepare(t.Context(), store.RootFSRequest{ID: "x", ImageID: id})
			must(t, err)
			data, err := os.ReadFile(filepath.Join(fs.Path, "f"))
			if err != nil || string(data) != "1" {
				t.Fatalf("file of the image: %q, %v", data, err)
			}
			must(t, again.store.Release(t.Context(), "x"))
		})
	}
}
