// Package config is ocid's configuration: one struct, from which the TOML file,
// its documentation and its validation follow. Command-line flags override the
// drop-in files FILE.d/*.toml, a later one in lexical order overrides an earlier
// one, all override FILE, and FILE overrides the defaults. Nothing outside this
// package reads it from disk, and every value of what Load returned says where
// it came from.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// DefaultFile is where the configuration is looked for when none is named.
const DefaultFile = "/etc/ocid/ocid.toml"

// Config is the whole configuration. The doc tag is the key's documentation.
type Config struct {
	Root      string  `toml:"root" doc:"Durable state: images, records, writable layers."`
	RunRoot   string  `toml:"run_root" doc:"State of this boot, on tmpfs: mounts, sockets, namespaces."`
	LogLevel  string  `toml:"log_level" reload:"true" doc:"debug, info, warn or error."`
	LogFormat string  `toml:"log_format" doc:"text or json."`
	Server    Server  `toml:"server"`
	Runtime   Runtime `toml:"runtime"`
	Network   Network `toml:"network"`
	NRI       NRI     `toml:"nri"`
	Image     Image   `toml:"image"`
	Metrics   Metrics `toml:"metrics"`
	Tracing   Tracing `toml:"tracing"`
}

// Metrics configures what monitoring scrapes.
type Metrics struct {
	Listen string `toml:"listen" doc:"HOST:PORT where Prometheus finds /metrics, without authentication. Empty: only on the debug socket."`
}

// Tracing configures OpenTelemetry traces.
type Tracing struct {
	Endpoint string  `toml:"endpoint" doc:"OTLP collector over gRPC, http://HOST:PORT or https://HOST:PORT. Empty: no traces."`
	Sampling float64 `toml:"sampling" doc:"Share of calls traced, 0 to 1, where the caller has not decided already."`
}

// Server configures the CRI daemon.
type Server struct {
	Listen string `toml:"listen" doc:"Socket of the CRI, unix:///path. Empty is ocid.sock under run_root."`

	StreamListen      string   `toml:"stream_listen" doc:"host:port of the streams of exec, attach and port-forward. Whoever reaches it needs a URL from the CRI socket. Empty: a free port of 127.0.0.1."`
	StreamTLSCert     string   `toml:"stream_tls_cert" doc:"Certificate for the streams, PEM; read again when it changes. Empty: no TLS."`
	StreamTLSKey      string   `toml:"stream_tls_key" doc:"Its key."`
	StreamTLSClientCA string   `toml:"stream_tls_client_ca" doc:"CA of the certificates that clients of the streams must show. Empty: they need none."`
	StreamIdleTimeout Duration `toml:"stream_idle_timeout" doc:"A stream without traffic for this long is closed."`
}

// Runtime configures how containers are run.
type Runtime struct {
	DefaultHandler string             `toml:"default_handler" doc:"Handler of pods that name none."`
	CgroupParent   string             `toml:"cgroup_parent" doc:"Parent cgroup of pods that name none. Empty: /ocid, or ocid.slice with the systemd driver."`
	CgroupDriver   string             `toml:"cgroup_driver" doc:"cgroupfs or systemd. Empty: systemd where it is PID 1 and cgroup v2 is in use, else cgroupfs. The kubelet asks which it is."`
	MonitorCgroup  string             `toml:"monitor_cgroup" doc:"With the systemd driver: pod puts each monitor in a scope of its pod's slice, NAME.slice in one of that slice. Empty: beside the daemon."`
	SeccompRoot    string             `toml:"seccomp_root" doc:"Where relative localhost seccomp profiles are found."`
	MonitorPath    string             `toml:"monitor_path" doc:"The ocid-monitor binary. Empty: beside ocid."`
	HooksDirs      []string           `toml:"hooks_dirs" doc:"Directories of OCI hooks (oci-hooks(5)); a file in a later one replaces that of the same name."`
	CDIDirs        []string           `toml:"cdi_dirs" doc:"Directories of Container Device Interface files; the later ones win."`
	AppArmor       string             `toml:"apparmor_profile" doc:"AppArmor profile of containers that name none. ocid-default is made and loaded by ocid."`
	SELinux        bool               `toml:"selinux" doc:"Label containers, their root file systems and volumes, where SELinux is active."`
	Handlers       map[string]Handler `toml:"handlers" reload:"true"`
}

