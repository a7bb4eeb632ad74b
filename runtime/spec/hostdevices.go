package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// maxDevices bounds what one request or one directory can bring in.
const maxDevices = 4096

func devicePath(d runtime.Device) string {
	if d.ContainerPath == "" {
		return path.Clean(d.HostPath)
	}
	return path.Join("/", d.ContainerPath)
}

// Devices looks up the device nodes that cfg names on the machine. A directory
// stands for all devices below it. A path that is missing or no device wraps
// runtime.ErrInvalid.
func Devices(cfg []runtime.Device) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	for _, c := range cfg {
		if !filepath.IsAbs(c.HostPath) {
			return nil, invalid("device path %q is not absolute", c.HostPath)
		}
		fi, err := os.Stat(c.HostPath)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, invalid("device %q does not exist on this machine", c.HostPath)
		}
		if err != nil {
			return nil, fmt.Errorf("device: %w", err)
		}
		if !fi.IsDir() {
			d, ok, err := device(c.HostPath, devicePath(c))
			if err != nil {
				return nil, err
			}
			if !ok {
				return nil, invalid("%q is not a device", c.HostPath)
			}
			out = append(out, d)
			continue
		}
		found, err := walkDevices(c.HostPath, devicePath(c))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, invalid("directory %q holds no device", c.HostPath)
		}
		out = append(out, found...)
	}
	if len(out) > maxDevices {
		return nil, invalid("%d devices asked for, more than %d", len(out), maxDevices)
	}
	return out, nil
}

// HostDevices returns all device nodes under /dev for a privileged container.
// Pseudo-terminals and what is no device of the machine's is left out: the
// container has its own.
func HostDevices() ([]specs.LinuxDevice, error) {
	return walkDevices("/dev", "/dev")
}

// ownInContainer names what a container has its own of, relative to /dev.
var ownInContainer = map[string]bool{
	"pts": true, "shm": true, "mqueue": true, "fd": true, "core": true,
	"console": true, "ptmx": true, "stdin": true, "stdout": true, "stderr": true,
	".lxc": true, ".lxd-mounts": true, ".udev": true,
}

// walkDevices lists the devices below dir as they appear below at. Symbolic
// links are not followed: what they point to is found under its own name. A
// node that disappears during the walk, as hot-plugged ones do, is skipped.
func walkDevices(dir, at string) ([]specs.LinuxDevice, error) {
	// WalkDir does not enter a link, and the directory itself may be one.
	dir, err := filepath.EvalSymlinks(dir) //nolint:forbidigo // a path of the host's, which nobody but root can swap
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case dir == "/dev" && ownInContainer[rel]:
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.Type()&fs.ModeDevice == 0:
			return nil
		}
		d, ok, err := device(p, path.Join(at, rel))
		if ok && err == nil {
			out = append(out, d)
		}
		if len(out) > maxDevices {
			return invalid("more than %d devices under %q", maxDevices, dir)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	return out, nil
}

// device describes the node at host; ok is false when it is none, or gone.
func device(host, at string) (d specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(host, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return d, false, nil
		}
		return d, false, fmt.Errorf("device %q: %w", host, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	d.Path = at
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	d.FileMode = new(fs.FileMode(st.Mode & 0o777))
	d.UID, d.GID = new(st.Uid), new(st.Gid)
	return d, true, nil
}
