package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// dual is a bridge with both families, and whatever plugins follow it.
func dual(t *testing.T, e *harness.Env, more string) {
	t.Helper()
	const conflist = `{"cniVersion": "1.0.0", "name": "ocid-dual", "plugins": [
    {"type": "bridge", "bridge": "ocidbr6", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.90.0.0/16"}], [{"subnet": "fd00:90::/64"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}%s]}`
	check(t, os.WriteFile(filepath.Join(e.CNIConf, "10-bridge.conflist"), fmt.Appendf(nil, conflist, e.CNIState, more), 0o644))
}

// hostAddress gives the host (this network namespace) addresses beside loopback's.
func hostAddress(t *testing.T) (v4, v6 string) {
	t.Helper()
	v4, v6 = "192.0.2.7", "2001:db8::7"
	for _, args := range [][]string{{"link", "add", "ocidhost", "type", "bridge"}, {"link", "set", "ocidhost", "up"}, {"addr", "add", v4 + "/24", "dev", "ocidhost"}, {"addr", "add", v6 + "/64", "dev", "ocidhost", "nodad"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "ocidhost").Run() })
	return v4, v6
}

// dial says what comes back on a connection, or how it failed.
func dial(ctx context.Context, network, address, send string) string {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return "error: " + err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if send != "" {
		if _, err := c.Write([]byte(send)); err != nil {
			return "error: " + err.Error()
		}
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(string(buf[:n]))
}

func awaitDial(t *testing.T, ctx context.Context, network, address, send, want string) {
	t.Helper()
	var got string
	for range 40 { // until the server listens
		if got = dial(ctx, network, address, send); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s %s answers %q, want %q", network, address, got, want)
}

func TestDualStackAndHostPorts(t *testing.T) {
	e, ctx := own(t, harness.Options{})
	dual(t, e, "")
	check(t, warm(ctx, e))
	noLeaks(t, e)
	v4, v6 := hostAddress(t)
	pod := e.Pod("dual", false)
	pod.Hostname = "dual"
	pod.PortMappings = []*runtimeapi.PortMapping{
		{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 54, HostPort: 18094},
		{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18090},
		{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 18090},
		{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18091, HostIp: v4},
		{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18092, HostIp: v6},
		{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18093, HostIp: "127.0.0.1"},
	}
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.90.0.53", "fd00:90::53"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:3", "edns0"}}
	podID, id, err := e.Up(ctx, pod, "", harness.Shell("main",
		`nc -lk -p 80 -e echo tcp-answer & nc -u -lk -p 53 -e cat & nc -u -lk -p 54 -e cat & `+harness.Forever))
	check(t, err)
	st := must[*runtimeapi.PodSandboxStatusResponse](t)(e.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true}))
	n := st.Status.GetNetwork()
	if !strings.HasPrefix(n.GetIp(), "10.90.") || len(n.GetAdditionalIps()) != 1 || !strings.HasPrefix(n.AdditionalIps[0].GetIp(), "fd00:90::") {
		t.Fatalf("the pod's addresses are %v", n)
	}
	if got := says(t, ctx, e, id, "cat /etc/resolv.conf"); got != "search a.example b.example\nnameserver 10.90.0.53\nnameserver fd00:90::53\noptions ndots:3 edns0" {
		t.Errorf("resolv.conf is %q", got)
	}
	if got := says(t, ctx, e, id, "cat /etc/hosts"); !strings.Contains(got, n.GetIp()) {
		t.Errorf("hosts does not have the pod: %q", got)
	}
	tcp := func(host string, port int) {
		t.Helper()
		awaitDial(t, ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port)), "", "tcp-answer")
	}
	tcp(n.GetIp(), 80)
	tcp(n.AdditionalIps[0].GetIp(), 80)
	tcp("127.0.0.1", 18090)
	tcp(v4, 18090)
	tcp(v6, 18090)
	tcp(v4, 18091)
	tcp(v6, 18092)
	tcp("127.0.0.1", 18093)
	awaitDial(t, ctx, "udp", "127.0.0.1:18090", "ping", "ping")
	awaitDial(t, ctx, "udp", net.JoinHostPort(v4, "18094"), "ping", "ping")
	for _, closed := range []string{"127.0.0.1:18091", v4 + ":18093", v4 + ":18092"} {
		if got := dial(ctx, "tcp", closed, ""); !strings.HasPrefix(got, "error") {
			t.Errorf("%s answers %q, and its port is another address's", closed, got)
		}
	}
	// A second pod with one of the ports gets nothing, and leaves nothing.
	second := e.Pod("second", false)
	second.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18091, HostIp: v4}}
	if _, err := e.RunPod(ctx, second, ""); err == nil || !strings.Contains(err.Error(), "18091/tcp") || !strings.Contains(err.Error(), "test/dual") {
		t.Errorf("a second pod with the same host port: %v", err)
	}
	tcp(v4, 18091)
	check(t, e.Down(ctx, podID))
	if got := dial(ctx, "tcp", v4+":18091", ""); !strings.HasPrefix(got, "error") {
		t.Errorf("after the pod is gone its port answers %q", got)
	}
	// The port is free again.
	podID = must[string](t)(e.RunPod(ctx, second, ""))
	check(t, e.Down(ctx, podID))
}

// TestCapabilityArgs: what the pod asks of the network reaches a plugin that
// can do it; a plugin of the test's own stands for a bandwidth limiter.
func TestCapabilityArgs(t *testing.T) {
	bin := t.TempDir()
	for _, p := range []string{"bridge", "host-local", "portmap"} {
		check(t, os.Symlink("/usr/lib/cni/"+p, filepath.Join(bin, p)))
	}
	seen := filepath.Join(bin, "seen")
	// The result of a chained plugin is that of the one before it.
	check(t, os.WriteFile(filepath.Join(bin, "witness"), []byte(`#!/bin/sh
in=$(cat)
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit; }
[ "$CNI_COMMAND" = ADD ] || exit 0
echo "$in" > `+seen+`
echo "$in" | sed 's/.*"prevResult":\({.*}\),"runtimeConfig".*/\1/;t;s/.*"prevResult":\({.*}\),"type".*/\1/'
`), 0o755))
	e, ctx := own(t, harness.Options{CNIDir: bin})
	dual(t, e, `, {"type": "witness", "capabilities": {"bandwidth": true, "dns": true}}`)
	check(t, warm(ctx, e))
	noLeaks(t, e)
	pod := e.Pod("limited", false)
	pod.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Gi"}
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.90.0.53"}}
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	b := string(must[[]byte](t)(os.ReadFile(seen)))
	for _, want := range []string{`"ingressRate":10000000`, `"egressRate":1073741824`, `"ingressBurst":2147483647`, `"servers":["10.90.0.53"]`} {
		if !strings.Contains(b, want) {
			t.Errorf("the plugin was not given %s: %s", want, b)
		}
	}
	check(t, e.Down(ctx, podID))
	bad := e.Pod("bad", false)
	bad.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "much"}
	if _, err := e.RunPod(ctx, bad, ""); err == nil || !strings.Contains(err.Error(), "ingress-bandwidth") {
		t.Errorf("a rate that is none: %v", err)
	}
}
