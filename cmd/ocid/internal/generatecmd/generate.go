// Package generatecmd is the command `ocid generate`: it writes an OCI
// config.json from flags like those of docker run.
//
// It fills in the same request that a CRI client would send and hands it to
// runtime/spec, so that what it prints is what the daemon would run. It talks
// to no daemon and changes nothing on the machine.
package generatecmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
)

// flags hold the command line as it was typed.
type flags struct {
	rootfs, user, workdir, memory, hostname, network, pid, ipc, cgroup string
	env, volumes, capAdd, capDrop, devices, security, sysctls, labels  []string
	cpus                                                               float64
	cpuShares                                                          uint64
	pids                                                               int64
	privileged, readOnly, tty                                          bool
}

// Command returns `ocid generate`.
func Command() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "generate [flags] [--] COMMAND [ARG...]",
		Short: "Write an OCI config.json from flags",
		Long: "Write the OCI runtime configuration of one container to standard output.\n" +
			"The same code shapes the containers of the daemon. Nothing on the machine is changed.",
		Example: "  ocid generate --rootfs rootfs -t -- sh > config.json\n" +
			"  ocid generate -v /srv:/srv:ro --memory 256m --cap-drop ALL -- /bin/app --port 80 > config.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := f.input(args)
			if err != nil {
				return err
			}
			s, err := spec.Build(in)
			if err != nil {
				return err
			}
			if _, err := spec.Marshal(s); err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "\t")
			return enc.Encode(s)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *flags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.StringVar(&f.rootfs, "rootfs", "rootfs", "root file system, absolute or relative to the bundle")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=VALUE, or NAME to copy it from here")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "bind mount HOST:CONTAINER[:ro|rro|rslave|rshared,...]")
	fs.StringVarP(&f.user, "user", "u", "", "user[:group], names or numbers of the root file system")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory (default /)")
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit in bytes, or with k, m or g")
	fs.Float64Var(&f.cpus, "cpus", 0, "number of CPUs")
	fs.Uint64Var(&f.cpuShares, "cpu-shares", 0, "CPU weight against other containers, 2 to 262144")
	fs.Int64Var(&f.pids, "pids-limit", 0, "most processes; -1 is unlimited")
	fs.StringArrayVar(&f.capAdd, "cap-add", nil, "capability to add, or ALL")
	fs.StringArrayVar(&f.capDrop, "cap-drop", nil, "capability to drop, or ALL")
	fs.BoolVar(&f.privileged, "privileged", false, "all capabilities and devices, nothing masked")
	fs.BoolVar(&f.readOnly, "read-only", false, "make the root file system read-only")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the process a terminal")
	fs.StringVar(&f.hostname, "hostname", "", "host name (needs a network of its own)")
	fs.StringVar(&f.network, "network", "none", "network: none (a namespace of its own) or host")
	fs.StringVar(&f.pid, "pid", "private", "PID namespace: private or host")
	fs.StringVar(&f.ipc, "ipc", "private", "IPC namespace: private or host")
	fs.StringVar(&f.cgroup, "cgroup-path", "", "cgroup of the container; empty leaves it to the runtime")
	fs.StringArrayVar(&f.devices, "device", nil, "device HOST[:CONTAINER[:rwm]]; a directory gives all in it")
	fs.StringArrayVar(&f.security, "security-opt", nil, "seccomp=default|unconfined|FILE, apparmor=PROFILE, no-new-privileges")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "namespaced sysctl NAME=VALUE")
	fs.StringArrayVar(&f.labels, "annotation", nil, "annotation KEY=VALUE of the container")
	fs.StringArrayVar(&f.labels, "label", nil, "the same as --annotation")
}

// input turns the flags into a request.
func (f *flags) input(args []string) (spec.Input, error) {
	in := spec.Input{
		RootPath: f.rootfs, Hostname: f.hostname, CgroupPath: f.cgroup,
		DaemonCaps: spec.BoundingCapabilities(), MinOOMScore: -1000, CgroupV2: unified(),
	}
	c := &in.Container
	c.Command, c.WorkingDir, c.TTY = args, f.workdir, f.tty
	sec := &c.Security
	sec.Privileged, sec.ReadOnlyRootfs = f.privileged, f.readOnly
	sec.AddCapabilities, sec.DropCapabilities = f.capAdd, f.capDrop
	sec.MaskedPaths, sec.ReadOnlyPaths = spec.DefaultMaskedPaths(), spec.DefaultReadOnlyPaths()
	for _, part := range []func(*spec.Input) error{
		f.namespaces, f.environment, f.mounts, f.limits, f.confinement, f.machineDevices, f.pairs, f.identity,
	} {
		if err := part(&in); err != nil {
			return in, err
		}
	}
	return in, nil
}

