package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// stepArgs joins command and arguments as CRI says: the command replaces the
// image's entrypoint and makes its cmd void, the args replace the cmd.
func stepArgs(in *Input, s *specs.Spec) error {
	command, args := in.Container.Command, in.Container.Args
	if len(command) == 0 {
		command = in.Image.Entrypoint
		if len(args) == 0 {
			args = in.Image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return invalid("no command: neither the request nor the image %s names one", in.Image.ID)
	}
	if all[0] == "" {
		return invalid("the command is an empty string")
	}
	s.Process.Args = all
	return nil
}

func stepTerminal(in *Input, s *specs.Spec) error {
	s.Process.Terminal = in.Container.TTY
	return nil
}

func stepCwd(in *Input, s *specs.Spec) error {
	cwd := in.Container.WorkingDir
	if cwd == "" {
		cwd = in.Image.WorkingDir
	}
	// A relative directory counts from the root, as it does in image builders.
	s.Process.Cwd = path.Join("/", cwd)
	return nil
}

func stepUser(in *Input, s *specs.Spec) error {
	if u := in.modes().User; u != nil {
		for _, id := range []struct {
			what string
			maps []runtime.IDMapping
			id   uint32
		}{{"user", u.UIDs, in.User.UID}, {"group", u.GIDs, in.User.GID}} {
			if len(id.maps) > 0 && !mapped(id.maps, id.id) {
				return invalid("%s %d does not exist in the pod's user namespace", id.what, id.id)
			}
		}
		for _, g := range in.User.Groups {
			if len(u.GIDs) > 0 && !mapped(u.GIDs, g) {
				return invalid("group %d does not exist in the pod's user namespace", g)
			}
		}
	}
	s.Process.User = specs.User{
		UID:            in.User.UID,
		GID:            in.User.GID,
		AdditionalGids: slices.Clone(in.User.Groups),
	}
	return nil
}

// environ is an ordered set of variables: setting one again keeps its place.
type environ struct {
	list  []string
	index map[string]int
}

func (e *environ) set(key, value string) {
	kv := key + "=" + value
	if i, ok := e.index[key]; ok {
		e.list[i] = kv
		return
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, kv)
}

func (e *environ) setDefault(key, value string) {
	if _, ok := e.index[key]; !ok {
		e.set(key, value)
	}
}

// stepEnv lets the image's variables win over the built-in ones and the
// request's over the image's.
func stepEnv(in *Input, s *specs.Spec) error {
	n := len(in.Image.Env) + len(in.Container.Env) + 4
	e := environ{list: make([]string, 0, n), index: make(map[string]int, n)}
	e.set("PATH", defaultPath)
	if in.Hostname != "" {
		e.set("HOSTNAME", in.Hostname)
	}
	if in.Container.TTY {
		e.set("TERM", "xterm")
	}
	for _, kv := range in.Image.Env {
		// Builders have left lines without a value or a name in images; they
		// set nothing.
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			e.set(k, v)
		}
	}
	for _, v := range in.Container.Env {
		if v.Key == "" || strings.ContainsAny(v.Key, "=\x00") {
			return invalid("variable name %q is empty or contains '=' or NUL", v.Key)
		}
		e.set(v.Key, string(v.Value))
	}
	home := in.Home
	if !path.IsAbs(home) {
		home = "/"
	}
	e.setDefault("HOME", home)
	s.Process.Env = e.list
	return nil
}

func stepRoot(in *Input, s *specs.Spec) error {
	if in.RootPath == "" {
		return invalid("no root file system path")
	}
	s.Root = &specs.Root{Path: in.RootPath, Readonly: in.Container.Security.ReadOnlyRootfs}
	return nil
}

func stepCgroup(in *Input, s *specs.Spec) error {
	s.Linux.CgroupsPath = in.CgroupPath
	return nil
}
