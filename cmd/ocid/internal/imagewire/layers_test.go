package imagewire_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/storetest"
)

// layerOf makes an image of the layers of others, in the order given.
func layerOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(storetest.Image(t), layers...)
	must(t, err)
	return img
}

func randomLayer(t *testing.T, size int64) v1.Layer {
	t.Helper()
	l, err := random.Layer(size, types.DockerLayer)
	must(t, err)
	return l
}

// TestLayersAreFetchedOnce: two images that are pulled at once share a layer
// that is on its way, and each ends up whole.
func TestLayersAreFetchedOnce(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	shared := randomLayer(t, 2<<20)
	digest, err := shared.Digest()
	must(t, err)
	one := u.push(t, "one:v1", layerOf(t, shared, randomLayer(t, 1000)))
	two := u.push(t, "two:v1", layerOf(t, shared, randomLayer(t, 1000)))
	// The first request for the layer waits until both pulls have begun.
	var mu sync.Mutex
	begun, fetched := map[string]bool{}, 0
	both := make(chan struct{})
	u.set(func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		for _, repo := range []string{"one", "two"} {
			if strings.Contains(r.URL.Path, "/"+repo+"/manifests/") && !begun[repo] {
				begun[repo] = true
				if len(begun) == 2 {
					close(both)
				}
			}
		}
		blob := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, digest.String())
		if blob {
			fetched++
		}
		mu.Unlock()
		if blob {
			<-both
		}
		return false
	})
	var wg sync.WaitGroup
	for _, ref := range []string{one, two} {
		wg.Go(func() {
			if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); err != nil {
				t.Errorf("pull %s: %v", ref, err)
			}
		})
	}
	wg.Wait()
	if fetched != 1 {
		t.Errorf("the shared layer was fetched %d times", fetched)
	}
	for _, ref := range []string{one, two} {
		usable(t, n, ref)
	}
	nothingStaged(t, n)
}

// TestLayerAtAnotherPlace: the content of a layer that is here serves an image
// that has it on top of another one, and nothing is fetched for it.
func TestLayerAtAnotherPlace(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	a, b := randomLayer(t, 5000), randomLayer(t, 7000)
	n.get(t, u.push(t, "ab:v1", layerOf(t, a, b)))
	ba := u.push(t, "ba:v1", layerOf(t, b, a))
	u.set(nil)
	n.get(t, ba)
	if got := u.count("GET blobs"); got != 1 { // the config
		t.Errorf("%d blobs were fetched for layers that were here", got)
	}
	usable(t, n, ba)
	nothingStaged(t, n)
}

// TestTwiceTheSameLayer: an image may have one layer twice.
func TestTwiceTheSameLayer(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	l := randomLayer(t, 5000)
	ref := u.push(t, "twice:v1", layerOf(t, l, l))
	n.get(t, ref)
	usable(t, n, ref)
	nothingStaged(t, n)
}

// TestConfigThatLies: layers that are not what the config says are refused.
func TestConfigThatLies(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	img := layerOf(t, randomLayer(t, 5000))
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	lying, err := mutate.ConfigFile(img, cfg)
	must(t, err)
	_, err = n.Pull(t.Context(), pull.Request{Reference: u.push(t, "liar:v1", lying)})
	if !errors.Is(err, pull.ErrCorrupt) || !strings.Contains(err.Error(), "config says sha256:0000") {
		t.Fatalf("error %v", err)
	}
	if left := n.left(t); len(left) != 0 {
		t.Fatalf("left: %q", left)
	}
}

func usable(t *testing.T, n *node, ref string) {
	t.Helper()
	img, err := n.store.Image(t.Context(), ref)
	must(t, err)
	fs, err := n.store.Prepare(t.Context(), store.RootFSRequest{ID: "try", ImageID: img.ID})
	must(t, err)
	list, err := os.ReadDir(fs.Path)
	must(t, err)
	if len(list) == 0 {
		t.Errorf("%s is empty", ref)
	}
	must(t, n.store.Release(t.Context(), "try"))
}

func nothingStaged(t *testing.T, n *node) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(n.dir, "storage/overlay/staging/*"))
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}
