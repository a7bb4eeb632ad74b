package kubelet

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/kubelet/node"
)

func page(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// A connection kept alive would outlive the pod.
	req.Close = true
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// TestHostPort: a port of the machine leads to the pod, on the machine's address
// and on loopback, and no longer when the pod has gone.
func TestHostPort(t *testing.T) {
	n, ctx := beside(t)
	up(ctx, t, n, "hostport", `
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: HTTPD
    ports: [{containerPort: 80, hostPort: 8031}]
    readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
`)
	for _, host := range []string{nodeIP, "127.0.0.1"} {
		if got, err := page(ctx, "http://"+host+":8031/"); err != nil || !strings.Contains(got, "It works!") {
			t.Errorf("%s: %q, %v", host, got, err)
		}
	}
	check(t, withdraw(ctx, n, "hostport"))
	for _, host := range []string{nodeIP, "127.0.0.1"} {
		if got, err := page(ctx, "http://"+host+":8031/"); err == nil {
			t.Errorf("%s still answers: %q", host, got)
		}
	}
}

// TestHostNetwork: the pod has the machine's links and ports. (Its address is
// for a kubelet under an API server to say.)
func TestHostNetwork(t *testing.T) {
	n, ctx := beside(t)
	p := up(ctx, t, n, "hostnet", `
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: BUSYBOX
    command: [httpd, -f, -p, "8032", -h, /etc]
    readinessProbe: {httpGet: {path: /passwd, port: 8032}, periodSeconds: 1}
`)
	if got, err := page(ctx, "http://"+nodeIP+":8032/passwd"); err != nil || !strings.Contains(got, "root:") {
		t.Errorf("%q, %v", got, err)
	}
	if got := shell(ctx, t, n, p, "web", "ip -o link"); !strings.Contains(got, "node0") {
		t.Errorf("links: %s", got)
	}
}

// TestUserNamespace: root in the pod is nobody on the machine, and volumes and
// files are owned as the pod sees them.
func TestUserNamespace(t *testing.T) {
	n, ctx := beside(t)
	status := must[*runtimeapi.StatusResponse](t)(n.Env.Runtime.Status(ctx, &runtimeapi.StatusRequest{}))
	able := false
	for _, h := range status.RuntimeHandlers {
		able = able || h.Name == "" && h.GetFeatures().GetUserNamespaces()
	}
	if !able {
		t.Skip("needs the default handler's user namespaces")
	}
	p := up(ctx, t, n, "userns", `
  hostUsers: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: BUSYBOX
    command: [sh, -c, "echo x >/share/f; FOREVER"]
    readinessProbe: {exec: {command: [cat, /share/f]}, periodSeconds: 1}
    volumeMounts: [{name: share, mountPath: /share}]
  volumes: [{name: share, emptyDir: {}}]
`)
	f := strings.Fields(shell(ctx, t, n, p, "main", "cat /proc/self/uid_map; id -u; stat -c %u /share/f"))
	if len(f) != 5 || f[0] != "0" || f[1] == "0" || f[2] != "65536" || f[3] != "0" || f[4] != "0" {
		t.Errorf("map, user and owner: %v", f)
	}
	if mapped := hostUser(ctx, t, n, p.Container("main")); mapped != f[1] {
		t.Errorf("the machine sees user %s, the map says %s", mapped, f[1])
	}
}

// hostUser is the user of a container's first process as the machine sees it.
func hostUser(ctx context.Context, t *testing.T, n *node.Node, c *node.Container) string {
	t.Helper()
	id := cri(ctx, t, n, c).Id
	for _, p := range n.Env.Processes() {
		cg, err := os.ReadFile("/proc/" + itoa(p.PID) + "/cgroup")
		if err != nil || !strings.Contains(string(cg), id) {
			continue
		}
		b := must[[]byte](t)(os.ReadFile("/proc/" + itoa(p.PID) + "/status"))
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "Uid:" {
				return f[1]
			}
		}
	}
	t.Fatal("the container's process was not found by its cgroup")
	return ""
}
