package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS,
	"RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// toProcess turns the process of a spec into libcontainer's.
func toProcess(p *specs.Process) (*libcontainer.Process, error) {
	switch {
	case p == nil:
		return nil, errors.New("the spec has no process")
	case len(p.Args) == 0:
		return nil, errors.New("process.args is empty")
	case !filepath.IsAbs(p.Cwd):
		return nil, fmt.Errorf("process.cwd %q is not absolute", p.Cwd)
	}
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd,
		UID: int(p.User.UID), GID: int(p.User.GID),
		Label: p.SelinuxLabel, AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler, IOPriority: p.IOPriority,
		LogLevel: strconv.Itoa(int(logrus.GetLevel())),
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth = uint16(p.ConsoleSize.Width)
		lp.ConsoleHeight = uint16(p.ConsoleSize.Height)
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted,
			Inheritable: c.Inheritable, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		t, ok := rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("unknown rlimit %q", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: t, Hard: r.Hard, Soft: r.Soft})
	}
	var err error
	lp.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	return lp, err
}

// wire gives the process its stdio: the caller's own, or the slave side of a
// new terminal whose master is sent over consoleSocket.
func wire(lp *libcontainer.Process, terminal bool, consoleSocket string) (closer func(), err error) {
	if !terminal {
		if consoleSocket != "" {
			return nil, errors.New("--console-socket without process.terminal")
		}
		lp.Stdin, lp.Stdout, lp.Stderr = os.Stdin, os.Stdout, os.Stderr
		return func() {}, nil
	}
	if consoleSocket == "" {
		return nil, errors.New("process.terminal needs --console-socket")
	}
	c, err := net.Dial("unix", consoleSocket)
	if err != nil {
		return nil, err
	}
	f, err := c.(*net.UnixConn).File()
	c.Close()
	if err != nil {
		return nil, err
	}
	lp.ConsoleSocket = f
	return func() { f.Close() }, nil
}

// passFiles hands n files, starting with number 3, down to the process.
func passFiles(lp *libcontainer.Process, n int) error {
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("file %d, to be preserved: %w", fd, err)
		}
		lp.ExtraFiles = append(lp.ExtraFiles, os.NewFile(uintptr(fd), "preserved:"+strconv.Itoa(fd)))
	}
	return nil
}

// writePID writes the process's pid by rename, so that a reader sees all or none.
func writePID(path string, lp *libcontainer.Process) error {
	if path == "" {
		return nil
	}
	pid, err := lp.Pid()
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, strconv.AppendInt(nil, int64(pid), 10), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
