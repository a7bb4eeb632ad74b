// Package hooks adds the OCI hooks that the machine's operator has configured
// in hooks.d directories (oci-hooks(5)) to the containers that they match.
//
// Invariants:
//   - a machine without such directories pays two failed look-ups a container;
//     files are read again only when a directory's listing has changed;
//   - a file that cannot be parsed refuses containers, by its name, as podman
//     does: what it was to add may be what confines them. One whose program is
//     not installed is passed over with a warning, as podman does too;
//   - a precreate hook is a filter over the spec that runs here, bounded in
//     time and output; all others run in the OCI runtime.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.podman.io/common/pkg/hooks"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/capbuf"
	"github.com/ocid-io/ocid/runtime"
)

const (
	stagePrecreate = "precreate"
	// filterTime is the limit of a precreate hook that names none.
	filterTime = 10 * time.Second
	maxOutput  = 16 << 20
	maxStderr  = 4 << 10
)

// DefaultDirs are where hooks are looked for; a file in a later one replaces
// that of the same name in an earlier one.
func DefaultDirs() []string { return []string{hooks.DefaultDir, hooks.OverrideDir} }

// Hooks adds hooks. See New.
type Hooks struct {
	dirs []string
	log  *slog.Logger

	mu      sync.Mutex
	seen    string         // guarded by mu: listing that loaded and err are of
	loaded  *hooks.Manager // guarded by mu; nil when there is no hook
	loadErr error          // guarded by mu
}

// New returns Hooks over the given directories; none means the default ones.
func New(dirs []string, log *slog.Logger) *Hooks {
	if len(dirs) == 0 {
		dirs = DefaultDirs()
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Hooks{dirs: dirs, log: log}
}

// AdjustSpec adds the matching hooks to s and runs the precreate ones on it.
// A container's annotations are matched together with its pod's.
func (h *Hooks) AdjustSpec(ctx context.Context, p runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	m, err := h.manager(ctx)
	if err != nil || m == nil {
		return err
	}
	annotations := maps.Clone(c.Config.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, p.Config.Annotations)
	filters, err := m.Hooks(s, annotations, len(c.Config.Mounts) > 0)
	if err != nil {
		return fmt.Errorf("OCI hooks: %w", err)
	}
	for _, f := range filters[stagePrecreate] {
		if err := filter(ctx, f, s); err != nil {
			return fmt.Errorf("precreate hook %s: %w", f.Path, err)
		}
	}
	return nil
}

// manager returns the hooks as the directories have them now; nil is none.
func (h *Hooks) manager(ctx context.Context) (*hooks.Manager, error) {
	listing, err := h.listing()
	if err != nil {
		return nil, fmt.Errorf("OCI hooks: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if listing == h.seen {
		return h.loaded, h.loadErr
	}
	h.seen, h.loaded, h.loadErr = listing, nil, nil
	if listing == "" {
		return nil, nil
	}
	h.warnMissing()
	h.loaded, err = hooks.New(ctx, h.dirs, []string{stagePrecreate})
	if err != nil {
		h.loaded, h.loadErr = nil, fmt.Errorf("%w: OCI hooks: mend or remove the file: %w", runtime.ErrUnavailable, err)
		h.log.Error("OCI hooks cannot be read: no container is created until that is mended", "error", err)
	}
	return h.loaded, h.loadErr
}

// listing is what tells one state of the directories from another.
func (h *Hooks) listing() (string, error) {
	var b strings.Builder
	for _, dir := range h.dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".json" {
				continue
			}
			st, err := os.Stat(filepath.Join(dir, e.Name()))
			if err != nil {
				fmt.Fprintf(&b, "%s/%s %v\n", dir, e.Name(), err)
				continue
			}
			fmt.Fprintf(&b, "%s/%s %d %d\n", dir, e.Name(), st.Size(), st.ModTime().UnixNano())
		}
	}
	return b.String(), nil
}

// warnMissing names the files whose program is not there.
func (h *Hooks) warnMissing() {
	for _, dir := range h.dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, f := range files {
			if _, err := hooks.Read(f, []string{stagePrecreate}); errors.Is(err, fs.ErrNotExist) {
				h.log.Warn("an OCI hook's program is not installed: the hook is passed over", "file", f, "error", err)
			}
		}
	}
}

// filter runs a hook that reads the spec and prints another.
func filter(ctx context.Context, h specs.Hook, s *specs.Spec) error {
	in, err := json.Marshal(s)
	if err != nil {
		return err
	}
	limit := filterTime
	if h.Timeout != nil {
		limit = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, errOut := &capbuf.Buffer{Limit: maxOutput}, &capbuf.Buffer{Limit: maxStderr}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), out, errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: it did not end within %s", runtime.ErrTimeout, limit)
	case err != nil:
		return fmt.Errorf("%w (stderr: %q)", err, strings.TrimSpace(errOut.String()))
	case out.Over():
		return fmt.Errorf("it printed more than %d bytes", maxOutput)
	}
	var changed specs.Spec
	if err := json.Unmarshal(out.Bytes(), &changed); err != nil {
		return fmt.Errorf("it did not print an OCI spec: %w", err)
	}
	if changed.Process == nil || changed.Root == nil || changed.Linux == nil {
		return errors.New("the OCI spec that it printed lacks process, root or linux")
	}
	*s = changed
	return nil
}
