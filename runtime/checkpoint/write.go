package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// maxLog bounds the container's log in an archive: its end is kept.
const maxLog = 64 << 20

// Source is what an archive is made of.
type Source struct {
	Config Config
	Spec   []byte // JSON
	Status Status
	// Dir holds the images in ImagesDir and the log and figures beside it.
	Dir *os.Root
	// Diff is the difference of the root file system, as Diff wrote it.
	Diff    *os.File
	Deleted []string
	Log     *os.File // the container's log; nil without one
}

// Write writes an archive.
func Write(ctx context.Context, w io.Writer, s Source) error {
	tw := tar.NewWriter(w)
	a := archive{ctx: ctx, w: tw, at: s.Config.CheckpointedAt}
	for _, d := range []struct {
		name string
		v    any
	}{{ConfigFile, s.Config}, {SpecFile, json.RawMessage(s.Spec)}, {StatusFile, s.Status}, {DeletedFile, nonNil(s.Deleted)}} {
		b, err := json.MarshalIndent(d.v, "", "  ")
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if err := a.bytes(d.name, b); err != nil {
			return err
		}
	}
	if err := a.images(s.Dir); err != nil {
		return err
	}
	for _, n := range []string{DumpLog, StatsFile} {
		if err := a.maybe(s.Dir, n); err != nil {
			return err
		}
	}
	if err := a.stream(DiffFile, s.Diff, 0); err != nil {
		return err
	}
	if s.Log != nil {
		st, err := s.Log.Stat()
		if err != nil {
			return err
		}
		if err := a.stream(ContainerLog, s.Log, max(0, st.Size()-maxLog)); err != nil {
			return err
		}
	}
	return tw.Close()
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

type archive struct {
	ctx context.Context //nolint:containedctx // of one Write
	w   *tar.Writer
	at  time.Time
}

func (a *archive) bytes(name string, b []byte) error {
	if err := a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: a.at}); err != nil {
		return err
	}
	_, err := a.w.Write(b)
	return err
}

// stream copies a file from an offset on. A log may grow meanwhile; what came
// after the header was written is left out.
func (a *archive) stream(name string, f *os.File, from int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	size := st.Size() - from
	if err := a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: a.at}); err != nil {
		return err
	}
	if _, err := io.Copy(a.w, reader{a.ctx, io.NewSectionReader(f, from, size)}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (a *archive) maybe(dir *os.Root, name string) error {
	f, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return a.stream(name, f, 0)
}

func (a *archive) images(dir *os.Root) error {
	ents, err := fs.ReadDir(dir.FS(), ImagesDir)
	if err != nil {
		return err
	}
	if err := a.w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: ImagesDir + "/", Mode: 0o700, ModTime: a.at}); err != nil {
		return err
	}
	for _, e := range ents {
		if !e.Type().IsRegular() || !imageName(e.Name()) {
			continue // links between images, which only iterative dumps have
		}
		f, err := dir.Open(ImagesDir + "/" + e.Name())
		if err != nil {
			return err
		}
		err = a.stream(ImagesDir+"/"+e.Name(), f, 0)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context //nolint:containedctx // of one copy
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}
