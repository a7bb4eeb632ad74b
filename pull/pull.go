// Package pull brings an image from a registry into a Sink.
//
// It reads the same files as its neighbours on the machine: registries.conf
// (mirrors, blocked and insecure registries, search list), registries.d,
// policy.json, certs.d, auth files with credential helpers.
//
// Invariants:
//   - what the signature policy does not allow is never named in the sink;
//   - the digest under which an image is named is the digest of the bytes that
//     the registry served for the reference, checked here;
//   - pulls of one reference with the same credentials and platform run once;
//     the work goes on while anyone waits for it, and stops when nobody does;
//   - a pull that gets no bytes for a while fails and says so; wall time alone
//     never fails a pull, and neither does a long unpack;
//   - a failed pull leaves nothing in the sink.
package pull

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
	"golang.org/x/sync/semaphore"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrInvalid: the reference cannot be one, or the image is none that can run.
	ErrInvalid = errors.New("invalid image")
	// ErrNotFound: the registry has no such image.
	ErrNotFound = errors.New("no such image")
	// ErrUnauthorized: the registry refuses the credentials, or wants some.
	ErrUnauthorized = errors.New("not authorized")
	// ErrDenied: the signature policy or registries.conf refuses the image.
	ErrDenied = errors.New("denied by policy")
	// ErrStalled: no bytes came for too long.
	ErrStalled = errors.New("registry stalled")
	// ErrCorrupt: what the registry sent is not what it promised.
	ErrCorrupt = errors.New("corrupt content")
	// ErrNoSpace: the file system of the sink is full.
	ErrNoSpace = errors.New("no space left")
)

// Sink is where images go. A pull calls Begin, then, if it has to copy,
// Destination, then Commit, then end; end(true) only after Commit succeeded.
type Sink interface {
	// Begin protects what is about to be written from clean-up, and gives a
	// directory for downloads that end removes. After end(false) nothing of
	// the pull is left.
	Begin(ctx context.Context) (tempDir string, end func(ok bool), err error)
	// Has says whether the image is here, whole. One that is here and broken is
	// taken out of the way, if nothing needs it, so that it is copied anew.
	Has(ctx context.Context, imageID string) bool
	// Destination is where the image library copies to.
	Destination(name reference.Named) (types.ImageReference, error)
	// Commit names the copied image and returns when all is on disk. It fails
	// if the image is not there.
	Commit(ctx context.Context, imageID string, names []string) error
}

// Options configures a Puller. The zero value of each path means the place
// where the image library looks by default.
type Options struct {
	Dest Sink
	Log  *slog.Logger // nil: slog.Default

	RegistriesConf    string // registries.conf
	RegistriesConfDir string // registries.conf.d
	RegistriesDir     string // registries.d
	PolicyFile        string // policy.json
	PolicyDir         string // NAMESPACE.json for pulls of a namespace; "": none
	AuthFile          string // auth.json; default also $REGISTRY_AUTH_FILE
	CertsDir          string // certs.d
	BlobCacheDir      string // what is known about blobs between pulls

	StallTimeout time.Duration // default 60 s
	MaxDownloads int           // blobs in flight over all pulls; default 6
	UserAgent    string

	// Pulled is told of each pull that ended, Layer of each layer that one got
	// or found here already. They may be nil and must not block.
	Pulled func(err error, took time.Duration)
	Layer  func(downloaded bool, bytes int64, took time.Duration)
}

// Auth holds credentials as CRI and registries know them. Zero: look in the
// auth files.
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of user:password
	ServerAddress string // when set, the only host the credentials are for
	IdentityToken string
	RegistryToken string
}

// Platform overrides the machine's own when choosing from a manifest list.
type Platform struct{ OS, Arch, Variant string }

// Request asks for one image.
type Request struct {
	Reference string
	// Namespace is whose signature policy counts, if it has one.
	Namespace string
	// ShortNames lets registries.conf complete a name without a registry.
	ShortNames bool
	Auth       *Auth
	Platform   Platform
	// Insecure allows plain HTTP and unverified TLS for this request.
	Insecure bool
	// Progress is called one at a time, and must not block.
	Progress func(Progress)
}

// Result names what was pulled.
type Result struct {
	ImageID   string        // "sha256:" + hex of the config
	Digest    digest.Digest // of the manifest or list served for the reference
	Reference string        // the full name that was pulled
}