// Network configures CNI.
type Network struct {
	ConfDir  string   `toml:"conf_dir" doc:"Directory of CNI configurations; the first in lexical order is used."`
	BinDirs  []string `toml:"bin_dirs" doc:"Directories of CNI plugins."`
	CacheDir string   `toml:"cache_dir" doc:"What CNI remembers of attachments. Empty: a directory under root."`
	Timeout  Duration `toml:"timeout" doc:"Limit of one CNI operation."`
}

// Image configures pulls. Empty paths mean the places that the neighbours use.
type Image struct {
	RegistriesConf    string   `toml:"registries_conf" doc:"registries.conf. Empty: /etc/containers/registries.conf."`
	RegistriesConfDir string   `toml:"registries_conf_dir" doc:"registries.conf.d. Empty: /etc/containers/registries.conf.d."`
	RegistriesD       string   `toml:"registries_d" doc:"registries.d. Empty: /etc/containers/registries.d."`
	Policy            string   `toml:"policy" doc:"policy.json. Empty: /etc/containers/policy.json."`
	PolicyDir         string   `toml:"policy_dir" doc:"Directory of NAMESPACE.json: signature policies for pods of one namespace, in place of policy. Empty: none."`
	Pinned            []string `toml:"pinned" doc:"Images that the kubelet is told not to collect: full names, * at either end stands for anything."`
	AuthFile          string   `toml:"auth_file" doc:"Credentials. Empty: the usual auth.json files."`
	CertsDir          string   `toml:"certs_dir" doc:"Registry certificates. Empty: /etc/containers/certs.d."`
	StallTimeout      Duration `toml:"stall_timeout" doc:"A pull that receives no byte for this long fails."`
}

// Duration is a time.Duration written as in "30s".
type Duration time.Duration

// UnmarshalText parses a positive Go duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	if v <= 0 {
		return errors.New("a duration here must be above zero")
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration as it is read.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// EmbeddedHandler is the name of the embedded runtime.
const EmbeddedHandler = "ocid"

// Default returns the configuration of a machine without a file.
func Default() Config {
	return Config{
		Root: "/var/lib/ocid", RunRoot: "/run/ocid", LogLevel: "info", LogFormat: "text",
		Server: Server{StreamIdleTimeout: Duration(4 * time.Hour)},
		Runtime: Runtime{
			DefaultHandler: EmbeddedHandler,
			SeccompRoot:    "/var/lib/kubelet/seccomp",
			Handlers:       map[string]Handler{EmbeddedHandler: {}},
			HooksDirs:      []string{"/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"},
			CDIDirs:        []string{"/etc/cdi", "/var/run/cdi"},
			AppArmor:       "ocid-default",
		},
		NRI: NRI{
			Socket: "/var/run/nri/nri.sock", PluginDir: "/opt/nri/plugins", PluginConfigDir: "/etc/nri/conf.d",
			RegistrationTimeout: Duration(5 * time.Second), RequestTimeout: Duration(2 * time.Second),
		},
		Network: Network{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"},
			Timeout: Duration(2 * time.Minute),
		},
		Image:   Image{StallTimeout: Duration(time.Minute)},
		Tracing: Tracing{Sampling: 1},
	}
}

