package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var (
	imagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,120}\.img$`)
	namePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)
)

// imageName reports whether a file of criu belongs into an archive. Its
// control groups do not: the restored container gets those that are asked for.
// Nor do AppArmor's policies, which criu would load into the host's kernel.
func imageName(name string) bool {
	return name == Descriptors || imagePattern.MatchString(name) && name != "cgroup.img" && name != "apparmor.img"
}

// Content is what was read of an archive. Spec and Config are claims.
type Content struct {
	Config  Config
	Spec    specs.Spec
	Deleted []string
}

// Extract reads an archive: documents into Content, images into the directory
// ImagesDir of dir, the difference of the root file system into its DiffFile.
// On an error dir holds what came before it, for the caller to remove.
func Extract(ctx context.Context, r io.Reader, dir *os.Root, l Limits) (*Content, error) {
	x := &extractor{dir: dir, l: l, seen: map[string]bool{}}
	if err := dir.Mkdir(ImagesDir, 0o700); err != nil {
		return nil, err
	}
	tr := tar.NewReader(reader{ctx, r})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, hostile("archive: %v", err)
		}
		if err := x.member(h, tr); err != nil {
			return nil, fmt.Errorf("member %.100q: %w", h.Name, err)
		}
	}
	for _, n := range []string{ConfigFile, SpecFile, DeletedFile, DiffFile, ImagesDir + "/" + Descriptors} {
		if !x.seen[n] {
			return nil, hostile("there is no %s", n)
		}
	}
	if x.content.Config.Version != Version {
		return nil, hostile("%s: version %d; this release reads %d", ConfigFile, x.content.Config.Version, Version)
	}
	return &x.content, nil
}

type extractor struct {
	dir     *os.Root
	l       Limits
	seen    map[string]bool
	images  int
	bytes   int64
	content Content
}

func (x *extractor) member(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		if path.Clean(h.Name) != ImagesDir || x.seen[ImagesDir] {
			return hostile("a directory that is not %s, or is there twice", ImagesDir)
		}
		x.seen[ImagesDir] = true
		return nil
	}
	if err := plain(h); err != nil {
		return err
	}
	if x.seen[h.Name] {
		return hostile("there twice")
	}
	x.seen[h.Name] = true
	if x.bytes += h.Size; x.bytes > x.l.Bytes {
		return hostile("the archive has more than %d bytes", x.l.Bytes)
	}
	switch h.Name {
	case ConfigFile:
		return x.document(h, r, &x.content.Config)
	case SpecFile:
		return x.document(h, r, &x.content.Spec)
	case DeletedFile:
		return x.document(h, r, &x.content.Deleted)
	case StatusFile, DumpLog, StatsFile, ContainerLog:
		return nil // for people
	case DiffFile:
		return x.store(h, r)
	}
	base, ok := strings.CutPrefix(h.Name, ImagesDir+"/")
	if !ok || !imageName(base) {
		return hostile("no checkpoint has that")
	}
	if x.images++; x.images > x.l.Images {
		return hostile("more than %d images", x.l.Images)
	}
	return x.store(h, r)
}

// plain refuses what is no ordinary file with its bytes in the archive.
func plain(h *tar.Header) error {
	if h.Typeflag != tar.TypeReg {
		return hostile("type %q", h.Typeflag)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse") {
			return hostile("sparse")
		}
	}
	if h.Size < 0 {
		return hostile("size %d", h.Size)
	}
	return nil
}

func (x *extractor) document(h *tar.Header, r io.Reader, v any) error {
	if h.Size > x.l.Document {
		return hostile("%d bytes, more than %d", h.Size, x.l.Document)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return hostile("%v", err)
	}
	return decode(h.Name, b, v)
}

func (x *extractor) store(h *tar.Header, r io.Reader) error {
	f, err := x.dir.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return hostile("the archive is cut off")
		}
		return err
	}
	return f.Close()
}

// ReadPod reads the description of a pod's checkpoint. It is a claim, too.
func ReadPod(b []byte) (*Pod, error) {
	var p Pod
	if err := decode(PodFile, b, &p); err != nil {
		return nil, err
	}
	if p.Version != Version {
		return nil, hostile("%s: version %d; this release reads %d", PodFile, p.Version, Version)
	}
	const most = 1024
	if len(p.Containers) == 0 || len(p.Containers) > most {
		return nil, hostile("%s: %d containers", PodFile, len(p.Containers))
	}
	names := map[string]bool{}
	for _, c := range p.Containers {
		if !namePattern.MatchString(c.Name) || names[c.Name] || c.File != c.Name+ArchiveSuffix {
			return nil, hostile("%s: container %.80q in file %.80q", PodFile, c.Name, c.File)
		}
		names[c.Name] = true
	}
	return &p, nil
}

// GoodName reports whether a container of that name can be in a pod's checkpoint.
func GoodName(name string) bool { return namePattern.MatchString(name) }

// ReadDescriptors checks the list of the first process's standard files. The
// OCI runtime hands criu its own files by their place in this list: a longer
// one would hand a process of the container files that are the host's.
func ReadDescriptors(b []byte) error {
	var fds []string
	if err := decode(Descriptors, b, &fds); err != nil {
		return err
	}
	const standard = 3
	if len(fds) != standard {
		return hostile("%s: %d descriptors", Descriptors, len(fds))
	}
	for _, f := range fds {
		if len(f) > maxPath || !utf8.ValidString(f) || strings.Contains(f, "pipe:") && !pipePattern.MatchString(f) {
			return hostile("%s: %.80q", Descriptors, f)
		}
	}
	return nil
}

var pipePattern = regexp.MustCompile(`^pipe:\[[0-9]{1,20}\]$`)

// local checks a path of the difference and returns it cleaned, relative.
func local(name string) (string, error) {
	p := path.Clean(name)
	switch {
	case len(name) > maxPath || strings.Count(p, "/") >= maxDepth:
		return "", hostile("the path %.100q is too long", name)
	case strings.IndexByte(name, 0) >= 0 || !filepath.IsLocal(p) || p == "." || strings.TrimSuffix(name, "/") != p:
		return "", hostile("the path %.100q is not a plain one below the root", name)
	}
	return p, nil
}
