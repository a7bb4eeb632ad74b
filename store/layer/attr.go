package layer

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sys/unix"
)

// noMode marks what has no mode of its own: symbolic links.
const noMode = ^uint32(0)

// maxXattrs bounds the extended attributes of one entry, in bytes; the format
// bounds a header at 1 MiB already.
const maxXattrs = 1 << 20

// attributes are what a file has besides its content.
type attributes struct {
	uid, gid uint32
	mode     uint32 // permission and set-id bits
	times    [2]unix.Timespec
	xattrs   map[string]string
	// xattrBytes is what xattrs hold.
	xattrBytes int
}

func attributesOf(hdr *tar.Header) (attributes, error) {
	const maxID = 1<<32 - 2
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid > maxID || hdr.Gid > maxID {
		return attributes{}, fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, ErrMalformed)
	}
	access := hdr.AccessTime
	if access.Before(hdr.ModTime) {
		access = hdr.ModTime
	}
	a := attributes{
		uid: uint32(hdr.Uid), gid: uint32(hdr.Gid), mode: uint32(hdr.Mode) & 0o7777, //nolint:gosec // bounded above; the rest of the mode is the type
		times: [2]unix.Timespec{timespec(access), timespec(hdr.ModTime)},
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keepXattr(name) {
			continue
		}
		if a.xattrBytes += len(name) + len(value); a.xattrBytes > maxXattrs {
			return attributes{}, fmt.Errorf("extended attributes of more than %d bytes: %w", maxXattrs, ErrTooLarge)
		}
		if a.xattrs == nil {
			a.xattrs = map[string]string{}
		}
		a.xattrs[name] = value
	}
	return a, nil
}

// keepXattr: what programs and the kernel's file capabilities and ACLs use.
// Left out is what would steer the overlay on top or label a file for a
// security module, which is the host's to do.
func keepXattr(name string) bool {
	if strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "trusted.overlay.") {
		return false
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// timespec bounds a time to what the kernel takes (34 bits of seconds on ext4
// are cut by the kernel itself).
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	sec := min(max(t.Unix(), -1<<40), 1<<40)
	return unix.Timespec{Sec: sec, Nsec: int64(t.Nanosecond())}
}

// setFD sets all attributes of an open file; owners first, because a change of
// owner clears set-id bits and capabilities. changed says whether owner and
// mode may be other than 0:0 and the wanted one.
func (a attributes) setFD(fd int, changed bool) error {
	if changed || a.uid != 0 || a.gid != 0 {
		if err := unix.Fchown(fd, int(a.uid), int(a.gid)); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	for name, value := range a.xattrs {
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set extended attribute %s: %w", shorten(name), err)
		}
	}
	if err := futimens(fd, &a.times); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// setAt sets the attributes of what cannot be opened: a link, a device, a FIFO.
func (a attributes) setAt(p place) error {
	if err := unix.Fchownat(p.dir, p.base, int(a.uid), int(a.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if a.mode != noMode {
		// It was made just now, and nobody else is here: it is no link.
		if err := unix.Fchmodat(p.dir, p.base, a.mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	for name, value := range a.xattrs {
		link := fmt.Sprintf("/proc/self/fd/%d/%s", p.dir, p.base)
		// Links and devices have no user attributes (xattr(7)); tar leaves them out as well.
		if err := unix.Lsetxattr(link, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set extended attribute %s: %w", shorten(name), err)
		}
	}
	if err := unix.UtimesNanoAt(p.dir, p.base, a.times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
