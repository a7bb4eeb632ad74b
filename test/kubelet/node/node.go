// Package node runs a real kubelet over a private ocid, alone with static pods
// or under an API server, and talks to its HTTP API.
//
// It knows the few fields of Kubernetes' objects that tests look at, so that
// neither Kubernetes nor its clients become dependencies of the product. All
// that the kubelet writes is below the environment's directory or on a tmpfs of
// the private mount namespace; its cgroups are below the environment's parent.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/test/harness"
)

// Options of a node. Env is needed, with its daemon running.
type Options struct {
	Env        *harness.Env
	Name       string         // of the node; "" is "node"
	IP         string         // of the node, on an interface that is up
	Config     map[string]any // laid over the kubelet's configuration, top-level keys
	Kubeconfig string         // "" runs alone, with static pods only
	Args       []string       // more command line
	Vars       []string       // more environment
}

// Node is one kubelet and the daemon below it.
type Node struct {
	Env       *harness.Env
	Name      string
	IP        string
	Manifests string // directory of static pods

	o      Options
	dir    string
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{}
	client *http.Client
}

// Binary finds a program that hack/tools has built.
func Binary(name string) (string, error) {
	cache, err := harness.CacheDir()
	if err != nil {
		return "", err
	}
	p := filepath.Join(cache, "bin", name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("%s is not built (hack/tools %s): %w", name, name, err)
	}
	return p, nil
}

