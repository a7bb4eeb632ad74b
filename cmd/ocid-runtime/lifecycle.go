package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func load(g, a *options) (*libcontainer.Container, error) {
	id, err := a.id()
	if err != nil {
		return nil, err
	}
	return libcontainer.Load(root(g), id)
}

func create(g, a *options) (err error) {
	id, err := a.id()
	if err != nil {
		return err
	}
	// Paths of the caller are relative to its directory, those of the spec to
	// the bundle.
	pidFile := a.get("pid-file")
	if pidFile != "" {
		if pidFile, err = filepath.Abs(pidFile); err != nil {
			return err
		}
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
		CgroupName:       id,
		UseSystemdCgroup: g.on("systemd-cgroup"),
		NoPivotRoot:      a.on("no-pivot"),
		NoNewKeyring:     a.on("no-new-keyring"),
		Spec:             &spec,
		RootlessEUID:     os.Geteuid() != 0,
	})
	if err != nil {
		return err
	}
	collect(cfg.Cgroups)
	lp, err := toProcess(spec.Process)
	if err != nil {
		return err
	}
	lp.Init = true
	n, err := a.num("preserve-fds")
	if err != nil {
		return err
	}
	if err := passFiles(lp, n); err != nil {
		return err
	}
	giveFilter(filters(g), cfg.Seccomp, lp)
	done, err := wire(lp, spec.Process.Terminal, a.get("console-socket"))
	if err != nil {
		return err
	}
	defer done()
	c, err := libcontainer.Create(root(g), id, cfg)
	if err != nil {
		return err
	}
	if err := c.Start(lp); err != nil {
		return errors.Join(err, c.Destroy())
	}
	if err := writePID(pidFile, lp); err != nil {
		_ = lp.Signal(unix.SIGKILL)
		_, _ = lp.Wait()
		return errors.Join(err, c.Destroy())
	}
	return nil
}

func start(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	s, err := c.Status()
	if err != nil {
		return err
	}
	if s != libcontainer.Created {
		return fmt.Errorf("cannot start a container that is %s", s)
	}
	return c.Exec()
}

func state(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	s, err := c.OCIState()
	if err != nil {
		return err
	}
	return printJSON(s)
}

func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < 65 {
		return unix.Signal(n), nil
	}
	s = strings.ToUpper(s)
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	if n := unix.SignalNum(s); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func kill(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	sig := unix.SIGTERM
	if len(a.args) > 1 {
		if sig, err = parseSignal(a.args[1]); err != nil {
			return err
		}
	}
	if !a.on("all", "a") {
		return c.Signal(sig)
	}
	pids, err := c.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}

func remove(g, a *options) error {
	id, err := a.id()
	if err != nil {
		return err
	}
	force := a.on("force", "f")
	c, err := libcontainer.Load(root(g), id)
	if err != nil {
		if !force {
			return err
		}
		// A create that was killed leaves a directory without a state, or with
		// half of one; and what is not there is already deleted.
		if filepath.Base(id) != id || id == "." || id == ".." {
			return fmt.Errorf("bad container id %q", id)
		}
		return os.RemoveAll(filepath.Join(root(g), id))
	}
	s, err := c.Status()
	if err != nil {
		return err
	}
	if s == libcontainer.Running && !force {
		return errors.New("cannot delete a container that is running")
	}
	if s != libcontainer.Stopped || force {
		if err := killAndWait(c); err != nil {
			return err
		}
	}
	return c.Destroy()
}

// killAndWait kills the container and returns when its first process is gone.
func killAndWait(c *libcontainer.Container) error {
	s, err := c.State()
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(s.InitProcessPid, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	_ = c.Signal(unix.SIGKILL)
	if err != nil {
		return nil
	}
	st, err := c.Status()
	if err == nil && st == libcontainer.Stopped {
		return nil
	}
	const patience = 10 * time.Second
	for end := time.Now().Add(patience); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case n == 0:
			return fmt.Errorf("the first process, %d, did not end within %v of SIGKILL", s.InitProcessPid, patience)
		}
		return nil
	}
}

func execute(g, a *options) error {
	c, err := load(g, a)
	if err != nil {
		return err
	}
	s, err := c.Status()
	if err != nil {
		return err
	}
	if s == libcontainer.Stopped || s == libcontainer.Paused {
		return fmt.Errorf("cannot exec in a container that is %s", s)
	}
	var p specs.Process
	if f := a.get("process", "p"); f == "" {
		return errors.New("exec needs --process FILE")
	} else if err := readJSON(f, &p); err != nil {
		return err
	}
	if a.on("tty", "t") {
		p.Terminal = true
	}
	lp, err := toProcess(&p)
	if err != nil {
		return err
	}
	n, err := a.num("preserve-fds")
	if err != nil {
		return err
	}
	if err := passFiles(lp, n); err != nil {
		return err
	}
	giveFilter(filters(g), c.Config().Seccomp, lp)
	done, err := wire(lp, p.Terminal, a.get("console-socket"))
	if err != nil {
		return err
	}
	defer done()
	if err := c.Run(lp); err != nil {
		return err
	}
	if err := writePID(a.get("pid-file"), lp); err != nil {
		_ = lp.Signal(unix.SIGKILL)
		_, _ = lp.Wait()
		return err
	}
	if a.on("detach", "d") {
		return nil
	}
	st, err := lp.Wait()
	if st == nil {
		return err
	}
	if ws, ok := st.Sys().(unix.WaitStatus); ok && ws.Signaled() {
		return exitError(128 + int(ws.Signal()))
	}
	if st.ExitCode() != 0 {
		return exitError(st.ExitCode())
	}
	return nil
}

func list(g, a *options) error {
	ents, err := os.ReadDir(root(g))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	states := []*specs.State{}
	for _, e := range ents {
		c, err := libcontainer.Load(root(g), e.Name())
		if err != nil {
			continue // being created, or damaged: delete --force clears it
		}
		s, err := c.OCIState()
		if err != nil {
			continue
		}
		states = append(states, s)
	}
	if a.get("format", "f") == "json" {
		return printJSON(states)
	}
	for _, s := range states {
		if a.on("quiet", "q") {
			fmt.Fprintln(os.Stdout, s.ID)
			continue
		}
		fmt.Fprintf(os.Stdout, "%s\t%d\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle)
	}
	return nil
}

func hookNames() []string { return configs.KnownHookNames() }
