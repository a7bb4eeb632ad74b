package patientstat

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// remoteTypes are file systems that someone else than the kernel answers for.
var remoteTypes = map[string]bool{
	"nfs": true, "nfs4": true, "cifs": true, "smb3": true, "ceph": true, "9p": true, "afs": true,
	"lustre": true, "gfs2": true, "ocfs2": true, "beegfs": true, "gpfs": true, "orangefs": true,
	"coda": true, "ncpfs": true, "virtiofs": true,
	"fuse": true, "fuseblk": true, "autofs": true,
}

func isRemote(fstype string) bool {
	base, _, _ := strings.Cut(fstype, ".")
	return remoteTypes[base]
}

// maxLinks is the kernel's limit on symbolic links in one path.
const maxLinks = 40

// onRemote tells whether looking at path may enter a remote file system.
func onRemote(path string) (bool, error) {
	if !filepath.IsAbs(path) {
		return false, &fs.PathError{Op: "stat", Path: path, Err: syscall.EINVAL}
	}
	// A path that leaves no mount, or a machine without such file systems, needs
	// no list of mounts, which grows with the number of containers.
	if staysOnRoot(path) || !anyRemote() {
		return false, nil
	}
	mounts, err := remoteMounts()
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	return enters(path, mounts)
}

func staysOnRoot(path string) bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV})
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// anyRemote tells whether the kernel could have a remote mount at all. When in
// doubt it could.
func anyRemote() bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		name := strings.TrimSpace(strings.TrimPrefix(line, "nodev"))
		switch {
		case name == "autofs":
			// Registered nearly everywhere; what it mounts has a type too.
		case name == "fuse" || name == "fuseblk":
			var st unix.Statfs_t
			if err := unix.Statfs(connections, &st); err != nil || st.Type != fusectl {
				return true // not mounted: says nothing
			}
			if d, err := os.ReadDir(connections); err != nil || len(d) > 0 {
				return true
			}
		case isRemote(name):
			return true
		}
	}
	return false
}

// fusectl is the magic number of the file system that lists FUSE connections.
const (
	fusectl     = 0x65735543
	connections = "/sys/fs/fuse/connections"
)

// remoteMounts lists the mount points of remote file systems and, as false,
// those of all others.
func remoteMounts() (map[string]bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	all, found := map[string]bool{}, false
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 0, 1<<16), 1<<22)
	for s.Scan() {
		left, right, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(left)
		fstype, _, _ := strings.Cut(right, " ")
		if !ok || len(fields) < 5 {
			continue
		}
		// The last line of a mount point is what is on top.
		all[unescape(fields[4])] = isRemote(fstype)
		found = found || isRemote(fstype)
	}
	if !found {
		return nil, s.Err()
	}
	return all, s.Err()
}

var escapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(s string) string { return escapes.Replace(s) }

// enters resolves path link by link, and stops before the first step into a
// remote file system.
func enters(path string, mounts map[string]bool) (bool, error) {
	at, rest, links := "/", strings.Split(path, "/"), 0
	if mounts["/"] {
		return true, nil
	}
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		if remote, mount := mounts[next]; mount {
			if remote {
				return true, nil
			}
			at = next
			continue
		}
		target, err := os.Readlink(next)
		switch {
		case errors.Is(err, syscall.EINVAL):
			at = next
			continue
		case err != nil:
			return false, err
		}
		if links++; links > maxLinks {
			return false, &fs.PathError{Op: "stat", Path: path, Err: syscall.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return false, nil
}
