// Package harness starts the built binaries under a temporary root, gives a CRI
// client for them, and finds out what a run left behind.
//
// Everything happens in namespaces of its own (see Isolate) and below one
// temporary directory; cgroups are made under one parent named after it. Close
// removes all of it, whatever state the daemon is in.
package harness

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/images"
	"github.com/ocid-io/ocid/test/registry"
)

// Images that the set holds, under the names that a client uses.
const (
	Busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	Nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
	Big     = "docker.io/" + images.BigRepo + ":latest"
)

// Options of an environment. The zero value is what most tests want.
type Options struct {
	Big       bool      // serve the big image too
	Progress  io.Writer // what is being made; nil discards
	LoopRoot  int64     // bytes of a fresh ext4 for the root; 0 uses the temporary directory
	TmpRoot   string    // size of a tmpfs for the root, such as "64m"
	ExtraTOML string    // appended to the configuration
	CNIDir    string    // directory of network plugins; "" is Debian's
	NetNS     string    // network namespace of the daemon, a path; "" is the caller's
	Listen    string    // address of the registry; "" is a port of loopback
	Subnet    string    // addresses of pods, routed and not masqueraded; "" is a private one
	Prelude   func(*Env) error
}

// Env is one daemon's world.
type Env struct {
	Dir          string
	Root         string
	RunRoot      string
	Socket       string
	Config       string
	CNIConf      string // directory of network configurations
	CNIState     string // addresses that host-local has given out
	CgroupParent string // made here, as the kubelet makes it before it asks for a pod
	CgroupDir    string // where that is in each hierarchy
	Systemd      bool   // the systemd cgroup driver is in use
	Bin          string
	Registry     *registry.Registry

	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient

	conn   *grpc.ClientConn
	log    *os.File
	netns  string
	subnet string

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{}
	closing bool
}

// RepoRoot finds the source tree that the program was built from, or the one
// that the working directory is in.
func RepoRoot() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	starts := []string{filepath.Dir(file)}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	for _, d := range starts {
		for ; d != "/" && d != "."; d = filepath.Dir(d) {
			b, err := os.ReadFile(filepath.Join(d, "go.mod"))
			if err == nil && strings.HasPrefix(string(b), "module github.com/ocid-io/ocid\n") {
				return d, nil
			}
		}
	}
	return "", errors.New("the source tree of ocid was not found from the working directory")
}

// CacheDir is where the test images and tools are kept.
func CacheDir() (string, error) {
	if d := os.Getenv("OCID_CACHE"); d != "" {
		return d, nil
	}
	root, err := RepoRoot()
	return filepath.Join(root, ".cache"), err
}

// New makes an environment and starts its registry, but not the daemon.
func New(ctx context.Context, o Options) (e *Env, err error) {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	repo, err := RepoRoot()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	e = &Env{Bin: filepath.Join(repo, "bin"), netns: o.NetNS, subnet: o.Subnet}
	if b := os.Getenv("OCID_BIN"); b != "" {
		e.Bin = b
	}
	if _, err := os.Stat(filepath.Join(e.Bin, "ocid")); err != nil {
		return nil, fmt.Errorf("no built binaries (run make build): %w", err)
	}
	layouts, err := layouts(ctx, filepath.Join(cache, "images"), o)
	if err != nil {
		return nil, err
	}
	if e.Dir, err = os.MkdirTemp("", "ocid-test-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	// The root of a pod's user namespace walks through it to its files.
	if err := os.Chmod(e.Dir, 0o711); err != nil {
		return nil, err
	}
	if err := e.lay(o); err != nil {
		return nil, err
	}
	if e.Registry, err = registry.Start(cmp.Or(o.Listen, "127.0.0.1:0"), layouts...); err != nil {
		return nil, err
	}
	if err := e.configure(o); err != nil {
		return nil, err
	}
	if o.Prelude != nil {
		if err := o.Prelude(e); err != nil {
			return nil, err
		}
	}
	e.conn, err = grpc.NewClient("unix://"+e.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, err
	}
	e.Runtime = runtimeapi.NewRuntimeServiceClient(e.conn)
	e.Image = runtimeapi.NewImageServiceClient(e.conn)
	return e, nil
}

func layouts(ctx context.Context, cache string, o Options) ([]string, error) {
	set, err := images.Set(ctx, cache, o.Progress)
	if err != nil {
		return nil, err
	}
	out := []string{set}
	if o.Big {
		big, err := images.Big(ctx, cache, o.Progress)
		if err != nil {
			return nil, err
		}
		out = append(out, big)
	}
	return out, nil
}

// lay makes the directories and mounts.
func (e *Env) lay(o Options) error {
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	if err := e.makeCgroup("ocid-test-" + hex.EncodeToString(id)); err != nil {
		return err
	}
	e.Root = filepath.Join(e.Dir, "root")
	e.RunRoot = filepath.Join(e.Dir, "run")
	e.Socket = filepath.Join(e.RunRoot, "ocid.sock")
	e.CNIConf = filepath.Join(e.Dir, "cni", "net.d")
	e.CNIState = filepath.Join(e.Dir, "cni", "state")
	for _, d := range []string{e.Root, e.RunRoot, e.CNIConf, e.CNIState, filepath.Join(e.Dir, "logs")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", e.RunRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the run root: %w", err)
	}
	if o.TmpRoot != "" {
		if err := unix.Mount("tmpfs", e.Root, "tmpfs", 0, "mode=755,size="+o.TmpRoot); err != nil {
			return fmt.Errorf("mount the root: %w", err)
		}
	}
	if o.LoopRoot > 0 {
		return e.MountLoop(e.Root, o.LoopRoot)
	}
	return nil
}

