package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// maxImageVolumes bounds what an image can ask for by declaring volumes.
const maxImageVolumes = 256

// stepMounts writes all mounts, parents before children. A user's mount
// replaces the default mounts at its path and below it: whoever mounts the
// host's /dev or /sys wants that tree, not parts of ours on top of it.
func stepMounts(in *Input, s *specs.Spec) error {
	user, propagation, err := userMounts(in)
	if err != nil {
		return err
	}
	volumes, err := imageVolumes(in)
	if err != nil {
		return err
	}
	covered := func(m specs.Mount) bool {
		return slices.ContainsFunc(user, func(u specs.Mount) bool { return within(m.Destination, u.Destination) })
	}
	same := func(m specs.Mount) bool {
		return slices.ContainsFunc(user, func(u specs.Mount) bool { return m.Destination == u.Destination })
	}
	all := slices.DeleteFunc(defaultMounts(in), covered)
	all = append(all, slices.DeleteFunc(slices.Concat(volumes, fileMounts(in)), same)...)
	all = append(all, user...)
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	s.Mounts = all
	s.Linux.RootfsPropagation = propagation
	return nil
}

func depth(p string) int { return strings.Count(p, "/") }

// within reports whether clean path p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

func defaultMounts(in *Input) []specs.Mount {
	m, privileged := in.modes(), in.Container.Security.Privileged
	access := "ro"
	if privileged {
		access = "rw"
	}
	// A user namespace may mount only file systems whose namespace it owns; the
	// host's are bound in instead.
	hostOwned := func(mode runtime.NamespaceMode) bool { return m.User != nil && mode == runtime.NamespaceNode }

	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
	if hostOwned(m.PID) {
		proc = hostBind("/proc", "nosuid", "noexec", "nodev")
	}
	pts := specs.Mount{
		Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
	}
	if m.User != nil && !mapped(m.User.GIDs, 5) {
		pts.Options = pts.Options[:len(pts.Options)-1]
	}
	mqueue := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}
	if hostOwned(m.IPC) {
		mqueue = hostBind("/dev/mqueue", "nosuid", "noexec", "nodev")
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if hostOwned(m.Network) {
		sys = hostBind("/sys", "nosuid", "noexec", "nodev", access)
	}
	return []specs.Mount{
		proc,
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		pts,
		mqueue,
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
		shmMount(in, m),
	}
}

func mapped(maps []runtime.IDMapping, id uint32) bool {
	return slices.ContainsFunc(maps, func(m runtime.IDMapping) bool {
		return id >= m.ContainerID && uint64(id) < uint64(m.ContainerID)+uint64(m.Length)
	})
}

func hostBind(p string, options ...string) specs.Mount {
	return specs.Mount{Destination: p, Type: "bind", Source: p, Options: append([]string{"rbind", "rprivate"}, options...)}
}

func shmMount(in *Input, m runtime.Namespaces) specs.Mount {
	src := in.ShmPath
	if src == "" && m.IPC == runtime.NamespaceNode {
		src = "/dev/shm"
	}
	if src == "" {
		return specs.Mount{
			Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
		}
	}
	return specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: src,
		Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", "rw"},
	}
}

// fileMounts binds the pod's files over those of the image.
func fileMounts(in *Input) []specs.Mount {
	access := "rw"
	if in.Container.Security.ReadOnlyRootfs {
		access = "ro"
	}
	var out []specs.Mount
	for _, f := range []struct{ dst, src string }{
		{"/etc/hosts", in.HostsPath},
		{"/etc/hostname", in.HostnamePath},
		{"/etc/resolv.conf", in.ResolvPath},
	} {
		if f.src != "" {
			out = append(out, specs.Mount{
				Destination: f.dst, Type: "bind", Source: f.src,
				Options: []string{"bind", "rprivate", "nosuid", "nodev", access},
			})
		}
	}
	return out
}

