// Package userdb reads the user and group databases of a container's root
// file system.
//
// The files are hostile: they come from an image. Invariants:
//   - a path is resolved inside the root by the kernel (RESOLVE_IN_ROOT), so no
//     link or ".." leads out of it, and only a regular file is opened for
//     reading: a FIFO or device is never opened at all;
//   - at most MaxFile bytes are read, a line longer than MaxLine and any line
//     that is malformed is skipped, and no work is more than linear.
package userdb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of what is read. A group with thousands of members has one long line.
const (
	MaxFile = 1 << 20
	MaxLine = 64 << 10
)

// MaxID is the highest id there is: 2^32-1 means "no id" to the kernel.
const MaxID = 1<<32 - 2

// ErrTooLarge: the file is larger than MaxFile.
var ErrTooLarge = errors.New("file too large")

// ErrNotRegular: the path is no regular file.
var ErrNotRegular = errors.New("not a regular file")

// User is one line of /etc/passwd.
type User struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Group is one line of /etc/group.
type Group struct {
	Name    string
	GID     uint32
	Members []string
}

// Has reports whether user is listed as a member.
func (g Group) Has(user string) bool { return user != "" && slices.Contains(g.Members, user) }

// Users reads root's /etc/passwd; a missing file has no users.
func Users(root string) ([]User, error) {
	b, err := readIn(root, "etc/passwd")
	if err != nil {
		return nil, err
	}
	return ParseUsers(b), nil
}

// Groups reads root's /etc/group; a missing file has no groups.
func Groups(root string) ([]Group, error) {
	b, err := readIn(root, "etc/group")
	if err != nil {
		return nil, err
	}
	return ParseGroups(b), nil
}

// ParseUsers returns the well-formed lines of a passwd file, in order.
func ParseUsers(b []byte) []User {
	var out []User
	for f := range lines(b, 7) {
		uid, ok1 := ParseID(string(f[2]))
		gid, ok2 := ParseID(string(f[3]))
		if len(f[0]) == 0 || !ok1 || !ok2 {
			continue
		}
		out = append(out, User{Name: string(f[0]), UID: uid, GID: gid, Home: string(f[5])})
	}
	return out
}

// ParseGroups returns the well-formed lines of a group file, in order.
func ParseGroups(b []byte) []Group {
	var out []Group
	for f := range lines(b, 4) {
		gid, ok := ParseID(string(f[2]))
		if len(f[0]) == 0 || !ok {
			continue
		}
		g := Group{Name: string(f[0]), GID: gid}
		for m := range bytes.SplitSeq(f[3], []byte{','}) {
			if m = bytes.TrimSpace(m); len(m) > 0 {
				g.Members = append(g.Members, string(m))
			}
		}
		out = append(out, g)
	}
	return out
}

// ParseID reads a decimal id in 0..MaxID, digits only.
func ParseID(s string) (uint32, bool) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= MaxID
}

// lines yields the fields of each line. A line may lack trailing fields, as
// hand-written files do; they are empty.
func lines(b []byte, fields int) func(yield func([][]byte) bool) {
	return func(yield func([][]byte) bool) {
		for line := range bytes.SplitSeq(b, []byte{'\n'}) {
			line = bytes.TrimSpace(line)
			if len(line) == 0 || len(line) > MaxLine || line[0] == '#' || bytes.IndexByte(line, 0) >= 0 {
				continue
			}
			f := bytes.SplitN(line, []byte{':'}, fields)
			for len(f) < fields {
				f = append(f, nil)
			}
			if !yield(f) {
				return
			}
		}
	}
}

// readIn reads the regular file at path inside root.
func readIn(root, path string) (b []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read /%s of root file system %s: %w", path, root, err)
		}
	}()
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := openIn(dir, path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrNotRegular
	}
	// The O_PATH descriptor pins the very file that was checked.
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err = io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(b) > MaxFile {
		err = ErrTooLarge
	}
	return b, err
}

// openIn finds path below dir without opening it. The kernel gives up with
// EAGAIN when something is renamed under it while it resolves a link.
func openIn(dir int, path string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 128 {
		fd, err := unix.Openat2(dir, path, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "openat2", Path: path, Err: err}
		}
		return fd, nil
	}
	return -1, fmt.Errorf("openat2 %s: %w", path, unix.EAGAIN)
}
