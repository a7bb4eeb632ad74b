package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/handler"
)

// runTime bounds one run of somebody's program.
const runTime = 5 * time.Second

// handlers runs each runtime once.
func (e *exam) handlers(ctx context.Context) {
	monitor := e.Config.Runtime.MonitorPath
	if monitor == "" {
		monitor = filepath.Join(e.BinDir, "ocid-monitor")
	}
	err := executable(monitor)
	e.expect(err == nil, Fail, "monitor", orError(monitor, err), "no pod can run", "install ocid-monitor beside ocid, or set runtime.monitor_path")
	var prober handler.Prober
	for _, name := range e.Config.HandlerNames() {
		h := e.Config.Runtime.Handlers[name]
		eh := engine.Handler{Name: name, Path: h.Path, Root: h.Root, Args: h.Args}
		if h.Path == "" {
			eh.Path, eh.Embedded = filepath.Join(e.BinDir, "ocid-runtime"), true
		}
		e.handler(ctx, &prober, eh)
	}
}

func (e *exam) handler(ctx context.Context, prober *handler.Prober, h engine.Handler) {
	status, mend := Warn, fmt.Sprintf("install it, or set or remove runtime.handlers.%s", h.Name)
	cost := "pods of this handler fail"
	if h.Name == e.Config.Runtime.DefaultHandler {
		status, cost = Fail, "pods that name no handler fail, and the node is not ready"
	}
	if err := executable(h.Path); err != nil {
		e.bad(status, h.Name, err.Error(), cost, mend)
		return
	}
	version, err := run(ctx, nil, h.Path, "--version")
	if err != nil {
		e.bad(status, h.Name, err.Error(), cost, mend)
		return
	}
	found := fmt.Sprintf("%s, %s", h.Path, firstLine(version))
	f, err := prober.Features(ctx, h)
	switch {
	case err != nil:
		e.bad(status, h.Name, err.Error(), cost, mend)
	case h.Embedded, f.RecursiveReadOnly && f.IDMappedMounts:
		e.ok(h.Name, "%s", found)
	case !f.Known:
		e.bad(Warn, h.Name, found+", does not tell its features",
			"no recursive read-only mounts and no user namespaces with this handler", "use a version with the features command (runc 1.1, crun 1.8)")
	default:
		e.bad(Warn, h.Name, fmt.Sprintf("%s, recursive read-only: %t, id-mapped mounts: %t", found, f.RecursiveReadOnly, f.IDMappedMounts),
			"pods of this handler cannot have what it lacks", "use a newer version (runc 1.2, crun 1.9)")
	}
}

func executable(p string) error {
	st, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return &fs.PathError{Op: "execute", Path: p, Err: errors.New("not a file")}
	}
	if err := unix.Access(p, unix.X_OK); err != nil {
		return &fs.PathError{Op: "execute", Path: p, Err: err}
	}
	return nil
}

func orError(found string, err error) string {
	if err != nil {
		return err.Error()
	}
	return found
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s[:min(len(s), 120)]
}

// run returns what a program prints, at most a little of it.
func run(ctx context.Context, env []string, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(out), nil
}

// network checks the configuration that would be used and its plugins.
func (e *exam) network(ctx context.Context) {
	const cost = "pods on the cluster network are refused; those on the host's run"
	dir := e.Config.Network.ConfDir
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		e.bad(Fail, "configuration", orError("none in "+dir, err), cost, "install a network add-on, which writes one, or write "+filepath.Join(dir, "10-NAME.conflist"))
		return
	}
	list, err := readNetwork(files[0])
	if err != nil {
		e.bad(Fail, "configuration", fmt.Sprintf("%s: %v", files[0], err), cost, "mend the file, or remove it if another is meant")
		return
	}
	e.ok("configuration", "%s: network %q, CNI %s", files[0], list.Name, list.CNIVersion)
	seen, hostPorts := map[string]bool{}, false
	for _, p := range list.Plugins {
		hostPorts = hostPorts || p.Network.Capabilities["portMappings"]
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name != "" && !seen[name] {
				seen[name] = true
				e.plugin(ctx, name)
			}
		}
	}
	if !hostPorts {
		e.bad(Warn, "host ports", "no plugin of the network takes them", "host ports of pods have no effect", "add {\"type\":\"portmap\",\"capabilities\":{\"portMappings\":true}} to the chain, unless the network does it itself")
	}
}

// readNetwork reads a list, or a single plugin as a list of one.
func readNetwork(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.ConfListFromFile(file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	one, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(one) //nolint:staticcheck // single-plugin files are what users have
}

func (e *exam) plugin(ctx context.Context, name string) {
	const cost = "pods cannot be attached to the network"
	dirs := strings.Join(e.Config.Network.BinDirs, ", ")
	for _, dir := range e.Config.Network.BinDirs {
		p := filepath.Join(dir, name)
		if err := executable(p); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			e.bad(Fail, "plugin "+name, err.Error(), cost, "chmod +x "+p)
			return
		}
		out, err := run(ctx, []string{"CNI_COMMAND=VERSION"}, p)
		if err != nil {
			e.bad(Fail, "plugin "+name, err.Error(), cost, "install a build of it for this machine")
			return
		}
		e.ok("plugin "+name, "%s, CNI %s", p, supported(out))
		return
	}
	e.bad(Fail, "plugin "+name, "not in "+dirs, cost, "install it (Debian: containernetworking-plugins), or add its directory to network.bin_dirs")
}

// images checks the files that decide which images may run, and whence.
func (e *exam) images(context.Context) {
	sys := &types.SystemContext{
		RootForImplicitAbsolutePaths: strings.TrimSuffix(e.Dir, "/"),
		SystemRegistriesConfPath:     e.Config.Image.RegistriesConf, SystemRegistriesConfDirPath: e.Config.Image.RegistriesConfDir,
		SignaturePolicyPath: e.Config.Image.Policy,
	}
	_, err := signature.DefaultPolicy(sys)
	switch {
	case errors.Is(err, configfile.ErrConfigFileNotFound) && e.Config.Image.Policy == "":
		e.bad(Warn, "policy.json", "none", "images are accepted without signatures", "write /etc/containers/policy.json")
	case err != nil:
		e.bad(Fail, "policy.json", err.Error(), "no image can be pulled", "mend the file")
	default:
		e.ok("policy.json", "valid")
	}
	registries, err := sysregistriesv2.GetRegistries(sys)
	if err != nil {
		e.bad(Fail, "registries.conf", err.Error(), "no image can be pulled", "mend the file")
	} else {
		e.ok("registries.conf", "%d registries", len(registries))
	}
	if f := e.Config.Image.AuthFile; f != "" {
		st, err := os.Stat(f)
		switch {
		case err != nil:
			e.bad(Warn, "auth_file", err.Error(), "images that need credentials cannot be pulled without those of the pod", "make it, or unset image.auth_file")
		default:
			e.expect(st.Mode().Perm()&0o077 == 0, Warn, "auth_file", fmt.Sprintf("%s, mode %04o", f, st.Mode().Perm()),
				"others on this machine can read the credentials", "chmod 600 "+f)
		}
	}
}

// supported lists the versions in a plugin's answer to VERSION.
func supported(answer string) string {
	var v struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal([]byte(answer), &v); err != nil || len(v.SupportedVersions) == 0 {
		return "of unknown version"
	}
	return "up to " + v.SupportedVersions[len(v.SupportedVersions)-1]
}
