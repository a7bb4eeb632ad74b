package images

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// format is how an image is presented by the registry.
type format int

const (
	dockerManifest format = iota
	dockerList
	ociIndex
)

const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
daemon:x:1:
bin:x:2:
tty:x:5:
mail:x:8:
www-data:x:33:
users:x:100:
nobody:x:65534:
`

// New assembles an image that the registry serves as a single manifest.
func New(oci bool, cfg v1.Config, layers ...*Layer) (v1.Image, error) {
	lt := types.DockerLayer
	img := empty.Image
	if oci {
		lt = types.OCILayer
		img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: "amd64",
		OS:           "linux",
		Created:      v1.Time{Time: epoch},
		Config:       cfg,
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:   l.as(lt),
			History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: fmt.Sprintf("test image, layer %d", i)},
		})
		if err != nil {
			return nil, err
		}
	}
	return img, nil
}

// builder collects images into an OCI layout; its errors stick.
type setBuilder struct {
	out layout.Path
	err error
}

func (s *setBuilder) layer(fill func(*Builder)) *Layer {
	l, err := NewLayer(fill)
	if err != nil && s.err == nil {
		s.err = err
	}
	return l
}

// image adds one image under repo with every tag.
func (s *setBuilder) image(repo string, tags []string, f format, cfg v1.Config, layers ...*Layer) {
	if s.err != nil {
		return
	}
	img, err := New(f == ociIndex, cfg, layers...)
	if err != nil {
		s.err = fmt.Errorf("image %s: %w", repo, err)
		return
	}
	var idx v1.ImageIndex
	if f != dockerManifest {
		mt := types.DockerManifestList
		if f == ociIndex {
			mt = types.OCIImageIndex
		}
		idx = mutate.AppendManifests(mutate.IndexMediaType(empty.Index, mt), mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{Architecture: "amd64", OS: "linux"}},
		})
	}
	for _, t := range tags {
		name := layout.WithAnnotations(map[string]string{RefAnnotation: repo + ":" + t})
		if idx == nil {
			err = s.out.AppendImage(img, name)
		} else {
			err = s.out.AppendIndex(idx, name)
		}
		if err != nil {
			s.err = fmt.Errorf("image %s:%s: %w", repo, t, err)
			return
		}
	}
}

// applets lists what the busybox binary can do.
func applets(busybox string) ([]string, error) {
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", busybox, err)
	}
	names := strings.Fields(string(out))
	sort.Strings(names)
	return names, nil
}

func (s *setBuilder) busyboxLayer(in inputs) *Layer {
	names, err := applets(in.busybox)
	if err != nil && s.err == nil {
		s.err = err
	}
	return s.layer(func(b *Builder) {
		for _, d := range []string{"bin", "dev", "etc", "home", "lib", "proc", "root", "run", "sys", "usr/bin", "usr/sbin", "var/spool", "var/www"} {
			b.Dir(d, 0o755)
		}
		b.Header(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
		b.Host("bin/busybox", in.busybox, 0o755)
		for _, n := range names {
			if n != "busybox" {
				b.Hardlink("bin/"+n, "bin/busybox")
			}
		}
		b.Hardlink("usr/bin/env", "bin/busybox")
		b.File("etc/passwd", []byte(passwd), 0o644)
		b.File("etc/group", []byte(group), 0o644)
		b.File("etc/shadow", []byte("root:*:::::::\n"), 0o600)
	})
}

// writeSet makes every small image in dir.
func writeSet(dir string, in inputs) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	s := &setBuilder{out: out}
	base := s.busyboxLayer(in)
	shell := v1.Config{Cmd: []string{"sh"}, Env: []string{pathEnv}}
	s.image("e2e-test-images/busybox", []string{"1.29-2", "1.29-4", "latest"}, dockerList, shell, base)
	s.image("library/busybox", []string{"latest", "1.36"}, ociIndex, shell, base)
	s.pauses(in)
	s.image("e2e-test-images/nonewprivs", []string{"1.3"}, dockerList,
		v1.Config{Entrypoint: []string{"/nnp"}, Env: []string{pathEnv}},
		s.layer(func(b *Builder) {
			b.Host("nnp", in.nonewprivs, 0o4755)
			b.File("etc/passwd", []byte(passwd), 0o644)
		}))
	s.nginx(in, base)
	s.httpd(base)
	s.criTools(base, shell)
	return s.err
}

// pauses makes two different images: the suite counts the tags of pause:3.9.
func (s *setBuilder) pauses(in inputs) {
	for _, tags := range [][]string{{"3.9"}, {"3.10", "3.10.1", "3.10.2"}} {
		s.image("pause", tags, dockerList, v1.Config{
			Entrypoint: []string{"/pause"},
			Env:        []string{pathEnv},
			User:       "65535:65535",
			WorkingDir: "/",
			Labels:     map[string]string{"test.version": tags[0]},
		}, s.layer(func(b *Builder) { b.Host("pause", in.pause, 0o755) }))
	}
}

const nginxConf = `user nobody nobody;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /var/log/nginx/error.log notice;
events { worker_connections 256; }
http {
	access_log /var/log/nginx/access.log;
	default_type text/html;
	server {
		listen %d;
		location / { root /usr/share/nginx/html; index index.html; }
	}
}
`

func (s *setBuilder) nginx(in inputs, base *Layer) {
	program := s.layer(func(b *Builder) {
		b.Host("usr/sbin/nginx", in.nginx, 0o755)
		paths := make([]string, 0, len(in.nginxLibs))
		for p := range in.nginxLibs {
			paths = append(paths, p)
		}
		sort.Strings(paths)
		for _, p := range paths {
			b.Host(p, in.nginxLibs[p], 0o755)
		}
		b.Dir("var/lib/nginx", 0o755)
		b.Dir("var/run", 0o755)
		b.Symlink("var/log/nginx/access.log", "/dev/stdout")
		b.Symlink("var/log/nginx/error.log", "/dev/stderr")
		b.File("usr/share/nginx/html/index.html", []byte("<html><body><h1>Welcome to nginx!</h1></body></html>\n"), 0o644)
	})
	conf := func(port int) *Layer {
		return s.layer(func(b *Builder) {
			b.File("etc/nginx/nginx.conf", fmt.Appendf(nil, nginxConf, port), 0o644)
		})
	}
	cfg := v1.Config{
		Cmd:          []string{"nginx", "-g", "daemon off;"},
		Env:          []string{pathEnv, "NGINX_VERSION=1.22.1"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGTERM",
	}
	s.image("e2e-test-images/nginx", []string{"1.14-2"}, dockerList, cfg, base, program, conf(80))
	s.image("k8s-staging-cri-tools/hostnet-nginx-amd64", []string{"latest"}, dockerManifest, cfg, base, program, conf(12003))
}

func (s *setBuilder) httpd(base *Layer) {
	page := s.layer(func(b *Builder) {
		b.File("www/index.html", []byte("<html><body><h1>It works!</h1></body></html>\n"), 0o644)
	})
	s.image("e2e-test-images/httpd", []string{"2.4.39-4"}, dockerList, v1.Config{
		Cmd:          []string{"sh", "-c", "echo 'httpd: stand-in server started' >&2; exec httpd -f -p 80 -h /www"},
		Env:          []string{pathEnv},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}, base, page)
}

func (s *setBuilder) criTools(base *Layer, shell v1.Config) {
	const r = "k8s-staging-cri-tools/"
	for _, u := range [][2]string{{"uid", "1002"}, {"username", "www-data"}, {"uid-group", "1003:1004"}, {"username-group", "www-data:1004"}} {
		cfg := shell
		cfg.User = u[1]
		s.image(r+"test-image-user-"+u[0], []string{"latest"}, dockerList, cfg, base)
	}
	cfg := shell
	cfg.User = "1000"
	s.image(r+"test-image-predefined-group", []string{"latest"}, dockerList, cfg, base, s.layer(func(b *Builder) {
		b.File("etc/passwd", []byte(passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n"), 0o644)
		b.File("etc/group", []byte(group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"), 0o644)
	}))
	mark := func(name string) *Layer { return s.layer(func(b *Builder) { b.File(name, nil, 0o644) }) }
	for _, n := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest"} {
		s.image(r+n, []string{"latest"}, dockerList, shell, base, mark(n))
	}
	s.image(DigestRepo, []string{"latest"}, dockerManifest, shell, base, mark("test-image-digest"))
	s.image(r+"test-image-tags", []string{"1", "2", "3"}, dockerList, shell, base, mark("same-image"))
	for _, t := range []string{"test", "all"} {
		s.image(r+"test-image-tag", []string{t}, dockerList, shell, base, mark(t))
	}
	for _, t := range []string{"1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"} {
		s.image("docker/library/busybox", []string{t}, ociIndex, shell, base, mark("variant-"+t))
	}
}
