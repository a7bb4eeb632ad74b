package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Handler is one runtime handler (RuntimeClass).
type Handler struct {
	Path string   `toml:"path" doc:"An OCI runtime's binary. Empty with the name ocid: the embedded runtime."`
	Root string   `toml:"root" doc:"The runtime's state directory. Empty: a directory under run_root."`
	Args []string `toml:"args" doc:"Global arguments, placed before the runtime's command."`

	AllowedAnnotations []string `toml:"allowed_annotations" doc:"Patterns (* is anything but /) of keys of pod and container annotations that reach the runtime; org.systemd.property. and org.criu., which do things to the host, must be written out. Empty: none."`
	DefaultAnnotations []string `toml:"default_annotations" doc:"KEY=VALUE annotations that every container of the handler has."`
	DefaultEnv         []string `toml:"default_env" doc:"NAME=VALUE for variables that neither image nor pod sets."`
	DefaultUlimits     []string `toml:"default_ulimits" doc:"NAME=SOFT:HARD for every process, as in nofile=1024:4096; -1 is unlimited."`
	HideHostDevices    bool     `toml:"privileged_without_host_devices" doc:"Privileged containers get only the devices that they ask for."`
	BaseRuntimeSpec    string   `toml:"base_runtime_spec" doc:"File with an OCI spec whose env, rlimits, mounts, annotations, hooks, sysctls and pids limit fill what a container does not set."`
	MinMemory          int64    `toml:"container_min_memory" doc:"Lowest memory limit in bytes that the runtime can work with; a container that asks for less is refused. 0: any."`
}

// NRI configures Node Resource Interface plugins.
type NRI struct {
	Enable              bool     `toml:"enable" doc:"Let NRI plugins see and change containers. A plugin is as powerful as root."`
	Socket              string   `toml:"socket" doc:"Socket where plugins connect. Empty: only plugins in plugin_dir."`
	PluginDir           string   `toml:"plugin_dir" doc:"Plugins that ocid starts, named NN-NAME. Empty: none."`
	PluginConfigDir     string   `toml:"plugin_config_dir" doc:"Configuration of those plugins, NN-NAME.conf or NAME.conf."`
	RegistrationTimeout Duration `toml:"registration_timeout" doc:"How long a plugin may take to register."`
	RequestTimeout      Duration `toml:"request_timeout" doc:"How long a plugin may take for one request; one that takes longer is disconnected."`
}

// pairs splits KEY=VALUE lines.
func pairs(key string, lines []string) (map[string]string, error) {
	out := map[string]string{}
	for _, l := range lines {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%s: %q is not KEY=VALUE", key, l)
		}
		out[k] = v
	}
	return out, nil
}

// Annotations are the default annotations by key.
func (h Handler) Annotations() map[string]string {
	out, err := pairs("default_annotations", h.DefaultAnnotations)
	if err != nil {
		return nil // Complete has refused it
	}
	return out
}

// check validates what does not need a file.
func (h Handler) check(name string) error {
	at := "runtime.handlers." + name + "."
	for key, p := range map[string]string{"path": h.Path, "base_runtime_spec": h.BaseRuntimeSpec} {
		if p != "" && !filepath.IsAbs(p) {
			return fmt.Errorf("%s%s must be absolute, and is %q", at, key, p)
		}
	}
	if h.MinMemory < 0 {
		return fmt.Errorf("%scontainer_min_memory is below zero", at)
	}
	_, err := pairs(at+"default_annotations", h.DefaultAnnotations)
	return err
}

// checkExtensions validates the directories of hooks, devices and plugins.
func (c *Config) checkExtensions() error {
	for key, dirs := range map[string][]string{
		"runtime.hooks_dirs": c.Runtime.HooksDirs, "runtime.cdi_dirs": c.Runtime.CDIDirs,
		"nri.socket": {c.NRI.Socket}, "nri.plugin_dir": {c.NRI.PluginDir}, "nri.plugin_config_dir": {c.NRI.PluginConfigDir},
	} {
		for _, d := range dirs {
			if d != "" && !filepath.IsAbs(d) {
				return fmt.Errorf("%s must be absolute, and is %q", key, d)
			}
		}
	}
	return nil
}
