package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// baseDevices are the character devices that every container may use. The OCI
// runtime makes the nodes.
var baseDevices = []struct{ major, minor int64 }{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, // null, zero, full, random, urandom
	{5, 0}, {5, 2}, {136, -1}, // tty, ptmx, pts/*
}

// stepDevices lists the device nodes and the cgroup's rules: all denied, then
// the allow list. Making any node is allowed, as package managers do it and a
// node gives no access; using it is what the rules decide.
func stepDevices(in *Input, s *specs.Spec) error {
	if err := checkDevices(in); err != nil {
		return err
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	rules := &s.Linux.Resources.Devices
	if in.Container.Security.Privileged && !in.HideHostDevices {
		*rules = append(*rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
		for _, d := range in.AllDevices {
			if !slices.ContainsFunc(in.HostDevices, func(h specs.LinuxDevice) bool { return h.Path == d.Path }) {
				s.Linux.Devices = append(s.Linux.Devices, d)
			}
		}
		for _, d := range in.HostDevices {
			in.addDevice(s, d)
		}
		return nil
	}
	*rules = append(*rules,
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "m"},
		specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"})
	for _, d := range baseDevices {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: new(d.major), Access: "rwm"}
		if d.minor >= 0 {
			rule.Minor = new(d.minor)
		}
		*rules = append(*rules, rule)
	}
	for _, d := range in.HostDevices {
		in.addDevice(s, d)
		*rules = append(*rules, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: new(d.Major), Minor: new(d.Minor), Access: in.permissions(d.Path),
		})
	}
	return nil
}

// addDevice puts a node into the container. In a user namespace no node can be
// made, and OCI runtimes bind the host's node of the same name instead: one that
// the host has under another name is bound here.
func (in *Input) addDevice(s *specs.Spec, d specs.LinuxDevice) {
	if host := in.hostDevice(d.Path); in.modes().User != nil && host != d.Path {
		s.Mounts = append(s.Mounts, specs.Mount{
			Destination: d.Path, Type: "bind", Source: host,
			Options: []string{"bind", "rprivate", "nosuid", "noexec", "rw"},
		})
		return
	}
	s.Linux.Devices = append(s.Linux.Devices, d)
}

// hostDevice finds the host's path of the device at container path p.
func (in *Input) hostDevice(p string) string {
	best, host := -1, p
	for _, d := range in.Container.Devices {
		at := devicePath(d)
		if within(p, at) && len(at) > best {
			best, host = len(at), path.Join(d.HostPath, strings.TrimPrefix(p, at))
		}
	}
	return host
}

func checkDevices(in *Input) error {
	for _, d := range in.Container.Devices {
		if strings.Trim(d.Permissions, "rwm") != "" {
			return invalid("device %q: permissions %q are not made of r, w and m", d.HostPath, d.Permissions)
		}
	}
	for _, d := range in.HostDevices {
		if !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path {
			return invalid("device path %q is not an absolute clean path", d.Path)
		}
		if d.Type != "c" && d.Type != "b" && d.Type != "u" {
			return invalid("device %q is neither a character nor a block device", d.Path)
		}
	}
	return nil
}

// permissions finds the access asked for the device at container path p: that
// of the request's entry for it, or for the nearest directory above it.
func (in *Input) permissions(p string) string {
	best, access := -1, "rwm"
	for _, d := range in.Container.Devices {
		at := devicePath(d)
		if within(p, at) && len(at) > best && d.Permissions != "" {
			best, access = len(at), d.Permissions
		}
	}
	return access
}
