package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	profiles "go.podman.io/common/pkg/seccomp"

	"github.com/ocid-io/ocid/runtime"
)

// TestRefused: each request is invalid, and the message names why.
func TestRefused(t *testing.T) {
	mount := func(m runtime.Mount) func(*Input) {
		return func(in *Input) { in.Container.Mounts = []runtime.Mount{m} }
	}
	profile := func(body string) func(*Input) {
		return func(in *Input) { sec(in).Seccomp, in.SeccompFile = runtime.SeccompLocalhost, []byte(body) }
	}
	sysctl := func(k, v string) func(*Input) {
		return func(in *Input) { in.Pod.Config.Sysctls = map[string]string{k: v} }
	}
	res := func(r runtime.Resources) func(*Input) { return func(in *Input) { in.Container.Resources = &r } }
	for name, c := range map[string]struct {
		change func(*Input)
		says   string
	}{
		"no command":          {func(in *Input) { in.Image.Entrypoint, in.Image.Cmd = nil, nil }, "no command"},
		"empty command":       {func(in *Input) { in.Container.Command = []string{""} }, "empty string"},
		"NUL in argument":     {func(in *Input) { in.Container.Args = []string{"a\x00b"} }, "argument 1"},
		"env not UTF-8":       {func(in *Input) { in.Container.Env = []runtime.EnvVar{{Key: "BIN", Value: []byte{0xff}}} }, `"BIN" is not valid UTF-8`},
		"env NUL":             {func(in *Input) { in.Container.Env = []runtime.EnvVar{{Key: "N", Value: []byte{0}}} }, `"N" contains a NUL`},
		"env name":            {func(in *Input) { in.Container.Env = []runtime.EnvVar{{Key: "a=b"}} }, "a=b"},
		"image env not UTF-8": {func(in *Input) { in.Image.Env = []string{"IMG=\xff"} }, `"IMG"`},
		"no root":             {func(in *Input) { in.RootPath = "" }, "root file system"},
		"missing pin":         {func(in *Input) { in.Namespaces = nil }, "net namespace"},
		"unknown mode":        {func(in *Input) { sec(in).Namespaces.PID = "moon" }, "moon"},
		"target network":      {func(in *Input) { sec(in).Namespaces.Network = runtime.NamespaceTarget }, "PID namespace only"},
		"empty user ns":       {func(in *Input) { sec(in).Namespaces.User = &runtime.UserNamespace{} }, "mappings"},
		"id range": {func(in *Input) {
			userNS(in)
			in.Pod.Config.Namespaces.User.UIDs = []runtime.IDMapping{{HostID: 1 << 31, Length: 1 << 31}}
		}, "range of ids"},
		"relative mount source": {mount(runtime.Mount{HostPath: "x", ContainerPath: "/x"}), "host path"},
		"no mount target":       {mount(runtime.Mount{HostPath: "/x"}), "container path"},
		"mount over root":       {mount(runtime.Mount{HostPath: "/x", ContainerPath: "/a/.."}), "root"},
		"rro without ro":        {mount(runtime.Mount{HostPath: "/x", ContainerPath: "/x", RecursiveReadOnly: true}), "without read-only"},
		"rro with rslave":       {mount(runtime.Mount{HostPath: "/x", ContainerPath: "/x", ReadOnly: true, RecursiveReadOnly: true, Propagation: "rslave"}), "private"},
		"propagation":           {mount(runtime.Mount{HostPath: "/x", ContainerPath: "/x", Propagation: "odd"}), "odd"},
		"half idmap":            {mount(runtime.Mount{HostPath: "/x", ContainerPath: "/x", UIDMappings: []runtime.IDMapping{{Length: 1}}}), "together"},
		"too many volumes":      {func(in *Input) { in.Image.Volumes = make([]string, maxImageVolumes+1) }, "volumes"},
		"device permissions":    {func(in *Input) { in.Container.Devices = []runtime.Device{{HostPath: "/dev/x", Permissions: "rx"}} }, "rx"},
		"device path":           {func(in *Input) { in.HostDevices = []specs.LinuxDevice{{Path: "/dev/../etc/x", Type: "c"}} }, "clean"},
		"device type":           {func(in *Input) { in.HostDevices = []specs.LinuxDevice{{Path: "/dev/p", Type: "p"}} }, "neither"},
		"capability":            {func(in *Input) { sec(in).AddCapabilities = []string{"FLY"} }, "FLY"},
		"dropped capability":    {func(in *Input) { sec(in).DropCapabilities = []string{"FLY"} }, "FLY"},
		"ambient capability":    {func(in *Input) { sec(in).AmbientCaps = []string{"FLY"} }, "FLY"},
		"masked path":           {func(in *Input) { sec(in).MaskedPaths = []string{"proc"} }, "proc"},
		"apparmor kind":         {func(in *Input) { sec(in).AppArmor = "odd" }, "odd"},
		"apparmor name":         {func(in *Input) { sec(in).AppArmor, sec(in).AppArmorProfile = "localhost", "a b" }, "a b"},
		"selinux":               {func(in *Input) { sec(in).SELinux = &runtime.SELinux{Type: "a:b"} }, "a:b"},
		"seccomp kind":          {func(in *Input) { sec(in).Seccomp = "odd" }, "odd"},
		"seccomp empty":         {profile(""), "JSON"},
		"seccomp no action":     {profile("{}"), "default action"},
		"seccomp action":        {profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"GO"}]}`), "GO"},
		"seccomp no name":       {profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_KILL"}]}`), "no system call"},
		"seccomp two names":     {profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_KILL"}]}`), "both"},
		"seccomp operator":      {profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_KILL","args":[{"index":0,"op":"?"}]}]}`), "operator"},
		"seccomp argument":      {profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_KILL","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`), "argument 6"},
		"seccomp errno":         {profile(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrno":"ENOWAY"}`), "ENOWAY"},
		"seccomp flag":          {profile(`{"defaultAction":"SCMP_ACT_ERRNO","flags":["X"]}`), "flag"},
		"seccomp arch":          {profile(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["X"]}`), "architecture"},
		"seccomp trailing":      {profile(`{"defaultAction":"SCMP_ACT_ERRNO"} {}`), "follows"},
		"seccomp huge":          {profile(strings.Repeat(" ", maxSeccompFile+1)), "larger"},
		"sysctl of the host":    {sysctl("vm.swappiness", "1"), "would change the host"},
		"sysctl hostname":       {sysctl("kernel.hostname", "x"), "would change the host"},
		"sysctl traversal":      {sysctl("net/../../vm/swappiness", "1"), "sysctl name"},
		"sysctl value":          {sysctl("net.x", "1\n2"), "value"},
		"sysctl host network":   {func(in *Input) { sysctl("net.x", "1")(in); netMode(in, runtime.NamespaceNode) }, "shares with the host"},
		"unified on v1":         {res(runtime.Resources{Unified: map[string]string{"memory.high": "1"}}), "cgroup v2"},
		"unified path": {func(in *Input) {
			in.CgroupV2 = true
			res(runtime.Resources{Unified: map[string]string{"../x.y": "1"}})(in)
		}, "../x.y"},
		"unified cgroup": {func(in *Input) {
			in.CgroupV2 = true
			res(runtime.Resources{Unified: map[string]string{"cgroup.kill": "1"}})(in)
		}, "cgroup.kill"},
		"hugepage size":       {res(runtime.Resources{HugepageLimit: map[string]uint64{"../2MB": 1}}), "2MB"},
		"swap below memory":   {res(runtime.Resources{Memory: new(int64(9)), MemorySwap: new(int64(8))}), "below"},
		"swap without memory": {res(runtime.Resources{MemorySwap: new(int64(8))}), "needs a memory limit"},
		"cpuset":              {res(runtime.Resources{CPUSetCPUs: "0-1\n"}), "cpuset"},
		"oom score":           {res(runtime.Resources{OOMScoreAdj: new(1001)}), "1001"},
	} {
		t.Run(name, func(t *testing.T) {
			in := base()
			c.change(&in)
			_, err := Build(in)
			if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an invalid request that mentions %q", err, c.says)
			}
		})
	}
}

func TestBuildIsPure(t *testing.T) {
	in := base()
	in.Container.Mounts = []runtime.Mount{{HostPath: "/v", ContainerPath: "/dev/shm"}, {HostPath: "/w", ContainerPath: "/a/b/c"}}
	sec(&in).Seccomp = runtime.SeccompDefault
	before, _ := json.Marshal(in)
	var first []byte
	for range 3 {
		s, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, b) {
			t.Error("two specs of one input differ")
		}
		first = b
	}
	if after, _ := json.Marshal(in); !bytes.Equal(before, after) {
		t.Error("the input was changed")
	}
}

func TestProcessOfExec(t *testing.T) {
	in := base()
	sec(&in).NoNewPrivileges = true
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Process(in, []string{"id", "-u"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Terminal || !slices.Contains(p.Env, "TERM=xterm") || !slices.Equal(p.Args, []string{"id", "-u"}) {
		t.Errorf("process %+v", p)
	}
	same := *s.Process
	same.Args, same.Terminal, same.Env = p.Args, true, p.Env
	if !reflect.DeepEqual(p, same) {
		t.Errorf("got %+v, want the container's %+v", p, same)
	}
	for _, args := range [][]string{nil, {""}, {"a\x00"}, {"\xff"}} {
		if _, err := Process(in, args, false); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("args %q: got %v", args, err)
		}
	}
}

func TestMarshalRefusesWhatJSONWouldReplace(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{Env: []string{"KEY=\xc3\x28"}}}
	if _, err := Marshal(s); err == nil || !strings.Contains(err.Error(), `"KEY"`) {
		t.Errorf("got %v", err)
	}
}

// TestSeccompMatchesLibrary holds our conversion, which needs no cgo, to the
// one that comes with the profile.
func TestSeccompMatchesLibrary(t *testing.T) {
	for _, set := range [][]string{nil, defaultCaps, knownCaps, {"CAP_BPF"}, {"CAP_SYS_ADMIN", "CAP_AUDIT_WRITE"}} {
		got, err := convertSeccomp(profiles.DefaultProfile(), set)
		if err != nil {
			t.Fatal(err)
		}
		want, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: set}}})
		if err != nil {
			t.Skipf("this build has no conversion to compare with: %v", err)
		}
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		if !bytes.Equal(g, w) {
			t.Errorf("capabilities %v: the profiles differ", set)
		}
	}
}

func TestSeccompCacheIsBounded(t *testing.T) {
	c := seccompCache{byCap: map[string]*specs.LinuxSeccomp{}}
	for i := range 2 * maxSeccompCache {
		if _, err := c.get([]string{strings.Repeat("x", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.byCap) > maxSeccompCache {
		t.Errorf("%d profiles kept", len(c.byCap))
	}
}

func BenchmarkBuild(b *testing.B) {
	in := base()
	sec(&in).Seccomp = runtime.SeccompDefault
	for b.Loop() {
		if _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuildAndMarshal(b *testing.B) {
	in := base()
	sec(&in).Seccomp = runtime.SeccompDefault
	for b.Loop() {
		s, err := Build(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Marshal(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeccompFirstTime(b *testing.B) {
	for b.Loop() {
		if _, err := convertSeccomp(profiles.DefaultProfile(), defaultCaps); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBoundingCapabilities compares with the kernel's own account of them.
func TestBoundingCapabilities(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "CapBnd:")
	if !ok {
		t.Fatal("no CapBnd in /proc/self/status")
	}
	mask, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := BoundingCapabilities(), (capBits(mask) & allCaps).names(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
