package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/mountinfo"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

// TestMain runs the tests in a network namespace of their own, which is the
// host as far as bridges and iptables rules go.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 || os.Getenv("OCID_NETWORK_TEST_NS") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "OCID_NETWORK_TEST_NS=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func needRoot(t testing.TB) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
}

const podA = runtime.PodID("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")

var pod = runtime.PodConfig{Name: runtime.PodName{Name: "p", Namespace: "ns", UID: "u"}}

func pin(t testing.TB, sysctls map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	t.Cleanup(func() { _ = Namespaces{}.Unpin(dir) })
	if err := (Namespaces{}).Pin(t.Context(), lifecycle.PinRequest{Dir: dir, Want: []string{"net", "ipc", "uts"}, Hostname: "box", Sysctls: sysctls}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func inside(t testing.TB, dir string, argv ...string) string {
	t.Helper()
	args := append([]string{"--net=" + dir + "/net", "--ipc=" + dir + "/ipc", "--uts=" + dir + "/uts"}, argv...)
	out, err := exec.Command("nsenter", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestPin(t *testing.T) {
	needRoot(t)
	before, _ := os.Readlink("/proc/self/ns/net")
	dir := pin(t, map[string]string{"net.ipv4.ip_forward": "1", "kernel/shmmni": "77", "fs.mqueue.msg_max": "9"})
	got := inside(t, dir, "sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max; cat /sys/class/net/lo/flags >/dev/null; ip -o link show lo 2>/dev/null || busybox ip link show lo")
	if !strings.HasPrefix(got, "box\n1\n77\n9\n") || !strings.Contains(got, "UP") {
		t.Fatalf("inside: %q", got)
	}
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Fatalf("the process itself moved from %s to %s", before, after)
	}
	ino := func() uint64 {
		var st unix.Stat_t
		if err := unix.Stat(dir+"/net", &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	first := ino()
	if err := (Namespaces{}).Pin(t.Context(), lifecycle.PinRequest{Dir: dir, Want: []string{"net", "ipc", "uts"}, Hostname: "box"}); err != nil || ino() != first {
		t.Fatalf("second Pin: %v, namespace changed: %v", err, ino() != first)
	}
	for range 2 {
		if err := (Namespaces{}).Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("left: %v", err)
	}
}

func TestPinRefuses(t *testing.T) {
	needRoot(t)
	all := []string{"net", "ipc", "uts"}
	for name, c := range map[string]struct {
		want    []string
		sysctls map[string]string
	}{
		"not namespaced":  {all, map[string]string{"kernel.panic": "1"}},
		"climbs":          {all, map[string]string{"net/../kernel/panic": "1"}},
		"absent":          {all, map[string]string{"net.no_such": "1"}},
		"bad value":       {all, map[string]string{"net.ipv4.ip_forward": "x"}},
		"host network":    {[]string{"ipc"}, map[string]string{"net.ipv4.ip_forward": "1"}},
		"host ipc":        {[]string{"net"}, map[string]string{"kernel.shmmax": "1"}},
		"user namespace":  {[]string{"user"}, nil},
		"unknown":         {[]string{"time"}, nil},
		"empty component": {all, map[string]string{"net..x": "1"}},
	} {
		dir := filepath.Join(t.TempDir(), "ns")
		err := Namespaces{}.Pin(t.Context(), lifecycle.PinRequest{Dir: dir, Want: c.want, Hostname: "h", Sysctls: c.sysctls})
		if !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		for key := range c.sysctls {
			if !strings.Contains(fmt.Sprint(err), key) {
				t.Errorf("%s: %v does not name the key", name, err)
			}
		}
		if left, _ := mountinfo.Under(dir); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

func TestMountShm(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "shm")
	t.Cleanup(func() { _ = mountinfo.Unmount(dir) })
	for range 2 {
		if err := MountShm(dir, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks*uint64(st.Bsize) != 1<<20 {
		t.Fatalf("size %d, %v", st.Blocks*uint64(st.Bsize), err)
	}
	if pts, _ := mountinfo.Under(dir); len(pts) != 1 {
		t.Fatalf("mounted %d times", len(pts))
	}
}

func BenchmarkPin(b *testing.B) {
	needRoot(b)
	dir := filepath.Join(b.TempDir(), "ns")
	for b.Loop() {
		if err := (Namespaces{}).Pin(b.Context(), lifecycle.PinRequest{Dir: dir, Want: []string{"net", "ipc", "uts"}, Hostname: "box"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := (Namespaces{}).Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// bed is a CNI set-up in a temporary directory.
type bed struct {
	*CNI
	conf, bin, cache, data string
}

func newBed(t *testing.T, timeout time.Duration) *bed {
	t.Helper()
	needRoot(t)
	base := t.TempDir()
	b := &bed{conf: base + "/conf", bin: base + "/bin", cache: base + "/cache", data: base + "/data"}
	for _, d := range []string{b.conf, b.bin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.open(t, timeout)
	return b
}

func (b *bed) open(t *testing.T, timeout time.Duration) {
	t.Helper()
	n, err := NewCNI(Options{ConfDir: b.conf, BinDirs: []string{b.bin, "/usr/lib/cni"}, CacheDir: b.cache, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	b.CNI = n
}

func (b *bed) bridge(extra string) string {
	return `{"cniVersion":"1.0.0","name":"testnet","plugins":[{"type":"bridge","bridge":"ocidt0","isGateway":true,"ipMasq":false,
"ipam":{"type":"host-local","dataDir":"` + b.data + `","ranges":[[{"subnet":"10.199.0.0/24"}],[{"subnet":"fd00:199::/64"}]]}}` + extra + `]}`
}

func (b *bed) write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (b *bed) leases(t *testing.T) []string {
	t.Helper()
	all, _ := filepath.Glob(b.data + "/testnet/*")
	var out []string
	for _, p := range all {
		if net.ParseIP(filepath.Base(p)) != nil {
			out = append(out, filepath.Base(p))
		}
	}
	return out
}

func (b *bed) clean(t *testing.T) {
	t.Helper()
	if l := b.leases(t); len(l) > 0 {
		t.Errorf("leaked addresses %v", l)
	}
	for _, d := range []string{"/attachments", "/results"} {
		if es, _ := os.ReadDir(b.cache + d); len(es) > 0 {
			t.Errorf("left in %s: %v", d, es)
		}
	}
}

func TestBridgeAddDel(t *testing.T) {
	b := newBed(t, 30*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(`,{"type":"portmap","capabilities":{"portMappings":true}}`))
	if err := b.Ready(); err != nil {
		t.Fatal(err)
	}
	dir := pin(t, nil)
	cfg := pod
	cfg.PortMappings = []runtime.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 18080}}
	ips, err := b.Add(t.Context(), podA, cfg, dir+"/net")
	if err != nil {
		t.Fatal(err)
	}
	if len(ips) != 2 || !strings.HasPrefix(ips[0], "10.199.0.") || !strings.HasPrefix(ips[1], "fd00:199::") {
		t.Fatalf("addresses %v", ips)
	}
	rules := func() string {
		out, _ := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
		return string(out)
	}
	if !strings.Contains(rules(), "18080") {
		t.Fatal("no rule for the host port")
	}
	// After a restart, with the configuration gone and the namespace unpinned.
	if err := os.Remove(b.conf + "/10-x.conflist"); err != nil {
		t.Fatal(err)
	}
	b.open(t, 30*time.Second)
	if err := b.Ready(); !errors.Is(err, runtime.ErrUnavailable) {
		t.Fatalf("Ready without configuration: %v", err)
	}
	if err := (Namespaces{}).Unpin(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Del(t.Context(), podA, cfg, dir+"/net"); err != nil {
			t.Fatal(err)
		}
	}
	b.clean(t)
	if strings.Contains(rules(), "18080") {
		t.Error("the host port's rule is left")
	}
}

func TestGC(t *testing.T) {
	b := newBed(t, 30*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(""))
	other := runtime.PodID(strings.Repeat("b", 64))
	for _, id := range []runtime.PodID{podA, other} {
		if _, err := b.Add(t.Context(), id, pod, pin(t, nil)+"/net"); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.GC(t.Context(), []runtime.PodID{other}); err != nil {
		t.Fatal(err)
	}
	if l := b.leases(t); len(l) != 2 { // one of each family
		t.Fatalf("leases %v", l)
	}
	if err := b.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b.clean(t)
}

func TestBadPlugins(t *testing.T) {
	for name, c := range map[string]struct {
		script string // "" leaves the plugin missing
		is     error
		says   string
	}{
		"fails":   {"[ $CNI_COMMAND = DEL ] && exit 0; echo broken-wire >&2; exit 3", nil, "broken-wire"},
		"reports": {`[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":7,"msg":"seven"}'; exit 1`, nil, "seven"},
		"garbage": {"[ $CNI_COMMAND = DEL ] && exit 0; echo not json", nil, "second"},
		"hangs":   {"[ $CNI_COMMAND = DEL ] && exit 0; sleep 999 & sleep 999", runtime.ErrTimeout, "second"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 2*time.Second)
			b.write(t, b.bin+"/second", "#!/bin/sh\ncat >/dev/null\n"+c.script+"\n")
			b.write(t, b.conf+"/10-x.conflist", b.bridge(`,{"type":"second"}`))
			_, err := b.Add(t.Context(), podA, pod, pin(t, nil)+"/net")
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("Add: %v", err)
			}
			b.clean(t)
		})
	}
}

func TestMissingPlugin(t *testing.T) {
	b := newBed(t, 5*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(`,{"type":"absent"}`))
	_, err := b.Add(t.Context(), podA, pod, pin(t, nil)+"/net")
	if err == nil || !strings.Contains(err.Error(), `"absent"`) || !strings.Contains(err.Error(), b.bin) {
		t.Fatalf("Add: %v", err)
	}
	// DEL cannot run either; once the plugin is there GC undoes it.
	b.write(t, b.bin+"/absent", "#!/bin/sh\ncat >/dev/null\n")
	if err := b.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b.clean(t)
}

func TestRefusals(t *testing.T) {
	b := newBed(t, 5*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(""))
	ports, rate, args := pod, pod, pod
	ports.PortMappings = []runtime.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 80}}
	rate.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "lots"}
	args.Name.Name = "a;K8S_POD_UID=0"
	for name, cfg := range map[string]runtime.PodConfig{"host port": ports, "bandwidth": rate, "argument": args} {
		if _, err := b.Add(t.Context(), podA, cfg, "/nowhere"); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.clean(t)
}

func TestReadyFollowsDirectory(t *testing.T) {
	b := newBed(t, 5*time.Second)
	if err := b.Ready(); !errors.Is(err, runtime.ErrUnavailable) {
		t.Fatalf("empty directory: %v", err)
	}
	await := func(want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for {
			list, _, _ := b.CNI.conf.current()
			name := ""
			if list != nil {
				name = list.Name
			}
			if name == want {
				return
			}
			if ctx.Err() != nil {
				t.Fatalf("current network %q, want %q", name, want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	b.write(t, b.conf+"/00-bad.conflist", "{")
	b.write(t, b.conf+"/20-y.conf", `{"cniVersion":"1.0.0","name":"y","type":"bridge"}`)
	await("y")
	b.write(t, b.conf+"/10-x.conflist", b.bridge(""))
	await("testnet")
	if err := os.Remove(b.conf + "/10-x.conflist"); err != nil {
		t.Fatal(err)
	}
	await("y")
	if err := os.RemoveAll(b.conf); err != nil {
		t.Fatal(err)
	}
	await("")
	if err := os.Mkdir(b.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	b.write(t, b.conf+"/20-y.conf", `{"cniVersion":"1.0.0","name":"z","type":"bridge"}`)
	await("z")
}

func TestStatus(t *testing.T) {
	b := newBed(t, 5*time.Second)
	b.write(t, b.bin+"/fake", "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = STATUS ] && { echo '{\"code\":50,\"msg\":\"no uplink\"}'; exit 1; }\n")
	b.write(t, b.conf+"/10.conflist", `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"fake"}]}`)
	if err := b.Ready(); !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "no uplink") {
		t.Fatalf("Ready: %v", err)
	}
}

func FuzzSysctlPath(f *testing.F) {
	for _, s := range []string{"net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/x.y", "..", "a/../b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if p, ok := sysctlPath(key); ok && !filepath.IsLocal(p) {
			t.Fatalf("%q -> %q", key, p)
		}
	})
}
