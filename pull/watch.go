package pull

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/ocid-io/ocid/internal/stages"
)

// Phase is a stage of a pull.
type Phase string

// The phases, in order. Unpacking starts layer by layer as they arrive.
const (
	Resolving   Phase = "resolving"
	Downloading Phase = "downloading"
	Unpacking   Phase = "unpacking"
	Finishing   Phase = "finishing"
)

// Progress is how far a pull has come.
type Progress struct {
	Phase      Phase
	Layers     int // of the image
	LayersDone int // downloaded and unpacked, or here already
	Bytes      int64
	Total      int64 // compressed bytes of all layers
}

// reportEvery bounds how often progress is told.
const reportEvery = 200 * time.Millisecond

// blob is one download in flight.
type blob struct {
	size, offset int64
	begin        time.Time
	end          func() // of its stage
}

// watch follows one pull: it reports progress and cancels the pull when no
// bytes come, or more of them than were promised.
type watch struct {
	events chan types.ProgressProperties
	cancel context.CancelCauseFunc
	stall  time.Duration
	tell   func(Progress)
	quit   chan struct{}
	done   chan struct{}

	layer func(downloaded bool, bytes int64, took time.Duration)

	mu       sync.Mutex      // guards all below
	ctx      context.Context // of the copy, for its stages
	last     time.Time       // last sign of life
	finished bool            // all blobs are here: nothing more to wait for
	recoded  bool            // blobs may change their compression on the way
	pending  map[digest.Digest]int64
	flight   map[digest.Digest]*blob
	now      Progress
	told     time.Time
}

func (p *Puller) watch(ctx context.Context, tell func(Progress)) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{
		events: make(chan types.ProgressProperties),
		cancel: cancel, stall: p.opts.StallTimeout, tell: tell,
		quit: make(chan struct{}), done: make(chan struct{}),
		layer: p.opts.Layer, ctx: ctx,
		last: time.Now(), flight: map[digest.Digest]*blob{},
		now: Progress{Phase: Resolving},
	}
	tell(w.now)
	go w.run()
	return ctx, w
}

// stop ends the watch; the copy must have returned.
func (w *watch) stop() {
	close(w.quit)
	<-w.done
	w.cancel(nil)
}

// expect says which layers the image has.
func (w *watch) expect(layers []manifest.LayerInfo) {
	pending := map[digest.Digest]int64{}
	var total int64
	for _, l := range layers {
		if !l.EmptyLayer {
			pending[l.Digest] = l.Size
		}
	}
	for _, size := range pending {
		total += max(size, 0)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending, w.last, w.finished = pending, time.Now(), false
	w.now = Progress{Phase: Downloading, Layers: len(pending), Total: total}
}

// mayRecode says that blobs need not keep the size that they are promised with.
func (w *watch) mayRecode() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recoded = true
}

// finish says that nothing more is to come over the network.
func (w *watch) finish() {
	w.mu.Lock()
	w.finished = true
	w.now.Phase, w.now.LayersDone, w.now.Bytes = Finishing, w.now.Layers, w.now.Total
	now := w.now
	w.mu.Unlock()
	w.tell(now)
}

func (w *watch) run() {
	defer close(w.done)
	ticker := time.NewTicker(max(w.stall/8, 5*time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-w.quit:
			return
		case e := <-w.events:
			if pr, due := w.feed(e); due {
				w.tell(pr)
			}
		case <-ticker.C:
			w.check()
		}
	}
}

// feed takes in one event, and says whether progress should be told.
func (w *watch) feed(e types.ProgressProperties) (Progress, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
	d := e.Artifact.Digest
	_, isLayer := w.pending[d]
	switch e.Event {
	case types.ProgressEventNewArtifact:
		w.flight[d] = &blob{size: e.Artifact.Size, begin: time.Now(), end: func() {}}
		if isLayer {
			w.flight[d].end = stages.Start(w.ctx, "pull-layer", stages.Attr{Key: "digest", Value: d.String()})
		}
	case types.ProgressEventRead:
		if b := w.flight[d]; b != nil {
			b.offset = int64(e.Offset)
			if b.size >= 0 && b.offset > b.size && !w.recoded {
				w.cancel(fmt.Errorf("blob %s: registry sent more than the %d bytes it promised: %w", d, b.size, ErrCorrupt))
			}
		}
		if isLayer {
			w.now.Bytes += int64(e.OffsetUpdate)
		}
	case types.ProgressEventDone, types.ProgressEventSkipped:
		w.account(d, e.Event == types.ProgressEventDone, isLayer)
		delete(w.flight, d)
		if isLayer {
			if e.Event == types.ProgressEventSkipped {
				w.now.Bytes += max(w.pending[d], 0)
			} else {
				w.now.Bytes += int64(e.OffsetUpdate)
			}
			delete(w.pending, d)
			w.now.LayersDone++
		}
	}
	w.now.Phase = Downloading
	if w.unpacking() {
		w.now.Phase = Unpacking
	}
	due := time.Since(w.told) >= reportEvery
	if due {
		w.told = time.Now()
	}
	return w.now, due
}

// account tells of a layer that is here. The caller holds mu.
func (w *watch) account(d digest.Digest, downloaded, isLayer bool) {
	b := w.flight[d]
	if b == nil {
		b = &blob{begin: time.Now(), end: func() {}}
	}
	b.end()
	if isLayer && w.layer != nil {
		w.layer(downloaded, max(b.size, b.offset), time.Since(b.begin))
	}
}

// within says under which stage the layers come.
func (w *watch) within(ctx context.Context) {
	w.mu.Lock()
	w.ctx = ctx
	w.mu.Unlock()
}

// unpacking says whether the pull is busy with what it has: a blob has come in
// whole and is not done, or all have. The caller holds mu.
func (w *watch) unpacking() bool {
	if w.pending != nil && len(w.pending) == 0 {
		return true
	}
	for _, b := range w.flight {
		if b.size < 0 || b.offset >= b.size {
			return true
		}
	}
	return false
}

// busyFactor is how many times longer nothing may come while a pull seems to be
// busy with what it has. It must not be for ever: a registry can send all it
// promised, and keep the connection.
const busyFactor = 10

// check cancels the pull if nothing has come for too long.
func (w *watch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		w.last = time.Now()
		return
	}
	limit := w.stall
	if w.unpacking() {
		limit *= busyFactor
	}
	if idle := time.Since(w.last); idle > limit {
		where := "before the manifest"
		if w.pending != nil {
			where = fmt.Sprintf("after %d of %d bytes of layers", w.now.Bytes, w.now.Total)
		}
		w.cancel(fmt.Errorf("no bytes for %s, %s: %w", limit, where, ErrStalled))
	}
}
