// Package images makes, without a network other than a Debian mirror, the
// container images that the tests, the demo and the benchmark run: stand-ins
// for everything critest pulls, under the original names, and one big image
// for measuring pulls.
//
// Images are written as OCI layouts below a cache directory and are keyed by
// what they are made of, so that a second run costs nothing. A layout appears
// by rename and is complete whenever it is visible; processes that want the
// same one wait for each other on a file lock.
package images

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// RefAnnotation holds an image's repository and tag in a layout's index.
const RefAnnotation = "org.opencontainers.image.ref.name"

// DigestRepo is the image that critest pulls by digest.
const DigestRepo = "k8s-staging-cri-tools/test-image-digest"

// BigRepo is the image for measuring pulls.
const BigRepo = "bench/big"

//go:embed csrc
var csrc embed.FS

//go:embed csrc *.go
var sources embed.FS

// Set makes the small images if they are not there and returns their layout.
func Set(ctx context.Context, cache string, progress io.Writer) (string, error) {
	key, err := sourceKey("layer.go", "inputs.go", "set.go", "csrc/pause.c", "csrc/nonewprivs.c")
	if err != nil {
		return "", err
	}
	return build(cache, "set-"+key, func(dir string) error {
		work := filepath.Join(filepath.Dir(dir), "inputs-"+key)
		in, err := prepareInputs(ctx, work, progress)
		if err != nil {
			return err
		}
		fmt.Fprintln(progress, "images: writing the image set")
		if err := writeSet(dir, in); err != nil {
			return err
		}
		return os.RemoveAll(work)
	})
}

// Big makes the image of 7 layers, 60,000 files and more than 500 MB of gzip.
func Big(ctx context.Context, cache string, progress io.Writer) (string, error) {
	key, err := sourceKey("layer.go", "big.go")
	if err != nil {
		return "", err
	}
	return build(cache, "big-"+key, func(dir string) error {
		fmt.Fprintln(progress, "images: making the big image (about a minute)")
		return writeBig(ctx, dir)
	})
}

// Digest returns the digest of repo:tag in a layout.
func Digest(layoutDir, ref string) (v1.Hash, error) {
	idx, err := Index(layoutDir)
	if err != nil {
		return v1.Hash{}, err
	}
	for _, d := range idx.Manifests {
		if d.Annotations[RefAnnotation] == ref {
			return d.Digest, nil
		}
	}
	return v1.Hash{}, fmt.Errorf("image %s is not in %s", ref, layoutDir)
}

// Index reads a layout's index.
func Index(layoutDir string) (*v1.IndexManifest, error) {
	b, err := os.ReadFile(filepath.Join(layoutDir, "index.json"))
	if err != nil {
		return nil, err
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fmt.Errorf("%s/index.json: %w", layoutDir, err)
	}
	return &idx, nil
}

// sourceKey names what an image is made of: our own source and the compiler.
func sourceKey(files ...string) (string, error) {
	h := sha256.New()
	for _, f := range files {
		b, err := sources.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", f, len(b))
		h.Write(b)
	}
	if out, err := exec.Command("gcc", "-dumpfullversion").Output(); err == nil {
		h.Write(out)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func build(cache, name string, fill func(dir string) error) (string, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	final := filepath.Join(cache, name)
	if _, err := os.Stat(filepath.Join(final, "index.json")); err == nil {
		return final, nil
	}
	tmp := final + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := fill(tmp); err != nil {
		return "", fmt.Errorf("make images %s: %w", name, err)
	}
	return final, os.Rename(tmp, final)
}