// Puller pulls images.
type Puller struct {
	opts  Options
	log   *slog.Logger
	slots *semaphore.Weighted
	warn  sync.Once // about the absent policy

	mu  sync.Mutex // guards ops and every operation's waiters
	ops map[string]*operation
}

// New makes a Puller.
func New(opts Options) *Puller {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.StallTimeout <= 0 {
		opts.StallTimeout = time.Minute
	}
	if opts.MaxDownloads <= 0 {
		opts.MaxDownloads = 6
	}
	if opts.UserAgent == "" {
		opts.UserAgent = "ocid"
	}
	if opts.AuthFile == "" {
		opts.AuthFile = os.Getenv("REGISTRY_AUTH_FILE")
	}
	return &Puller{
		opts:  opts,
		log:   opts.Log,
		slots: semaphore.NewWeighted(int64(opts.MaxDownloads)),
		ops:   map[string]*operation{},
	}
}

// operation is one pull that any number of callers wait for.
type operation struct {
	cancel  context.CancelFunc
	done    chan struct{}
	result  Result
	err     error
	waiters map[*waiter]struct{}

	report sync.Mutex // one report at a time
}

type waiter struct{ progress func(Progress) }

// Pull pulls an image, or joins a pull of the same that is running. When ctx
// ends the caller stops waiting; the work stops once nobody waits.
func (p *Puller) Pull(ctx context.Context, req Request) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if p.opts.PolicyDir == "" {
		req.Namespace = "" // pulls of all namespaces join
	}
	names, err := p.candidates(req)
	if err != nil {
		return Result{}, err
	}
	w := &waiter{progress: req.Progress}
	op := p.join(ctx, req, names, w)
	select {
	case <-op.done:
		return op.result, op.err
	case <-ctx.Done():
		p.leave(req.key(), op, w)
		return Result{}, fmt.Errorf("pull %s: %w", req.Reference, context.Cause(ctx))
	}
}

func (p *Puller) join(ctx context.Context, req Request, names []reference.Named, w *waiter) *operation {
	key := req.key()
	p.mu.Lock()
	defer p.mu.Unlock()
	if op := p.ops[key]; op != nil {
		op.waiters[w] = struct{}{}
		return op
	}
	opCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	op := &operation{cancel: cancel, done: make(chan struct{}), waiters: map[*waiter]struct{}{w: {}}}
	p.ops[key] = op
	go func() {
		begin := time.Now()
		op.result, op.err = p.pullAny(opCtx, req, names, func(pr Progress) { p.tell(op, pr) })
		cancel()
		if p.opts.Pulled != nil {
			p.opts.Pulled(op.err, time.Since(begin))
		}
		p.mu.Lock()
		if p.ops[key] == op {
			delete(p.ops, key)
		}
		p.mu.Unlock()
		close(op.done)
	}()
	return op
}

func (p *Puller) leave(key string, op *operation, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(op.waiters, w)
	if len(op.waiters) == 0 {
		// Whoever comes now must not join work that is being given up.
		if p.ops[key] == op {
			delete(p.ops, key)
		}
		op.cancel()
	}
}

func (p *Puller) tell(op *operation, pr Progress) {
	op.report.Lock()
	defer op.report.Unlock()
	p.mu.Lock()
	waiting := make([]*waiter, 0, len(op.waiters))
	for w := range op.waiters {
		waiting = append(waiting, w)
	}
	p.mu.Unlock()
	for _, w := range waiting {
		if w.progress != nil {
			w.progress(pr)
		}
	}
}

// key tells requests apart. Credentials are in it so that nobody gets an image
// by waiting for someone else's pull.
func (r Request) key() string {
	var a Auth
	if r.Auth != nil {
		a = *r.Auth
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %t %t %q", r.Reference, a, r.Platform, r.Insecure, r.ShortNames, r.Namespace))
	return string(sum[:])
}

// pullAny tries each full name that the reference can stand for.
func (p *Puller) pullAny(ctx context.Context, req Request, names []reference.Named, tell func(Progress)) (Result, error) {
	var errs []error
	for _, name := range names {
		res, err := p.pullOne(ctx, req, name, tell)
		if err == nil {
			return res, nil
		}
		errs = append(errs, fmt.Errorf("pull %s: %w", name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return Result{}, errors.Join(errs...)
}