// imageVolumes keeps the volumes that an image declares writable. Under a
// writable root they are part of the writable layer; under a read-only one
// each becomes a tmpfs that starts with the image's content. Paths that would
// hide what the runtime itself provides are left alone.
func imageVolumes(in *Input) ([]specs.Mount, error) {
	if len(in.Image.Volumes) > maxImageVolumes {
		return nil, invalid("image %s declares %d volumes, more than %d", in.Image.ID, len(in.Image.Volumes), maxImageVolumes)
	}
	if !in.Container.Security.ReadOnlyRootfs {
		return nil, nil
	}
	volumes := slices.Clone(in.Image.Volumes)
	for i, v := range volumes {
		volumes[i] = path.Join("/", v)
	}
	slices.Sort(volumes)
	var out []specs.Mount
	for _, v := range slices.Compact(volumes) {
		if v == "/" || v == "/etc" || within(v, "/proc") || within(v, "/sys") || within(v, "/dev") {
			continue
		}
		out = append(out, specs.Mount{
			Destination: v, Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "nodev", "tmpcopyup"},
		})
	}
	return out, nil
}

// userMounts converts the request's mounts and finds the propagation that the
// root needs for them: a slave mount works under a slave or shared root only,
// a shared one under a shared root only.
func userMounts(in *Input) (out []specs.Mount, root string, err error) {
	for _, m := range in.Container.Mounts {
		o, err := userMount(m)
		if err != nil {
			return nil, "", err
		}
		out = append(out, o)
		switch {
		case m.Propagation == runtime.PropagationBidirectional:
			root = "rshared"
		case m.Propagation == runtime.PropagationHostToContain && root == "":
			root = "rslave"
		}
	}
	return out, root, nil
}

func userMount(m runtime.Mount) (specs.Mount, error) {
	fail := func(why string) (specs.Mount, error) {
		return specs.Mount{}, invalid("mount of %q at %q: %s", m.HostPath, m.ContainerPath, why)
	}
	if !path.IsAbs(m.HostPath) {
		return fail("the host path is not absolute")
	}
	for _, o := range m.Options {
		if !slices.Contains(runtime.MountOptions, o) {
			return fail("option " + o + " is not allowed")
		}
	}
	if m.ContainerPath == "" {
		return fail("no container path")
	}
	dst := path.Join("/", m.ContainerPath)
	if dst == "/" {
		return fail("the root cannot be mounted over")
	}
	if m.Image != "" {
		// The tree is shifted already where the pod has a user namespace.
		opts := slices.Concat([]string{"bind", "rprivate", "ro", "noexec", "nosuid", "nodev"}, m.Options)
		slices.Sort(opts[2:])
		return specs.Mount{Destination: dst, Type: "bind", Source: path.Clean(m.HostPath), Options: slices.Compact(opts)}, nil
	}
	opts := []string{"rbind"}
	switch m.Propagation {
	case "", runtime.PropagationPrivate:
		opts = append(opts, "rprivate")
	case runtime.PropagationHostToContain, runtime.PropagationBidirectional:
		if m.RecursiveReadOnly {
			return fail("a recursive read-only mount must have private propagation")
		}
		opts = append(opts, string(m.Propagation))
	default:
		return fail("unknown propagation " + string(m.Propagation))
	}
	switch {
	case m.RecursiveReadOnly && !m.ReadOnly:
		return fail("recursive read-only without read-only")
	case m.RecursiveReadOnly:
		opts = append(opts, "ro", "rro")
	case m.ReadOnly:
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rw")
	}
	opts = append(opts, m.Options...)
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		return fail("uid and gid mappings must be given together")
	}
	uids, err := idMappings(m.UIDMappings)
	if err != nil {
		return fail(err.Error())
	}
	gids, err := idMappings(m.GIDMappings)
	if err != nil {
		return fail(err.Error())
	}
	return specs.Mount{
		Destination: dst, Type: "bind", Source: path.Clean(m.HostPath), Options: opts,
		UIDMappings: uids, GIDMappings: gids,
	}, nil
}
