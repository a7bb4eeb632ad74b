package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Flags of checkpoint and restore, with the names that other runtimes gave them.
var (
	checkpointFlags = flagSet{
		"image-path": true, "work-path": true, "manage-cgroups-mode": true,
		"leave-running": false, "link-remap": false,
		"tcp-established": false, "ext-unix-sk": false, "shell-job": false, "file-locks": false,
	}
	restoreFlags = flagSet{
		"image-path": true, "work-path": true, "manage-cgroups-mode": true,
		"bundle": true, "b": true, "pid-file": true, "console-socket": true,
		"detach": false, "d": false, "no-pivot": false,
		"tcp-established": false, "ext-unix-sk": false, "shell-job": false, "file-locks": false,
	}
)

func criuOptions(a *options) (*libcontainer.CriuOpts, error) {
	o := &libcontainer.CriuOpts{
		LeaveRunning: a.on("leave-running"), LinkRemap: a.on("link-remap"),
		TcpEstablished: a.on("tcp-established"), ExternalUnixConnections: a.on("ext-unix-sk"),
		ShellJob: a.on("shell-job"), FileLocks: a.on("file-locks"),
		ManageCgroupsMode: a.get("manage-cgroups-mode"), StatusFd: -1,
		// Addresses and devices of the network are the pod's, not the container's.
		EmptyNs: unix.CLONE_NEWNET,
	}
	for _, p := range []struct {
		name string
		to   *string
	}{{"image-path", &o.ImagesDirectory}, {"work-path", &o.WorkDirectory}} {
		if a.get(p.name) == "" {
			return nil, fmt.Errorf("--%s is missing", p.name)
		}
		abs, err := filepath.Abs(a.get(p.name))
		if err != nil {
			return nil, err
		}
		*p.to = abs
	}
	return o, nil
}

// noConfigFile takes a container's own choice of a criu configuration away: it
// could name any file, its own ones too, and such a file can name programs
// that run as root on the host.
func noConfigFile(c *configs.Config) {
	const key = "org.criu.config"
	for i, l := range c.Labels {
		if strings.HasPrefix(l, key+"=") {
			c.Labels[i] = key + "="
		}
	}
}

func checkpoint(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	s, err := c.Status()
	if err != nil {
		return err
	}
	if s != libcontainer.Running && s != libcontainer.Paused {
		return fmt.Errorf("cannot checkpoint a container that is %s", s)
	}
	o, err := criuOptions(a)
	if err != nil {
		return err
	}
	cfg := c.Config()
	noConfigFile(&cfg)
	if err := c.Checkpoint(o); err != nil {
		return criuError(err, o.WorkDirectory, "dump.log")
	}
	if o.LeaveRunning {
		return nil
	}
	return c.Destroy()
}

func restore(g, a *options) error {
	if !a.on("detach", "d") {
		return errors.New("restore works with --detach only")
	}
	id, err := a.id()
	if err != nil {
		return err
	}
	o, err := criuOptions(a)
	if err != nil {
		return err
	}
	pidFile, err := filepath.Abs(a.get("pid-file"))
	if err != nil {
		return err
	}
	if b := a.get("bundle", "b"); b != "" {
		if err := os.Chdir(b); err != nil {
			return err
		}
	}
	var spec specs.Spec
	if err := readJSON("config.json", &spec); err != nil {
		return err
	}
	keepProperties(&spec)
	cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: g.on("systemd-cgroup"), NoPivotRoot: a.on("no-pivot"),
		Spec: &spec, RootlessEUID: os.Geteuid() != 0,
	})
	if err != nil {
		return err
	}
	collect(cfg.Cgroups)
	noConfigFile(cfg)
	lp, err := toProcess(spec.Process)
	if err != nil {
		return err
	}
	lp.Init = true
	done, err := wire(lp, spec.Process.Terminal, a.get("console-socket"))
	if err != nil {
		return err
	}
	defer done()
	c, err := libcontainer.Create(root(g), id, cfg)
	if err != nil {
		return err
	}
	// Mounts and criu itself belong to one thread's namespaces.
	goruntime.LockOSThread()
	if err := c.Restore(lp, o); err != nil {
		return errors.Join(criuError(err, o.WorkDirectory, "restore.log"), c.Destroy())
	}
	if a.get("pid-file") == "" {
		return nil
	}
	if err := writePID(pidFile, lp); err != nil {
		_ = lp.Signal(unix.SIGKILL)
		return errors.Join(err, c.Destroy())
	}
	return nil
}

// criuError adds the first complaint of criu's log, which says more than the
// number that it answers with.
func criuError(err error, dir, log string) error {
	const most = 4 << 20
	f, oerr := os.Open(filepath.Join(dir, log))
	if oerr != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, most)
	n, _ := f.Read(b)
	for line := range strings.Lines(string(b[:n])) {
		if _, words, ok := strings.Cut(line, "Error ("); ok {
			return fmt.Errorf("%w: criu: (%.400s", err, strings.TrimSpace(words))
		}
	}
	return err
}
