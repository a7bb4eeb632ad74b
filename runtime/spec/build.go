package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// ociVersion is the version of the runtime spec that is written. It is an old
// one on purpose: nothing newer is used, and every runtime in use accepts it.
const ociVersion = "1.0.2"

// step is one named part of Build. It reads in, may read what earlier steps
// wrote, and writes its own part of s.
type step struct {
	name  string
	apply func(in *Input, s *specs.Spec) error
}

// processSteps shape a process; they are shared by the container's first
// process and by exec. They stand before everything that depends on them:
// seccomp reads the bounding set.
var processSteps = []step{
	{"user", stepUser},
	{"terminal", stepTerminal},
	{"env", stepEnv},
	{"cwd", stepCwd},
	{"capabilities", stepCapabilities},
	{"no new privileges", stepNoNewPrivileges},
	{"apparmor", stepAppArmor},
	{"selinux", stepSELinux},
	{"oom score", stepOOMScore},
}

var containerSteps = []step{
	{"args", stepArgs},
	{"root", stepRoot},
	{"namespaces", stepNamespaces},
	{"hostname", stepHostname},
	{"mounts", stepMounts},
	{"devices", stepDevices},
	{"seccomp", stepSeccomp},
	{"masked paths", stepMaskedPaths},
	{"sysctls", stepSysctls},
	{"resources", stepResources},
	{"annotations", stepAnnotations},
	{"cgroup", stepCgroup},
}

// Build returns the OCI spec of the container that in describes. A request
// that cannot work gives an error that wraps runtime.ErrInvalid.
//
// The result may share its seccomp profile with other results: read only.
func Build(in Input) (*specs.Spec, error) {
	s := newSpec()
	for _, table := range [][]step{processSteps, containerSteps} {
		if err := run(table, &in, s); err != nil {
			return nil, err
		}
	}
	if err := checkText(s); err != nil {
		return nil, err
	}
	return s, nil
}

// Process returns the process of an exec in the container that in describes:
// the container's user, environment, working directory, capabilities and
// confinement with other arguments. Seccomp is not part of a process; the OCI
// runtime applies the container's filter.
func Process(in Input, args []string, tty bool) (specs.Process, error) {
	if len(args) == 0 || args[0] == "" {
		return specs.Process{}, invalid("exec: no command given")
	}
	in.Container.TTY = tty
	s := newSpec()
	if err := run(processSteps, &in, s); err != nil {
		return specs.Process{}, err
	}
	s.Process.Args = slices.Clone(args)
	if err := checkText(s); err != nil {
		return specs.Process{}, err
	}
	return *s.Process, nil
}

func newSpec() *specs.Spec {
	return &specs.Spec{Version: ociVersion, Process: &specs.Process{}, Linux: &specs.Linux{}}
}

func run(table []step, in *Input, s *specs.Spec) error {
	for _, st := range table {
		if err := st.apply(in, s); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

// Marshal encodes s as config.json. JSON holds UTF-8 only, and the encoder
// would replace other bytes without a word: text that is not valid UTF-8, as
// an environment value may be, is refused with its name instead.
func Marshal(s *specs.Spec) ([]byte, error) {
	if err := checkText(s); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, fmt.Errorf("encode OCI spec: %w", err)
	}
	return b.Bytes(), nil
}

// checkText refuses the texts of a spec that JSON or the kernel cannot carry.
func checkText(s *specs.Spec) error {
	if p := s.Process; p != nil {
		for _, kv := range p.Env {
			name, _, _ := strings.Cut(kv, "=")
			if err := text(fmt.Sprintf("environment variable %q", name), kv); err != nil {
				return err
			}
		}
		for i, a := range p.Args {
			if err := text(fmt.Sprintf("argument %d", i), a); err != nil {
				return err
			}
		}
		if err := text("working directory", p.Cwd); err != nil {
			return err
		}
	}
	for _, m := range s.Mounts {
		if err := text(fmt.Sprintf("mount at %q", m.Destination), m.Destination+m.Source); err != nil {
			return err
		}
	}
	for k, v := range s.Annotations {
		if err := text(fmt.Sprintf("annotation %q", k), k+v); err != nil {
			return err
		}
	}
	if s.Root != nil {
		if err := text("root file system path", s.Root.Path); err != nil {
			return err
		}
	}
	return text("hostname", s.Hostname)
}

func text(what, v string) error {
	switch {
	case strings.IndexByte(v, 0) >= 0:
		return invalid("%s contains a NUL byte", what)
	case !utf8.ValidString(v):
		return invalid("%s is not valid UTF-8, which an OCI spec cannot carry", what)
	}
	return nil
}

func invalid(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{runtime.ErrInvalid}, a...)...)
}
