package integration

import (
	"archive/tar"
	"path/filepath"
	"strings"

	"github.com/ocid-io/ocid/test/images"
)

// hostileLayers try, each in its own way, to make a file at canary on the host.
func hostileLayers(canary string) map[string]func(*images.Builder) {
	up := strings.Repeat("../", 40) + strings.TrimPrefix(canary, "/")
	file := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	return map[string]func(*images.Builder){
		"dot dot":       func(b *images.Builder) { b.Header(file(up), []byte("x")) },
		"absolute path": func(b *images.Builder) { b.Header(file(canary), []byte("x")) },
		"symlink to the host": func(b *images.Builder) {
			b.Header(&tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: filepath.Dir(canary), Mode: 0o777}, nil)
			b.Header(file("out/"+filepath.Base(canary)), []byte("x"))
		},
		"relative symlink": func(b *images.Builder) {
			b.Header(&tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: strings.Repeat("../", 40) + filepath.Dir(canary)[1:], Mode: 0o777}, nil)
			b.Header(file("out/"+filepath.Base(canary)), []byte("x"))
		},
		"hard link to the host": func(b *images.Builder) {
			b.Header(&tar.Header{Typeflag: tar.TypeLink, Name: "shadow", Linkname: strings.Repeat("../", 40) + "etc/shadow"}, nil)
		},
		"whiteout outside": func(b *images.Builder) {
			b.Header(file(filepath.Join(filepath.Dir(up), ".wh."+filepath.Base(canary))), nil)
		},
		"device node": func(b *images.Builder) {
			b.Header(&tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 254, Devminor: 0, Mode: 0o666}, nil)
		},
	}
}
