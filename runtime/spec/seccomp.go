package spec

import (
	"bytes"
	"encoding/json"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	profiles "go.podman.io/common/pkg/seccomp"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

const (
	maxSeccompFile = 1 << 20
	// maxSeccompCache bounds the profiles kept: sets of capabilities in use on a
	// node are few, and a client that varies them pays the conversion each time.
	maxSeccompCache = 64
)

// stepSeccomp chooses the filter. A privileged container has none, whatever
// profile is named: Kubernetes documents that, and clients test it.
func stepSeccomp(in *Input, s *specs.Spec) (err error) {
	sec := &in.Container.Security
	switch sec.Seccomp {
	case "", runtime.SeccompUnconfined:
		return nil
	case runtime.SeccompDefault:
		if !sec.Privileged {
			s.Linux.Seccomp, err = defaults.get(s.Process.Capabilities.Bounding)
		}
		return err
	case runtime.SeccompLocalhost:
		if !sec.Privileged {
			s.Linux.Seccomp, err = parseSeccomp(in.SeccompFile, s.Process.Capabilities.Bounding)
			if err != nil {
				return invalid("profile %q: %v", sec.SeccompPath, err)
			}
		}
		return nil
	}
	return invalid("unknown profile kind %q", sec.Seccomp)
}

// seccompCache keeps default profiles by capability set: converting one walks
// hundreds of system calls, and starting a container should not.
type seccompCache struct {
	mu    sync.Mutex
	byCap map[string]*specs.LinuxSeccomp // guarded by mu; values are read only
}

var defaults = seccompCache{byCap: map[string]*specs.LinuxSeccomp{}}

func (c *seccompCache) get(caps []string) (*specs.LinuxSeccomp, error) {
	key := strings.Join(caps, ",")
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.byCap[key]; ok {
		return p, nil
	}
	p, err := convertSeccomp(profiles.DefaultProfile(), caps)
	if err != nil {
		return nil, err
	}
	if len(c.byCap) < maxSeccompCache {
		c.byCap[key] = p
	}
	return p, nil
}

// parseSeccomp reads a profile in JSON, in the OCI form or in the form with
// conditions on capabilities and architectures that contains it.
func parseSeccomp(body []byte, caps []string) (*specs.LinuxSeccomp, error) {
	if len(body) > maxSeccompFile {
		return nil, invalid("larger than %d bytes", maxSeccompFile)
	}
	var p profiles.Seccomp
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&p); err != nil {
		return nil, invalid("not JSON: %v", err)
	}
	if dec.More() {
		return nil, invalid("something follows the JSON object")
	}
	return convertSeccomp(&p, caps)
}

// convertSeccomp resolves conditions on capabilities and architectures. It
// needs no libseccomp, so that the daemon can be built without cgo.
func convertSeccomp(p *profiles.Seccomp, caps []string) (*specs.LinuxSeccomp, error) {
	out := &specs.LinuxSeccomp{
		DefaultAction:    specs.LinuxSeccompAction(p.DefaultAction),
		ListenerPath:     p.ListenerPath,
		ListenerMetadata: p.ListenerMetadata,
	}
	if !slices.Contains(seccompActions, out.DefaultAction) {
		return nil, invalid("unknown default action %q", p.DefaultAction)
	}
	var err error
	if out.DefaultErrnoRet, err = errnoRet(p.DefaultErrno, p.DefaultErrnoRet); err != nil {
		return nil, err
	}
	if out.Architectures, err = architectures(p); err != nil {
		return nil, err
	}
	for _, f := range p.Flags {
		if !slices.Contains(seccompFlags, specs.LinuxSeccompFlag(f)) {
			return nil, invalid("unknown flag %q", f)
		}
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	for _, c := range p.Syscalls {
		if c == nil || !applies(c, caps) {
			continue
		}
		sc, err := convertSyscall(c)
		if err != nil {
			return nil, err
		}
		out.Syscalls = append(out.Syscalls, sc)
	}
	return out, nil
}

func architectures(p *profiles.Seccomp) ([]specs.Arch, error) {
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, invalid("both architectures and archMap are given")
	}
	list := p.Architectures
	for _, m := range p.ArchMap {
		if m.Arch == nativeArch[goruntime.GOARCH] {
			list = append([]profiles.Arch{m.Arch}, m.SubArches...)
		}
	}
	var out []specs.Arch
	for _, a := range list {
		if !strings.HasPrefix(string(a), "SCMP_ARCH_") {
			return nil, invalid("unknown architecture %q", a)
		}
		out = append(out, specs.Arch(a))
	}
	return out, nil
}

