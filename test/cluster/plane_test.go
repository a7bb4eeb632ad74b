package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/kubelet/node"
)

// The network that the control plane and the nodes share, and their addresses.
const (
	lan   = "192.168.66."
	plane = lan + "1"
)

// cluster is a control plane in the test's own namespaces, and nodes in network
// namespaces of their own, on one bridge with it.
type cluster struct {
	dir   string
	pki   *pki
	admin string // kubeconfig
	procs []*process
	nodes []*node.Node
}

// process is one program of the control plane.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  string
}

func start(ctx context.Context) (c *cluster, err error) {
	c = &cluster{}
	if c.dir, err = os.MkdirTemp("", "ocid-cluster-"); err != nil {
		return nil, err
	}
	if err := node.Confine(c.dir); err != nil {
		return c, err
	}
	if err := run("ip link add lan type bridge", "ip address add "+plane+"/24 dev lan", "ip link set lan up"); err != nil {
		return c, err
	}
	if err := c.certificates(); err != nil {
		return c, err
	}
	if err := c.launchPlane(ctx); err != nil {
		return c, err
	}
	return c, c.addNode(ctx, 1)
}

// run runs commands that have no spaces in their arguments.
func run(commands ...string) error {
	for _, c := range commands {
		f := strings.Fields(c)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", c, err, out)
		}
	}
	return nil
}

func (c *cluster) certificates() (err error) {
	if c.pki, err = newPKI(filepath.Join(c.dir, "pki")); err != nil {
		return err
	}
	if err := c.pki.server("apiserver", net.ParseIP(plane), net.ParseIP("127.0.0.1"), net.ParseIP("10.96.0.1")); err != nil {
		return err
	}
	if err := c.pki.client("admin", "admin", "system:masters"); err != nil {
		return err
	}
	// Any key pair will do to sign tokens of service accounts.
	if err := c.pki.client("tokens", "tokens", "tokens"); err != nil {
		return err
	}
	c.admin, err = c.pki.kubeconfig("admin", "https://"+plane+":6443")
	return err
}

func (c *cluster) launchPlane(ctx context.Context) error {
	f := c.pki.file
	for _, p := range [][]string{
		{
			"etcd", "--data-dir=" + filepath.Join(c.dir, "etcd"), "--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
		},
		{
			"kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + plane,
			"--client-ca-file=" + f("ca.crt"), "--tls-cert-file=" + f("apiserver.crt"), "--tls-private-key-file=" + f("apiserver.key"),
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + f("tokens.key"),
			"--service-account-signing-key-file=" + f("tokens.key"), "--service-cluster-ip-range=10.96.0.0/16",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--kubelet-client-certificate=" + f("admin.crt"), "--kubelet-client-key=" + f("admin.key"),
			"--kubelet-preferred-address-types=InternalIP",
		},
		{
			"kube-controller-manager", "--kubeconfig=" + c.admin, "--service-account-private-key-file=" + f("tokens.key"),
			"--root-ca-file=" + f("ca.crt"), "--leader-elect=false",
		},
		{"kube-scheduler", "--kubeconfig=" + c.admin, "--leader-elect=false"},
	} {
		if err := c.launch(p[0], p[1:]...); err != nil {
			return err
		}
		if p[0] != "kube-apiserver" {
			continue
		}
		if err := c.await(ctx, "the API server", func() bool {
			_, err := c.kubectl(ctx, "get", "--raw", "/readyz")
			return err == nil
		}); err != nil {
			return err
		}
	}
	return c.await(ctx, "the default service account", func() bool {
		_, err := c.kubectl(ctx, "get", "serviceaccount", "default")
		return err == nil
	})
}

