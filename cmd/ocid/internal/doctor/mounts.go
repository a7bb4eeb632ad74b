package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// fsNames names the file systems that matter here.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb",
	unix.SQUASHFS_MAGIC: "squashfs", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
}

func fsName(st *unix.Statfs_t) string {
	if n, ok := fsNames[st.Type]; ok {
		return n
	}
	return fmt.Sprintf("type %#x", st.Type)
}

// mounts checks the file systems below root and run root.
func (e *exam) mounts(context.Context) {
	e.rootFS()
	e.runRootFS()
	e.propagation()
	e.tryOverlay()
}

func (e *exam) rootFS() {
	dir := existing(e.Config.Root)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.bad(Fail, "root", err.Error(), "nothing can be stored", "make "+e.Config.Root)
		return
	}
	kind := fsName(&st)
	found := fmt.Sprintf("%s on %s", e.Config.Root, kind)
	move := "put root on a local ext4, xfs or btrfs"
	switch kind {
	case "nfs", "cifs", "smb", "fuse":
		e.bad(Fail, "root", found, "containers cannot have writable layers there", move)
	case "overlay":
		e.bad(Warn, "root", found, "overlay on overlay works on few kernels and is slow", move)
	case "tmpfs":
		e.bad(Warn, "root", found, "images are in memory and gone after a reboot", move)
	default:
		e.ok("root", "%s", found)
	}
	switch err := unix.Access(dir, unix.W_OK); {
	case err != nil:
		e.bad(Fail, "root writable", fmt.Sprintf("%s: %v", dir, err), "nothing can be stored", "mount it read-write, or set root elsewhere")
	default:
		e.ok("root writable", "%s", dir)
	}
	for flag, name := range map[int64]string{unix.ST_NOEXEC: "noexec", unix.ST_NODEV: "nodev", unix.ST_NOSUID: "nosuid"} {
		if st.Flags&flag == 0 {
			continue
		}
		status := Warn
		if name == "noexec" {
			status = Fail
		}
		e.bad(status, "root "+name, "mounted "+name, "programs in images that need it do not run", "mount the file system of "+dir+" without "+name)
	}
}

func (e *exam) runRootFS() {
	dir := existing(e.Config.RunRoot)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		e.bad(Fail, "run root", err.Error(), "no pod can run", "make "+e.Config.RunRoot)
		return
	}
	kind := fsName(&st)
	e.expect(kind == "tmpfs", Warn, "run root", fmt.Sprintf("%s on %s", e.Config.RunRoot, kind),
		"records of pods outlive a reboot that their pods do not, and each costs a disk flush", "put run_root on a tmpfs such as /run")
	if err := unix.Access(dir, unix.W_OK); err != nil {
		e.bad(Fail, "run root writable", fmt.Sprintf("%s: %v", dir, err), "no pod can run", "mount it read-write, or set run_root elsewhere")
	}
}

// propagation looks at the mount of / in mountinfo (proc(5)): mount point is the
// fifth field, optional fields such as shared:N come before the hyphen.
func (e *exam) propagation() {
	info, err := e.read("/proc/self/mountinfo")
	if err != nil {
		e.bad(Warn, "propagation of /", err.Error(), "not known", "mount /proc")
		return
	}
	shared := false
	for line := range strings.Lines(info) {
		left, _, _ := strings.Cut(line, " - ")
		f := strings.Fields(left)
		if len(f) >= 6 && f[4] == "/" {
			shared = strings.Contains(strings.Join(f[6:], " "), "shared:")
		}
	}
	e.expect(shared, Warn, "propagation of /", map[bool]string{true: "shared", false: "private"}[shared],
		"volumes with bidirectional or host-to-container propagation fail", "mount --make-rshared /")
}

// tryOverlay mounts an overlay below the root as a container's would be.
func (e *exam) tryOverlay() {
	const check = "overlay mount"
	if os.Geteuid() != 0 {
		e.bad(Warn, check, "not tried", "not known", "run ocid doctor as root")
		return
	}
	dir, err := os.MkdirTemp(existing(e.Config.Root), ".ocid-doctor-")
	if err != nil {
		e.bad(Fail, check, err.Error(), "containers cannot have root file systems", "make root writable")
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	err = overlayIn(dir)
	e.expect(err == nil, Fail, check, overlayFound(err), "containers cannot have root file systems",
		"put root on a local ext4, xfs (with ftype=1) or btrfs, and load the overlay module")
}

func overlayFound(err error) string {
	if err != nil {
		return err.Error()
	}
	return "works"
}

// overlayIn tries on a thread in a mount namespace of its own, which ends with
// the thread and takes the mount along.
func overlayIn(dir string) error {
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread must not be used again
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return fmt.Errorf("mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			at := func(n string) string { return filepath.Join(dir, n) }
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
			if err := unix.Mount("overlay", at("merged"), "overlay", 0, options); err != nil {
				return fmt.Errorf("mount an overlay in %s: %w", filepath.Dir(dir), err)
			}
			return errors.Join(os.WriteFile(filepath.Join(at("merged"), "x"), nil, 0o600), unix.Unmount(at("merged"), unix.MNT_DETACH))
		}()
	}()
	return <-done
}

// disk checks room below the root.
func (e *exam) disk(context.Context) {
	dir := existing(e.Config.Root)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return // mounts has said it
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	found := fmt.Sprintf("%d MiB of %d free below %s", free>>20, total>>20, e.Config.Root)
	mend := "remove images (ocid rmi), or give root a larger file system"
	switch {
	case free < minFree:
		e.bad(Fail, "space", found, "images cannot be pulled nor containers written to", mend)
	case total > 0 && free*100/total < 10:
		e.bad(Warn, "space", found, "the kubelet evicts pods and collects images when it falls further", mend)
	default:
		e.ok("space", "%s", found)
	}
	if st.Files == 0 {
		return // the file system makes inodes as it needs them
	}
	inodes := fmt.Sprintf("%d of %d free below %s", st.Ffree, st.Files, e.Config.Root)
	e.expect(st.Ffree*100/st.Files >= 5, Warn, "inodes", inodes, "images with many files cannot be unpacked", mend)
}

// minFree is less than any image needs.
const minFree = 64 << 20
