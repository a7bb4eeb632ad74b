// Package handler applies what the configuration says of one runtime handler
// to the OCI specs of its containers, and finds out what a runtime can do.
//
// Invariants:
//   - no annotation of a client reaches a runtime unless the operator has
//     allowed its key for that handler: runtimes act on some of them;
//   - a handler's defaults fill what nobody asked for and change nothing else;
//   - what is read from a file was checked when the daemon started.
package handler

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// Policy is what the operator set for one handler.
type Policy struct {
	// AllowedAnnotations are patterns (path.Match) of keys of pod and container
	// annotations that are handed to the runtime.
	AllowedAnnotations []string
	// DefaultAnnotations are handed to the runtime unless an allowed one of the
	// client's has the key.
	DefaultAnnotations map[string]string
	// DefaultEnv are "NAME=value" for names that are not set otherwise.
	DefaultEnv []string
	// Rlimits are those of every process.
	Rlimits []specs.POSIXRlimit
	// HideHostDevices gives privileged containers no device they did not ask for.
	HideHostDevices bool
	// MinMemory is the lowest memory limit that the runtime can work with; 0 is none.
	MinMemory int64
	// Base is what a container starts from; nil is nothing. See ReadBase.
	Base *specs.Spec
}

// Policies are those of all handlers.
type Policies struct {
	Default string // name that "" stands for
	ByName  map[string]Policy
}

func (ps *Policies) of(name string) Policy {
	if name == "" {
		name = ps.Default
	}
	return ps.ByName[name]
}

// HideHostDevices tells what the named handler does with privileged containers.
func (ps *Policies) HideHostDevices(name string) bool { return ps.of(name).HideHostDevices }

// AdjustSpec applies the policy of the pod's handler.
func (ps *Policies) AdjustSpec(_ context.Context, p runtime.Pod, c *runtime.Container, s *specs.Spec) error {
	pol := ps.of(p.Config.Handler)
	if err := pol.memory(s); err != nil {
		return fmt.Errorf("handler %q: %w", p.Config.Handler, err)
	}
	if pol.Base != nil {
		underlay(s, pol.Base)
	}
	pol.annotations(p, c, s)
	addEnv(s.Process, pol.DefaultEnv)
	addRlimits(s.Process, pol.Rlimits)
	return nil
}

func (pol *Policy) memory(s *specs.Spec) error {
	r := s.Linux.Resources
	if pol.MinMemory == 0 || r == nil || r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit <= 0 {
		return nil
	}
	if limit := *r.Memory.Limit; limit < pol.MinMemory {
		return fmt.Errorf("%w: the memory limit of %d bytes is below the %d that this runtime needs", runtime.ErrInvalid, limit, pol.MinMemory)
	}
	return nil
}

func (pol *Policy) annotations(p runtime.Pod, c *runtime.Container, s *specs.Spec) {
	if len(pol.AllowedAnnotations)+len(pol.DefaultAnnotations) == 0 {
		return
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	fill(s.Annotations, pol.DefaultAnnotations)
	// The container's own win over its pod's.
	for _, from := range []map[string]string{p.Config.Annotations, c.Config.Annotations} {
		for k, v := range from {
			if pol.allows(k) {
				s.Annotations[k] = v
			}
		}
	}
}

// ownPrefix keeps what ocid itself says of a container from being forged.
const ownPrefix = "io.ocid."

// hostPrefixes begin annotations by which OCI runtimes do things to the host:
// properties of systemd's units, which can name commands, and criu's
// configuration, which can as well. A pattern lets them through only if it
// begins so itself.
var hostPrefixes = []string{"org.systemd.property.", "org.criu."}

func (pol *Policy) allows(key string) bool {
	if strings.HasPrefix(key, ownPrefix) {
		return false
	}
	need := ""
	for _, p := range hostPrefixes {
		if strings.HasPrefix(key, p) {
			need = p
		}
	}
	return slices.ContainsFunc(pol.AllowedAnnotations, func(pattern string) bool {
		ok, err := path.Match(pattern, key)
		return err == nil && ok && strings.HasPrefix(pattern, need)
	})
}

// Check validates what can be wrong in a policy.
func (pol *Policy) Check() error {
	for _, p := range pol.AllowedAnnotations {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			return fmt.Errorf("%w: allowed annotation %q is no pattern", runtime.ErrInvalid, p)
		}
	}
	for _, kv := range pol.DefaultEnv {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.IndexByte(kv, 0) >= 0 {
			return fmt.Errorf("%w: default environment %q is not NAME=value", runtime.ErrInvalid, kv)
		}
	}
	return nil
}

func fill[V any](dst, src map[string]V) {
	for k, v := range src {
		if _, ok := dst[k]; !ok {
			dst[k] = v
		}
	}
}

func addEnv(p *specs.Process, env []string) {
	if len(env) == 0 {
		return
	}
	have := map[string]bool{}
	for _, kv := range p.Env {
		k, _, _ := strings.Cut(kv, "=")
		have[k] = true
	}
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); !have[k] {
			have[k] = true
			p.Env = append(p.Env, kv)
		}
	}
}

func addRlimits(p *specs.Process, limits []specs.POSIXRlimit) {
	for _, l := range limits {
		if !slices.ContainsFunc(p.Rlimits, func(h specs.POSIXRlimit) bool { return h.Type == l.Type }) {
			p.Rlimits = append(p.Rlimits, l)
		}
	}
}

// underlay puts what base has and s has not under s.
func underlay(s, base *specs.Spec) {
	if p := base.Process; p != nil {
		addEnv(s.Process, p.Env)
		addRlimits(s.Process, p.Rlimits)
	}
	for _, m := range base.Mounts {
		if !slices.ContainsFunc(s.Mounts, func(h specs.Mount) bool { return h.Destination == m.Destination }) {
			s.Mounts = append(s.Mounts, m)
		}
	}
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	if len(base.Annotations) > 0 {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		fill(s.Annotations, base.Annotations)
	}
	if l := base.Linux; l != nil && len(l.Sysctl) > 0 {
		sysctl := maps.Clone(s.Linux.Sysctl)
		if sysctl == nil {
			sysctl = map[string]string{}
		}
		fill(sysctl, l.Sysctl)
		s.Linux.Sysctl = sysctl
	}
	if l := base.Linux; l != nil && l.Resources != nil && l.Resources.Pids != nil && s.Linux.Resources.Pids == nil {
		s.Linux.Resources.Pids = l.Resources.Pids
	}
	if h := base.Hooks; h != nil {
		addHooks(s, h)
	}
}

func addHooks(s *specs.Spec, h *specs.Hooks) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, h.CreateRuntime...)
	s.Hooks.CreateContainer = append(s.Hooks.CreateContainer, h.CreateContainer...)
	s.Hooks.StartContainer = append(s.Hooks.StartContainer, h.StartContainer...)
	s.Hooks.Poststart = append(s.Hooks.Poststart, h.Poststart...)
	s.Hooks.Poststop = append(s.Hooks.Poststop, h.Poststop...)
}