// launch starts one program with a log of its own.
func (c *cluster) launch(name string, args ...string) error {
	bin, err := node.Binary(name)
	if name == "etcd" {
		bin, err = exec.LookPath("etcd")
	}
	if err != nil {
		return err
	}
	p := &process{cmd: exec.Command(bin, args...), done: make(chan struct{}), log: filepath.Join(c.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		// Who waits for the program sees that it has ended.
		_ = p.cmd.Wait()
		close(p.done)
	}()
	c.procs = append(c.procs, p)
	return nil
}

// await asks again until the answer is yes, or a program of the plane has ended.
func (c *cluster) await(ctx context.Context, what string, f func() bool) error {
	tick := time.NewTicker(200 * time.Millisecond) // kubectl has no wait for what is not there yet
	defer tick.Stop()
	for !f() {
		for _, p := range c.procs {
			select {
			case <-p.done:
				return fmt.Errorf("awaiting %s: %s ended; the end of its log:\n%s", what, p.cmd.Path, node.Tail(p.log, 15))
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("awaiting %s: %w", what, ctx.Err())
		}
	}
	return nil
}

// addNode brings up node number i: a network namespace on the bridge, a daemon
// and a kubelet in it, and routes from and to the other nodes' pods.
func (c *cluster) addNode(ctx context.Context, i int) error {
	ns, ip := filepath.Join(c.dir, fmt.Sprintf("netns-%d", i)), fmt.Sprint(lan, 10+i)
	if err := os.WriteFile(ns, nil, 0o644); err != nil {
		return err
	}
	in := "nsenter --net=" + ns + " "
	if err := run(
		"unshare --net="+ns+" true",
		fmt.Sprintf("ip link add port%d type veth peer name eth0 netns %s", i, ns),
		fmt.Sprintf("ip link set port%d master lan up", i),
		in+"ip link set lo up", in+"ip link set eth0 up",
		in+"ip address add "+ip+"/24 dev eth0", in+"ip route add default via "+plane,
		fmt.Sprintf("ip route add 10.89.%d.0/24 via %s", i, ip),
	); err != nil {
		return err
	}
	for j := range c.nodes {
		if err := run(
			fmt.Sprintf("%sip route add 10.89.%d.0/24 via %s%d", in, j+1, lan, 11+j),
			fmt.Sprintf("nsenter --net=%s/netns-%d ip route add 10.89.%d.0/24 via %s", c.dir, j+1, i, ip),
		); err != nil {
			return err
		}
	}
	e, err := harness.New(ctx, harness.Options{
		Progress: os.Stderr, LoopRoot: 4 << 30, NetNS: ns, Listen: plane + ":0", Subnet: fmt.Sprintf("10.89.%d.0/24", i),
	})
	if err != nil {
		return err
	}
	name := fmt.Sprintf("node-%d", i)
	n, err := c.register(ctx, e, name, ip)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	c.nodes = append(c.nodes, n)
	if err := n.Start(ctx, nil); err != nil {
		return err
	}
	return c.await(ctx, name+" to be ready", func() bool {
		out, err := c.kubectl(ctx, "get", "node", name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		return err == nil && out == "True"
	})
}

func (c *cluster) register(ctx context.Context, e *harness.Env, name, ip string) (*node.Node, error) {
	if err := c.pki.client(name, "system:node:"+name, "system:nodes"); err != nil {
		return nil, err
	}
	conf, err := c.pki.kubeconfig(name, "https://"+plane+":6443")
	if err != nil {
		return nil, err
	}
	if err := e.Start(ctx); err != nil {
		return nil, err
	}
	return node.New(node.Options{Env: e, Name: name, IP: ip, Kubeconfig: conf})
}

// command is a kubectl that acts as the administrator.
func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	bin, err := node.Binary("kubectl")
	if err != nil {
		bin = "kubectl" // starting it says that it is missing
	}
	k := exec.CommandContext(ctx, bin, append([]string{"--kubeconfig", c.admin, "--cache-dir", filepath.Join(c.dir, "cache")}, args...)...)
	// An answer is wanted even if a grandchild holds the pipes.
	k.WaitDelay = 5 * time.Second
	return k
}

// kubectl gives what it printed; the error holds what it said.
func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return c.pipe(ctx, "", args...)
}

// pipe runs kubectl with an input.
func (c *cluster) pipe(ctx context.Context, stdin string, args ...string) (string, error) {
	k := c.command(ctx, args...)
	var stderr bytes.Buffer
	k.Stdin, k.Stderr = strings.NewReader(stdin), &stderr
	out, err := k.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), err
}

// logs lists the log files of everything.
func (c *cluster) logs() []string {
	var out []string
	for _, p := range c.procs {
		out = append(out, p.log)
	}
	for _, n := range c.nodes {
		out = append(out, n.LogFile())
	}
	return out
}

// save copies the logs to a directory.
func (c *cluster) save(dir string, w io.Writer) {
	for _, f := range c.logs() {
		if err := copyFile(filepath.Join(dir, "test-cluster-"+filepath.Base(f)), f); err != nil {
			fmt.Fprintln(w, err)
		}
	}
	for _, n := range c.nodes {
		if err := copyFile(filepath.Join(dir, "test-cluster-ocid-"+n.Name+".log"), n.Env.LogFile()); err != nil {
			fmt.Fprintln(w, err)
		}
	}
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// close ends everything and removes it.
func (c *cluster) close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Close(), n.Env.Close())
	}
	for _, p := range c.procs {
		// It may have ended by itself.
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	// Nothing may be removed below what is mounted here: a /proc, and namespaces.
	if err := harness.UnmountBelow(c.dir); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}
