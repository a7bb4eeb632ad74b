package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/capbuf"
	"github.com/ocid-io/ocid/runtime/engine"
)

const (
	featuresTime = 5 * time.Second
	maxFeatures  = 1 << 20
)

// Features is what a runtime says of itself. Known is false for one that
// cannot say: nothing is to be assumed of it.
type Features struct {
	Known             bool
	RecursiveReadOnly bool
	IDMappedMounts    bool
	MountOptions      []string
	Hooks             []string
}

// Prober asks runtimes and remembers the answer while the binary is the same.
type Prober struct {
	mu    sync.Mutex
	known map[string]answer // guarded by mu; by path
}

type answer struct {
	size  int64
	mtime time.Time
	f     Features
}

// Features asks the runtime of h, once for each state of its binary. An error
// means that the binary cannot be run; one without the command is not Known.
func (p *Prober) Features(ctx context.Context, h engine.Handler) (Features, error) {
	st, err := os.Stat(h.Path)
	if err != nil {
		return Features{}, fmt.Errorf("runtime of handler %q: %w", h.Name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.known[h.Path]; ok && a.size == st.Size() && a.mtime.Equal(st.ModTime()) {
		return a.f, nil
	}
	f, err := probe(ctx, h)
	if err != nil {
		return Features{}, err
	}
	if p.known == nil {
		p.known = map[string]answer{}
	}
	p.known[h.Path] = answer{st.Size(), st.ModTime(), f}
	return f, nil
}

func probe(ctx context.Context, h engine.Handler) (Features, error) {
	ctx, cancel := context.WithTimeout(ctx, featuresTime)
	defer cancel()
	argv := h.Features()
	out := &capbuf.Buffer{Limit: maxFeatures}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return Features{}, fmt.Errorf("runtime of handler %q: %q did not answer within %s", h.Name, strings.Join(argv, " "), featuresTime)
	}
	if err != nil && cmd.ProcessState == nil {
		return Features{}, fmt.Errorf("runtime of handler %q: %w", h.Name, err)
	}
	var doc features.Features
	if err != nil || out.Over() || json.Unmarshal(out.Bytes(), &doc) != nil {
		return Features{}, nil // runc before 1.1, runsc: no such command
	}
	return read(&doc), nil
}

func read(doc *features.Features) Features {
	f := Features{
		Known: true, MountOptions: doc.MountOptions, Hooks: doc.Hooks,
		RecursiveReadOnly: slices.Contains(doc.MountOptions, "rro"),
	}
	if l := doc.Linux; l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil {
		f.IDMappedMounts = l.MountExtensions.IDMap.Enabled != nil && *l.MountExtensions.IDMap.Enabled
	}
	return f
}
