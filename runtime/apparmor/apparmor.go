// Package apparmor finds the AppArmor profile that a container is to run under
// and loads ocid's own default profile into the kernel.
//
// Invariants:
//   - a profile that is returned was loaded a moment ago: a container never
//     runs unconfined because its profile was not there;
//   - the default profile is loaded when the first container needs it, again by
//     each run of the daemon so that a new release's text counts, and again
//     whenever it has been unloaded;
//   - the parser runs bounded in time and output, and gets the text on stdin.
//
// On a machine without AppArmor, New returns nil and nothing is asked.
package apparmor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/capbuf"
	"github.com/ocid-io/ocid/runtime"
)

// DefaultName is the profile that ocid makes and loads.
const DefaultName = "ocid-default"

// unconfined is the kernel's name for running under no profile.
const unconfined = "unconfined"

const (
	parserTime  = 10 * time.Second
	maxStderr   = 4 << 10
	maxProfiles = 16 << 20
)

// Options configure New. Empty paths are the kernel's and the system's.
type Options struct {
	// Default is the profile that RuntimeDefault stands for; "" is DefaultName.
	// Another one must be loaded by the machine's operator.
	Default    string
	SecurityFS string   // "" is /sys/kernel/security
	Module     string   // "" is /sys/module/apparmor
	Parsers    []string // paths of apparmor_parser, the first that exists is run
}

// AppArmor answers for one kernel.
type AppArmor struct {
	o Options

	mu     sync.Mutex
	loaded bool // guarded by mu: by this run of the daemon
}

// New returns nil where the kernel has no AppArmor or it is switched off.
func New(o Options) *AppArmor {
	if o.Default == "" {
		o.Default = DefaultName
	}
	if o.SecurityFS == "" {
		o.SecurityFS = "/sys/kernel/security"
	}
	if o.Module == "" {
		o.Module = "/sys/module/apparmor"
	}
	if len(o.Parsers) == 0 {
		o.Parsers = []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"}
	}
	on, err := os.ReadFile(filepath.Join(o.Module, "parameters", "enabled"))
	if err != nil || !strings.HasPrefix(string(on), "Y") {
		return nil
	}
	return &AppArmor{o: o}
}

// Profile returns the loaded profile that a request stands for; "" confines
// nothing. No kind at all is the default, as Kubernetes has it.
func (a *AppArmor) Profile(ctx context.Context, kind runtime.ProfileKind, name string) (string, error) {
	switch kind {
	case runtime.SeccompUnconfined:
		return "", nil
	case "", runtime.SeccompDefault:
		return a.o.Default, a.ensureDefault(ctx)
	case runtime.SeccompLocalhost:
		if name == unconfined {
			// Who may name profiles of the machine only must not leave them out.
			return "", fmt.Errorf("%w: %q is no AppArmor profile of this machine", runtime.ErrInvalid, name)
		}
		ok, err := a.isLoaded(name)
		if err == nil && !ok {
			err = fmt.Errorf("%w: AppArmor profile %q is not loaded on this machine", runtime.ErrInvalid, name)
		}
		return name, err
	}
	return "", fmt.Errorf("%w: unknown AppArmor profile kind %q", runtime.ErrInvalid, kind)
}

func (a *AppArmor) ensureDefault(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ok, err := a.isLoaded(a.o.Default)
	if err != nil {
		return err
	}
	if a.o.Default != DefaultName {
		if !ok {
			return fmt.Errorf("%w: the configured default AppArmor profile %q is not loaded on this machine", runtime.ErrUnavailable, a.o.Default)
		}
		return nil
	}
	if ok && a.loaded {
		return nil
	}
	switch err := a.load(ctx, Text(DefaultName)); {
	case err == nil:
		a.loaded = true
		return nil
	case ok && errors.Is(err, errNoParser):
		return nil // somebody else has loaded it
	default:
		return fmt.Errorf("%w: load the default AppArmor profile: %w", runtime.ErrUnavailable, err)
	}
}

// isLoaded looks into the kernel's list: lines of "name (mode)".
func (a *AppArmor) isLoaded(name string) (bool, error) {
	if name == unconfined {
		return true, nil // as the operator's choice of a default
	}
	f, err := os.Open(filepath.Join(a.o.SecurityFS, "apparmor", "profiles"))
	if err != nil {
		return false, fmt.Errorf("%w: AppArmor is on, and its list of profiles cannot be read: is securityfs mounted? %w", runtime.ErrUnavailable, err)
	}
	defer func() { _ = f.Close() }()
	s := bufio.NewScanner(io.LimitReader(f, maxProfiles))
	s.Buffer(nil, 64<<10)
	for s.Scan() {
		if at := strings.LastIndex(s.Text(), " ("); at >= 0 && s.Text()[:at] == name {
			return true, nil
		}
	}
	if err := s.Err(); err != nil {
		return false, fmt.Errorf("read AppArmor's list of profiles: %w", err)
	}
	return false, nil
}

var errNoParser = errors.New("apparmor_parser is not installed")

func (a *AppArmor) load(ctx context.Context, text string) error {
	parser := ""
	for _, p := range a.o.Parsers {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			parser = p
			break
		}
	}
	if parser == "" {
		return fmt.Errorf("%w: not one of %s exists", errNoParser, strings.Join(a.o.Parsers, ", "))
	}
	ctx, cancel := context.WithTimeout(ctx, parserTime)
	defer cancel()
	out := &capbuf.Buffer{Limit: maxStderr}
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), out, out
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("%s was stopped after %s: %w", parser, parserTime, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", parser, err, strings.TrimSpace(out.String()))
	}
	return nil
}