// Complete fills what follows from other keys, and validates.
func (c *Config) Complete() error {
	if c.Server.Listen == "" {
		c.Server.Listen = "unix://" + filepath.Join(c.RunRoot, "ocid.sock")
	}
	if c.Network.CacheDir == "" {
		c.Network.CacheDir = filepath.Join(c.Root, "cni")
	}
	for name, p := range map[string]string{"root": c.Root, "run_root": c.RunRoot, "network.conf_dir": c.Network.ConfDir} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("%s must be an absolute path, and is %q", name, p)
		}
	}
	if filepath.Clean(c.Root) == filepath.Clean(c.RunRoot) {
		return fmt.Errorf("root and run_root are both %q and must differ", c.Root)
	}
	if !strings.HasPrefix(c.Server.Listen, "unix:///") {
		return fmt.Errorf("server.listen must be unix:///PATH, and is %q", c.Server.Listen)
	}
	if (c.Server.StreamTLSCert == "") != (c.Server.StreamTLSKey == "") || c.Server.StreamTLSClientCA != "" && c.Server.StreamTLSCert == "" {
		return errors.New("server.stream_tls_cert and server.stream_tls_key must be set together, and with server.stream_tls_client_ca both")
	}
	if err := c.checkImage(); err != nil {
		return err
	}
	if err := c.checkCgroups(); err != nil {
		return err
	}
	if err := c.checkExtensions(); err != nil {
		return err
	}
	if err := c.completeObservation(); err != nil {
		return err
	}
	return c.completeHandlers()
}

func (c *Config) completeObservation() error {
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log_level must be debug, info, warn or error, and is %q", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("log_format must be text or json, and is %q", c.LogFormat)
	}
	if c.Metrics.Listen != "" {
		if _, _, err := net.SplitHostPort(c.Metrics.Listen); err != nil {
			return fmt.Errorf("metrics.listen must be HOST:PORT, and is %q", c.Metrics.Listen)
		}
	}
	if e := c.Tracing.Endpoint; e != "" {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" {
			return fmt.Errorf("tracing.endpoint must be http://HOST:PORT or https://HOST:PORT, and is %q", e)
		}
	}
	if s := c.Tracing.Sampling; !(s >= 0 && s <= 1) {
		return fmt.Errorf("tracing.sampling must be between 0 and 1, and is %v", s)
	}
	return nil
}

// Cgroup drivers.
const (
	Cgroupfs = "cgroupfs"
	Systemd  = "systemd"
)

// MonitorInPod puts monitors beside their containers.
const MonitorInPod = "pod"

func (c *Config) checkCgroups() error {
	r := &c.Runtime
	switch r.CgroupDriver {
	case "", Cgroupfs, Systemd:
	default:
		return fmt.Errorf("runtime.cgroup_driver must be %s or %s, and is %q", Cgroupfs, Systemd, r.CgroupDriver)
	}
	switch m := r.MonitorCgroup; {
	case m != "" && m != MonitorInPod && !strings.HasSuffix(m, ".slice"):
		return fmt.Errorf("runtime.monitor_cgroup must be %s or NAME.slice, and is %q", MonitorInPod, m)
	case m != "" && r.CgroupDriver == Cgroupfs:
		return fmt.Errorf("runtime.monitor_cgroup is %q, which needs the systemd cgroup driver", m)
	}
	switch p := r.CgroupParent; {
	case r.CgroupDriver == Systemd && p != "" && !strings.HasSuffix(p, ".slice"):
		return fmt.Errorf("runtime.cgroup_parent must be NAME.slice with the systemd driver, and is %q", p)
	case p != "" && !filepath.IsAbs(p) && !strings.HasSuffix(p, ".slice"):
		return fmt.Errorf("runtime.cgroup_parent must be an absolute path or NAME.slice, and is %q", p)
	}
	return nil
}

func (c *Config) completeHandlers() error {
	if _, ok := c.Runtime.Handlers[c.Runtime.DefaultHandler]; !ok {
		return fmt.Errorf("runtime.default_handler is %q, and no [runtime.handlers.%s] exists", c.Runtime.DefaultHandler, c.Runtime.DefaultHandler)
	}
	for name, h := range c.Runtime.Handlers {
		if h.Path == "" && name != EmbeddedHandler {
			return fmt.Errorf("runtime.handlers.%s needs a path to an OCI runtime", name)
		}
		if err := h.check(name); err != nil {
			return err
		}
		if h.Root == "" {
			h.Root = filepath.Join(c.RunRoot, "runtime", name)
		}
		c.Runtime.Handlers[name] = h
	}
	return nil
}

// HandlerNames lists the handlers, sorted.
func (c *Config) HandlerNames() []string {
	var names []string
	for n := range c.Runtime.Handlers {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