// New lays out the node's directories; its kubelet is started by Start.
func New(o Options) (*Node, error) {
	if o.Name == "" {
		o.Name = "node"
	}
	n := &Node{Env: o.Env, Name: o.Name, IP: o.IP, o: o, dir: filepath.Join(o.Env.Dir, "kubelet-"+o.Name)}
	n.Manifests = filepath.Join(n.dir, "manifests")
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return nil, err
	}
	if err := o.Env.MountLoop(n.dir, 4<<30); err != nil {
		return nil, err
	}
	for _, d := range []string{"root", "manifests", "logs", "certs", "plugins"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	resolv := "nameserver 127.0.0.1\n"
	if err := os.WriteFile(filepath.Join(n.dir, "resolv.conf"), []byte(resolv), 0o644); err != nil {
		return nil, err
	}
	for _, r := range harness.CgroupRoots() {
		if err := os.MkdirAll(filepath.Join(r, o.Env.CgroupDir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := inheritCpuset(o.Env.CgroupDir); err != nil {
		return nil, err
	}
	n.client = &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	return n, nil
}

// inheritCpuset fills a v1 cpuset, which starts empty and then takes no process.
func inheritCpuset(parent string) error {
	const top = "/sys/fs/cgroup/cpuset"
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(top, f))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(top, parent, f), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Dir is the node's own file system.
func (n *Node) Dir() string { return n.dir }

// config is what the kubelet is told.
func (n *Node) config(over map[string]any) map[string]any {
	c := map[string]any{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix://" + n.Env.Socket,
		"staticPodPath":            n.Manifests,
		"podLogsDir":               filepath.Join(n.dir, "logs"),
		"volumePluginDir":          filepath.Join(n.dir, "plugins"),
		"resolvConf":               filepath.Join(n.dir, "resolv.conf"),
		"address":                  "0.0.0.0",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               n.Env.CgroupParent,
		"failSwapOn":               false,
		"failCgroupV1":             false,
		"enableServer":             true,
		"enableDebuggingHandlers":  true,
		"fileCheckFrequency":       "1s",
		"syncFrequency":            "2s",
		"registerNode":             n.o.Kubeconfig != "",
		"seccompDefault":           true,
		"logging":                  map[string]any{"verbosity": 4},
		"shutdownGracePeriod":      "0s",
		// The machine may be nearly full; that is not what is tested.
		"evictionHard":                map[string]any{"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
	}
	if n.Env.Systemd {
		// The kubelet writes the levels of a slice as those of a path.
		c["cgroupDriver"] = "systemd"
		c["cgroupRoot"] = "/" + strings.ReplaceAll(strings.TrimSuffix(n.Env.CgroupParent, ".slice"), "-", "/")
	}
	maps.Copy(c, n.o.Config)
	maps.Copy(c, over)
	return c
}

// Start starts the kubelet and waits until it is healthy. The keys of over
// replace those of the configuration for this start.
func (n *Node) Start(ctx context.Context, over map[string]any) error {
	bin, err := Binary("kubelet")
	if err != nil {
		return err
	}
	conf, err := json.MarshalIndent(n.config(over), "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(n.dir, "kubelet.json")
	if err := os.WriteFile(file, conf, 0o644); err != nil {
		return err
	}
	if n.log == nil {
		if n.log, err = os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			return err
		}
	}
	args := append([]string{
		"--config", file, "--root-dir", filepath.Join(n.dir, "root"), "--cert-dir", filepath.Join(n.dir, "certs"),
		"--hostname-override", n.Name, "--node-ip", n.IP,
	}, n.o.Args...)
	if n.o.Kubeconfig != "" {
		args = append(args, "--kubeconfig", n.o.Kubeconfig)
	}
	c := n.Env.Command(bin, args...)
	c.Stdout, c.Stderr = n.log, n.log
	c.Env = append(os.Environ(), n.o.Vars...)
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		// Whoever waits for the kubelet sees that it has ended.
		_ = c.Wait()
		close(done)
	}()
	n.cmd, n.exited = c, done
	return n.healthy(ctx)
}

func (n *Node) healthy(ctx context.Context) error {
	return n.Await(ctx, "a healthy kubelet", func() (bool, error) {
		select {
		case <-n.exited:
			return false, fmt.Errorf("the kubelet ended; the end of its log:\n%s", Tail(n.LogFile(), 15))
		default:
		}
		b, err := n.Get(ctx, "/healthz")
		return err == nil && string(b) == "ok", nil
	})
}

// Signal sends a signal to the kubelet and waits for its end.
func (n *Node) Signal(sig unix.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-n.exited:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("the kubelet did not end within 30 s of %v", sig)
	}
}

// Close ends the kubelet. Its files go with the environment's.
func (n *Node) Close() error {
	err := n.Signal(unix.SIGKILL)
	if n.log != nil {
		n.log.Close()
	}
	return err
}

// LogFile is where the kubelet's output goes, over all its starts.
func (n *Node) LogFile() string { return filepath.Join(n.Env.Dir, "kubelet-"+n.Name+".log") }

// Tail gives the last lines of a file.
func Tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	l := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

// Await asks again and again until the answer is yes: the kubelet announces
// nothing. An error ends it.
func (n *Node) Await(ctx context.Context, what string, f func() (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := f()
		if err != nil {
			return fmt.Errorf("awaiting %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("awaiting %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// Confine prepares the private mount namespace for kubelets: the directories
// whose names are built into the kubelet become tmpfs, and the kernel settings
// that it insists on become files of ours, so that the machine's stay.
func Confine(dir string) error {
	for _, d := range []string{"/var/log", "/var/lib"} {
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", d, err)
		}
	}
	// A container in a user namespace may mount its /proc only where one is wholly
	// in sight, and the files below cover parts of the usual one.
	whole := filepath.Join(dir, "proc")
	if err := os.Mkdir(whole, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", whole, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a whole /proc: %w", err)
	}
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(dir, "sysctl-"+strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover /proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// Address makes an interface that carries a node's address, with a default
// route through it, in the present network namespace.
func Address(ip net.IP) error {
	for _, args := range [][]string{
		{"link", "add", "node0", "type", "veth", "peer", "name", "node0peer"},
		{"address", "add", ip.String() + "/24", "dev", "node0"},
		{"link", "set", "node0", "up"},
		{"link", "set", "node0peer", "up"},
		{"route", "add", "default", "dev", "node0"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
