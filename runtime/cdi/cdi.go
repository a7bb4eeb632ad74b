// Package cdi injects Container Device Interface devices into OCI specs.
//
// A device is named by a request's CDI devices or, as older device plugins do
// it, by annotations under cdi.k8s.io/. What it stands for is in files under
// the spec directories, which belong to the machine's operator and its drivers.
//
// Invariants:
//   - nothing is read and nothing runs until a container asks for a device; the
//     directories are then read anew, so that a driver's change counts at once;
//   - a device that no file knows is runtime.ErrInvalid, and the error names
//     the files that could not be read;
//   - a broken file takes no other file's devices away.
package cdi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/ocid-io/ocid/runtime"
)

// maxDevices bounds what one container can name.
const maxDevices = 1024

// DefaultDirs are where files are looked for, the later ones winning.
func DefaultDirs() []string { return []string{cdi.DefaultStaticDir, cdi.DefaultDynamicDir} }

// Injector injects devices. Its zero value is not usable; see New.
type Injector struct {
	dirs []string
	log  *slog.Logger

	mu    sync.Mutex
	cache *cdi.Cache // guarded by mu; nil until the first device is asked for
}

// New returns an Injector that reads the given directories.
func New(dirs []string, log *slog.Logger) *Injector {
	if len(dirs) == 0 {
		dirs = DefaultDirs()
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Injector{dirs: dirs, log: log}
}

// AdjustSpec injects what the container asks for, by request and by annotation.
func (i *Injector) AdjustSpec(_ context.Context, _ runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	names, err := asked(&c.Config)
	if err != nil || len(names) == 0 {
		return err
	}
	return i.Inject(s, names)
}

func asked(c *runtime.ContainerConfig) ([]string, error) {
	names := slices.Clone(c.CDIDevices)
	if hasAnnotation(c.Annotations) {
		_, more, err := cdi.ParseAnnotations(c.Annotations)
		if err != nil {
			return nil, fmt.Errorf("%w: CDI annotation: %w", runtime.ErrInvalid, err)
		}
		slices.Sort(more)
		names = append(names, more...)
	}
	if len(names) > maxDevices {
		return nil, fmt.Errorf("%w: %d CDI devices, more than %d", runtime.ErrInvalid, len(names), maxDevices)
	}
	seen := map[string]bool{}
	var out []string
	for _, n := range names {
		if _, _, _, err := parser.ParseQualifiedName(n); err != nil {
			return nil, fmt.Errorf("%w: CDI device %.200q is not VENDOR/CLASS=NAME: %w", runtime.ErrInvalid, n, err)
		}
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out, nil
}

func hasAnnotation(a map[string]string) bool {
	for k := range a {
		if strings.HasPrefix(k, cdi.AnnotationPrefix) {
			return true
		}
	}
	return false
}

// Inject adds the named devices to s. On an error s may be half changed.
func (i *Injector) Inject(s *specs.Spec, names []string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	broken, err := i.refresh()
	if err != nil {
		return err
	}
	unknown, err := i.cache.InjectDevices(s, names...)
	switch {
	case len(unknown) > 0:
		err = fmt.Errorf("%w: no CDI device %s in %s", runtime.ErrInvalid, strings.Join(unknown, ", "), strings.Join(i.dirs, ", "))
		if broken != nil {
			err = fmt.Errorf("%w; files that cannot be used: %w", err, broken)
		}
		return err
	case err != nil:
		return fmt.Errorf("inject CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// refresh reads the directories; broken says what in them cannot be used.
func (i *Injector) refresh() (broken, err error) {
	if i.cache == nil {
		if i.cache, err = cdi.NewCache(cdi.WithSpecDirs(i.dirs...), cdi.WithAutoRefresh(false)); err != nil {
			return nil, fmt.Errorf("read CDI directories: %w", err)
		}
	} else if rerr := i.cache.Refresh(); rerr != nil {
		i.log.Debug("CDI files", "error", rerr)
	}
	bad := i.cache.GetErrors()
	var errs []error
	for _, file := range slices.Sorted(maps.Keys(bad)) {
		errs = append(errs, fmt.Errorf("%s: %w", file, errors.Join(bad[file]...)))
	}
	if broken = errors.Join(errs...); broken != nil {
		i.log.Warn("CDI files that cannot be used are passed over", "error", broken)
	}
	return broken, nil
}