func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func (f *flags) namespaces(in *spec.Input) error {
	ns := &in.Container.Security.Namespaces
	for _, x := range []struct {
		flag, value, own string
		mode             *runtime.NamespaceMode
	}{
		{"network", f.network, "none", &ns.Network},
		{"pid", f.pid, "private", &ns.PID},
		{"ipc", f.ipc, "private", &ns.IPC},
	} {
		switch x.value {
		case x.own:
			*x.mode = runtime.NamespaceContainer
		case "host":
			*x.mode = runtime.NamespaceNode
		default:
			return fmt.Errorf("--%s %q: want %s or host", x.flag, x.value, x.own)
		}
	}
	if f.hostname != "" && f.network == "host" {
		return errors.New("--hostname with --network host would rename the machine")
	}
	return nil
}

func (f *flags) environment(in *spec.Input) error {
	for _, e := range f.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue
			}
		}
		in.Container.Env = append(in.Container.Env, runtime.EnvVar{Key: k, Value: []byte(v)})
	}
	return nil
}

func (f *flags) mounts(in *spec.Input) error {
	for _, v := range f.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return err
		}
		in.Container.Mounts = append(in.Container.Mounts, m)
	}
	return nil
}

func (f *flags) confinement(in *spec.Input) error {
	sec := &in.Container.Security
	sec.Seccomp = runtime.SeccompDefault
	for _, o := range f.security {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "no-new-privileges" && slices.Contains([]string{"", "true"}, value):
			sec.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
			sec.NoNewPrivileges = false
		case key == "seccomp" && (value == "default" || value == "unconfined"):
			sec.Seccomp = runtime.SeccompKind(value)
		case key == "seccomp" && value != "":
			body, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("--security-opt %s: %w", o, err)
			}
			sec.Seccomp, sec.SeccompPath, in.SeccompFile = runtime.SeccompLocalhost, value, body
		case key == "apparmor" && value == "unconfined":
			sec.AppArmor = runtime.SeccompUnconfined
		case key == "apparmor" && value != "":
			sec.AppArmor, sec.AppArmorProfile = runtime.SeccompLocalhost, value
		default:
			return fmt.Errorf("--security-opt %q: want seccomp=, apparmor= or no-new-privileges", o)
		}
	}
	return nil
}

func (f *flags) machineDevices(in *spec.Input) (err error) {
	for _, d := range f.devices {
		parts := strings.Split(d, ":")
		if len(parts) > 3 {
			return fmt.Errorf("--device %q: want HOST[:CONTAINER[:rwm]]", d)
		}
		parts = append(parts, "", "")
		in.Container.Devices = append(in.Container.Devices, runtime.Device{HostPath: parts[0], ContainerPath: parts[1], Permissions: parts[2]})
	}
	if in.HostDevices, err = spec.Devices(in.Container.Devices); err != nil {
		return fmt.Errorf("--device: %w", err)
	}
	if f.privileged {
		in.AllDevices, err = spec.HostDevices()
	}
	return err
}

func (f *flags) pairs(in *spec.Input) (err error) {
	if in.Pod.Config.Sysctls, err = keyValues("sysctl", f.sysctls); err != nil {
		return err
	}
	in.Container.Annotations, err = keyValues("annotation", f.labels)
	return err
}

func keyValues(flag string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--%s %q: want KEY=VALUE", flag, kv)
		}
		out[k] = v
	}
	return out, nil
}

// identity reads the root file system only if a user was named, so that a
// configuration can be made before its root file system is.
func (f *flags) identity(in *spec.Input) (err error) {
	in.User.Groups, in.Home = []uint32{0}, "/root"
	if f.user == "" {
		return nil
	}
	root, err := filepath.Abs(f.rootfs)
	if err != nil {
		return err
	}
	in.User, in.Home, err = spec.ResolveUser(root, runtime.ImageConfig{User: f.user}, in.Container.Security)
	if err != nil {
		return fmt.Errorf("--user %q: %w", f.user, err)
	}
	return nil
}