// applies decides the conditions of one rule: no excluded capability may be
// held, all included ones must be.
func applies(c *profiles.Syscall, caps []string) bool {
	held := func(name string) bool { return slices.Contains(caps, name) }
	arch := conditionArch[goruntime.GOARCH]
	if slices.Contains(c.Excludes.Arches, arch) || slices.ContainsFunc(c.Excludes.Caps, held) {
		return false
	}
	if len(c.Includes.Arches) > 0 && !slices.Contains(c.Includes.Arches, arch) {
		return false
	}
	return !slices.ContainsFunc(c.Includes.Caps, func(n string) bool { return !held(n) })
}

func convertSyscall(c *profiles.Syscall) (specs.LinuxSyscall, error) {
	sc := specs.LinuxSyscall{Names: c.Names, Action: specs.LinuxSeccompAction(c.Action)}
	if c.Name != "" {
		if len(c.Names) > 0 {
			return sc, invalid("rule for %q has both name and names", c.Name)
		}
		sc.Names = []string{c.Name}
	}
	if len(sc.Names) == 0 {
		return sc, invalid("a rule names no system call")
	}
	if !slices.Contains(seccompActions, sc.Action) {
		return sc, invalid("rule for %q: unknown action %q", sc.Names[0], c.Action)
	}
	var err error
	if sc.ErrnoRet, err = errnoRet(c.Errno, c.ErrnoRet); err != nil {
		return sc, invalid("rule for %q: %v", sc.Names[0], err)
	}
	for _, a := range c.Args {
		if a == nil {
			continue
		}
		op := specs.LinuxSeccompOperator(a.Op)
		if a.Index > 5 || !slices.Contains(seccompOperators, op) {
			return sc, invalid("rule for %q: argument %d, operator %q", sc.Names[0], a.Index, a.Op)
		}
		sc.Args = append(sc.Args, specs.LinuxSeccompArg{Index: a.Index, Value: a.Value, ValueTwo: a.ValueTwo, Op: op})
	}
	return sc, nil
}

func errnoRet(name string, def *uint) (*uint, error) {
	if name == "" {
		return def, nil
	}
	if n, err := strconv.ParseUint(name, 10, 12); err == nil {
		return new(uint(n)), nil
	}
	if n, ok := errnoByName()[name]; ok {
		return new(n), nil
	}
	return nil, invalid("unknown errno %q", name)
}

var errnoByName = sync.OnceValue(func() map[string]uint {
	m := map[string]uint{}
	for n := unix.Errno(1); n < 256; n++ {
		if s := unix.ErrnoName(n); s != "" {
			m[s] = uint(n)
		}
	}
	return m
})

var nativeArch = map[string]profiles.Arch{
	"amd64": profiles.ArchX86_64, "arm64": profiles.ArchAARCH64, "s390x": profiles.ArchS390X,
	"mips64": profiles.ArchMIPS64, "mips64le": profiles.ArchMIPSEL64,
}

// conditionArch translates Go's architecture names to those in conditions.
var conditionArch = map[string]string{
	"amd64": "amd64", "arm64": "arm64", "arm": "arm", "386": "x86", "s390x": "s390x",
	"ppc64le": "ppc64le", "riscv64": "riscv64", "mips64": "mips64", "mips64le": "mipsel64",
}

var (
	seccompActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno,
		specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	seccompOperators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
	seccompFlags = []specs.LinuxSeccompFlag{
		specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv,
		"SECCOMP_FILTER_FLAG_TSYNC",
	}
)
