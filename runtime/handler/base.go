package handler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

const maxBase = 1 << 20

// baseSpec is what of an OCI spec a base may have. Everything else follows
// from the request, and a base that had it would be ignored without a word.
type baseSpec struct {
	Version string `json:"ociVersion"`
	Process *struct {
		Env     []string            `json:"env"`
		Rlimits []specs.POSIXRlimit `json:"rlimits"`
	} `json:"process"`
	Mounts      []specs.Mount     `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Linux       *struct {
		Sysctl    map[string]string `json:"sysctl"`
		Resources *struct {
			Pids *specs.LinuxPids `json:"pids"`
		} `json:"resources"`
	} `json:"linux"`
}

// ReadBase reads a base spec: environment, rlimits, mounts, annotations, hooks,
// sysctls and the limit on processes. Anything else in it is refused.
func ReadBase(file string) (*specs.Spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("base runtime spec: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxBase+1))
	if err != nil {
		return nil, fmt.Errorf("base runtime spec: %w", err)
	}
	if len(data) > maxBase {
		return nil, fmt.Errorf("%w: base runtime spec %s is larger than %d bytes", runtime.ErrInvalid, file, maxBase)
	}
	var b baseSpec
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return nil, fmt.Errorf("%w: base runtime spec %s: %w", runtime.ErrInvalid, file, err)
	}
	for _, m := range b.Mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			return nil, fmt.Errorf("%w: base runtime spec %s: mount at %q", runtime.ErrInvalid, file, m.Destination)
		}
	}
	out := &specs.Spec{Mounts: b.Mounts, Annotations: b.Annotations, Hooks: b.Hooks}
	if b.Process != nil {
		out.Process = &specs.Process{Env: b.Process.Env, Rlimits: b.Process.Rlimits}
	}
	if b.Linux != nil {
		out.Linux = &specs.Linux{Sysctl: b.Linux.Sysctl, Resources: &specs.LinuxResources{}}
		if b.Linux.Resources != nil {
			out.Linux.Resources.Pids = b.Linux.Resources.Pids
		}
	}
	return out, nil
}

// rlimits are the names of setrlimit(2) without RLIMIT_, in lower case.
const rlimits = " as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack "

// ParseUlimit reads "name=soft:hard" or "name=both"; -1 is unlimited.
func ParseUlimit(text string) (specs.POSIXRlimit, error) {
	fail := func() (specs.POSIXRlimit, error) {
		return specs.POSIXRlimit{}, fmt.Errorf("%w: ulimit %q is not NAME=SOFT:HARD with a name of setrlimit(2) in lower case", runtime.ErrInvalid, text)
	}
	name, value, ok := strings.Cut(text, "=")
	if !ok || strings.Contains(name, " ") || !strings.Contains(rlimits, " "+name+" ") {
		return fail()
	}
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	s, errS := limit(soft)
	h, errH := limit(hard)
	if errS != nil || errH != nil || s > h {
		return fail()
	}
	return specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: s, Hard: h}, nil
}

func limit(text string) (uint64, error) {
	if text == "-1" {
		return ^uint64(0), nil // RLIM_INFINITY
	}
	return strconv.ParseUint(text, 10, 64)
}