// MountLoop gives a directory below Dir a fresh ext4 of its own.
func (e *Env) MountLoop(dir string, size int64) error {
	img := dir + ".ext4"
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(img, size); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", img},
		{"mount", "-o", "loop", img, dir},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}

// conflist is a usual bridge network with a private record of its addresses.
const conflist = `{
  "cniVersion": "1.0.0",
  "name": "ocid-test",
  "plugins": [
    {"type": "bridge", "bridge": "ocidbr0", "isGateway": true, "ipMasq": %t, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q,
              "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// WriteBridge writes the bridge network's configuration.
func (e *Env) WriteBridge() error {
	masq, subnet := e.subnet == "", cmp.Or(e.subnet, "10.89.0.0/16")
	return os.WriteFile(filepath.Join(e.CNIConf, "10-bridge.conflist"), fmt.Appendf(nil, conflist, masq, e.CNIState, subnet), 0o644)
}

func (e *Env) configure(o Options) error {
	if err := e.WriteBridge(); err != nil {
		return err
	}
	regs, err := e.Registry.WriteConf(e.Dir)
	if err != nil {
		return err
	}
	policy := filepath.Join(e.Dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644); err != nil {
		return err
	}
	empty := filepath.Join(e.Dir, "empty")
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return err
	}
	cniBin := o.CNIDir
	if cniBin == "" {
		cniBin = "/usr/lib/cni"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[network]\nconf_dir = %q\nbin_dirs = [%q]\ncache_dir = %q\n\n", e.CNIConf, cniBin, filepath.Join(e.Dir, "cni", "cache"))
	fmt.Fprintf(&b, "[image]\nregistries_conf = %q\nregistries_conf_dir = %q\npolicy = %q\nregistries_d = %q\nauth_file = %q\n\n",
		regs, empty, policy, empty, filepath.Join(e.Dir, "auth.json"))
	if runc, err := exec.LookPath("runc"); err == nil {
		fmt.Fprintf(&b, "[runtime.handlers.runc]\npath = %q\nroot = %q\n\n", runc, filepath.Join(e.RunRoot, "runc"))
	}
	// crun refuses a hybrid of cgroup v1 and v2.
	if crun, err := exec.LookPath("crun"); err == nil && Unified() {
		fmt.Fprintf(&b, "[runtime.handlers.crun]\npath = %q\nroot = %q\n\n", crun, filepath.Join(e.RunRoot, "crun"))
	}
	b.WriteString(o.ExtraTOML)
	if err := os.WriteFile(filepath.Join(e.Dir, "auth.json"), []byte("{}"), 0o600); err != nil {
		return err
	}
	e.Config = filepath.Join(e.Dir, "ocid.toml")
	if err := e.dropIn(); err != nil {
		return err
	}
	return os.WriteFile(e.Config, []byte(b.String()), 0o644)
}

// Args are the command line arguments that make any ocid command use this
// environment.
func (e *Env) Args(rest ...string) []string {
	return append([]string{"--root", e.Root, "--run-root", e.RunRoot, "--config", e.Config}, rest...)
}

// LogFile is where the daemon's output goes, over all its starts.
func (e *Env) LogFile() string { return filepath.Join(e.Dir, "ocid.log") }

// Launch starts the daemon and does not wait until it answers.
func (e *Env) Launch() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.log == nil {
		f, err := os.OpenFile(e.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		e.log = f
	}
	c := e.Command(filepath.Join(e.Bin, "ocid"), e.Args("--log-level", "debug", "serve", "--listen", "unix://"+e.Socket)...)
	c.Stdout, c.Stderr = e.log, e.log
	// A session of its own: signals of the terminal are for the test.
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		// The status does not matter: a daemon that ends is noticed by its clients.
		_ = c.Wait()
		close(done)
	}()
	e.cmd, e.exited = c, done
	return os.WriteFile(filepath.Join(e.Dir, "daemon.pid"), []byte(strconv.Itoa(c.Process.Pid)), 0o644)
}

// Command is one that runs in the environment's network namespace.
func (e *Env) Command(name string, args ...string) *exec.Cmd {
	if e.netns == "" {
		return exec.Command(name, args...)
	}
	return exec.Command("nsenter", append([]string{"--net=" + e.netns, "--", name}, args...)...)
}

// Start launches the daemon and returns when it has answered.
func (e *Env) Start(ctx context.Context) error {
	if err := e.Launch(); err != nil {
		return err
	}
	return e.Ready(ctx)
}

// Ready waits for the daemon's first answer.
func (e *Env) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	e.mu.Lock()
	exited := e.exited
	e.mu.Unlock()
	for {
		_, err := e.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("the daemon ended at start; the end of its log:\n%s", e.LogTail(30))
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w; the end of its log:\n%s", err, e.LogTail(30))
		case <-time.After(2 * time.Millisecond):
			// Nothing announces a socket; the connection backs off for a second by itself.
			e.conn.ResetConnectBackoff()
		}
	}
}

// LogTail returns the last lines of the daemon's log.
func (e *Env) LogTail(n int) string {
	b, err := os.ReadFile(e.LogFile())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// PID is the daemon's.
func (e *Env) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd == nil {
		return 0
	}
	return e.cmd.Process.Pid
}

// Exited is closed when the present daemon has ended.
func (e *Env) Exited() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.exited
}

// Signal sends a signal to the daemon and waits until it has ended.
func (e *Env) Signal(sig unix.Signal) error {
	e.mu.Lock()
	c, done := e.cmd, e.exited
	e.mu.Unlock()
	if c == nil {
		return errors.New("the daemon was not started")
	}
	if err := c.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-done:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("the daemon did not end within 30 s of %v", sig)
	}
}

// Keep starts the daemon again whenever it ends, as systemd would, until Close.
func (e *Env) Keep() {
	go func() {
		for {
			<-e.Exited()
			e.mu.Lock()
			closing := e.closing
			e.mu.Unlock()
			if closing || e.Launch() != nil {
				return
			}
		}
	}()
}

// Ocid runs an ocid command in this environment.
func (e *Env) Ocid(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(e.Bin, "ocid"), e.Args(args...)...).CombinedOutput()
	return string(out), err
}

// Close ends everything and removes every trace. It is safe to call twice.
func (e *Env) Close() error {
	e.mu.Lock()
	e.closing = true
	started := e.cmd != nil
	e.mu.Unlock()
	var errs []error
	if started {
		errs = append(errs, e.Signal(unix.SIGKILL))
	}
	if e.conn != nil {
		e.conn.Close()
	}
	if e.Registry != nil {
		errs = append(errs, e.Registry.Close())
	}
	if e.log != nil {
		e.log.Close()
	}
	killStrays(e.Dir)
	unmounted := UnmountBelow(e.Dir)
	errs = append(errs, unmounted)
	if e.CgroupParent != "" {
		e.removeCgroup()
	}
	// What is still mounted is not the environment's to remove.
	if e.Dir != "" && unmounted == nil {
		errs = append(errs, os.RemoveAll(e.Dir))
	}
	return errors.Join(errs...)
}
