package agent

import (
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"
)

// holderTime bounds the set-up of a pod's holder.
const holderTime = 10 * time.Second

// alone is what the holder has for itself beside the pod's PID namespace, where
// containers of the pod can see it: one that may trace processes must not get
// at the host's files, network or hostname through it.
const alone = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWCGROUP

// awaitHolder waits until the holder has given up what it was born with.
func awaitHolder(ready *os.File) error {
	defer ready.Close()
	_ = ready.SetReadDeadline(time.Now().Add(holderTime))
	b := make([]byte, 256)
	n, err := ready.Read(b)
	switch {
	case n == 1 && b[0] == 0:
		return nil
	case n > 0:
		return &failure{text: "the holder of the pod's namespaces: " + string(b[:n])}
	}
	return errors2("the holder of the pod's namespaces", err)
}

// pause is pid 1 of a pid namespace: it leaves reaping to the kernel, and ends
// with the monitor, whose end of the pipe on stdin then closes. Its stdout says
// when it is ready, with a zero byte, or why it is not.
func pause() int {
	signal.Ignore(syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := renounce(); err != nil {
		_, _ = syscall.Write(1, []byte(err.Error()))
		return 1
	}
	if _, err := syscall.Write(1, []byte{0}); err != nil {
		return 1
	}
	_ = syscall.Close(1)
	var b [1]byte
	for {
		if n, err := syscall.Read(0, b[:]); n == 0 || err != nil && err != syscall.EINTR {
			return 0
		}
	}
}

// renounce leaves this process with an empty root directory, no capability and
// nothing to read of it.
func renounce() error {
	const (
		dumpable   = 4  // PR_SET_DUMPABLE
		noNewPrivs = 38 // PR_SET_NO_NEW_PRIVS
	)
	if err := emptyRoot(); err != nil {
		return err
	}
	if _, _, e := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, noNewPrivs, 1, 0, 0, 0, 0); e != 0 {
		return errors2("no new privileges", e)
	}
	header := struct {
		version uint32
		pid     int32
	}{version: 0x20080522}
	var none [6]uint32
	if _, _, e := syscall.AllThreadsSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); e != 0 { //nolint:gosec // capset(2) reads both
		return errors2("drop capabilities", e)
	}
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, dumpable, 0, 0, 0, 0, 0); e != 0 {
		return errors2("not dumpable", e)
	}
	return nil
}

// emptyRoot swaps the root of this process's own mount namespace for an empty
// directory. Nothing of the host's stays mounted here, where it would be busy.
func emptyRoot() error {
	const over = "/proc" // is everywhere
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return errors2("cut the propagation of mounts", err)
	}
	const flags = syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	if err := syscall.Mount("ocid", over, "tmpfs", flags, "mode=0,size=4k"); err != nil {
		return errors2("mount an empty root", err)
	}
	if err := syscall.Chdir(over); err != nil {
		return errors2("enter the empty root", err)
	}
	if syscall.PivotRoot(".", ".") == nil {
		if err := syscall.Unmount(".", syscall.MNT_DETACH); err != nil {
			return errors2("leave the host's root", err)
		}
		return errors2OrNil("enter the empty root", syscall.Chdir("/"))
	}
	// The host runs from its initial ramfs, which cannot be moved away.
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return errors2("move the empty root", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return errors2("enter the empty root", err)
	}
	return errors2OrNil("enter the empty root", syscall.Chdir("/"))
}

func errors2OrNil(what string, err error) error {
	if err == nil {
		return nil
	}
	return errors2(what, err)
}
