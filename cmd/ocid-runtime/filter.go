package main

/*
#cgo pkg-config: libseccomp
#cgo LDFLAGS: -Wl,--wrap=seccomp_export_bpf -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array

#include <errno.h>
#include <seccomp.h>
#include <unistd.h>

// The linker sends libcontainer's calls of these three here (ld(1), --wrap).
int __real_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned n, const struct scmp_arg_cmp *a);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned n, const struct scmp_arg_cmp *a);

static int ready_fd = -1;   // holds a compiled program: nothing is to be compiled
static int capture_fd = -1; // takes the compiled program: nothing is to be loaded

static void filter_ready(int fd) { ready_fd = fd; }
static void filter_capture(int fd) { capture_fd = fd; }

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned n, const struct scmp_arg_cmp *a) {
	return ready_fd >= 0 ? 0 : __real_seccomp_rule_add_array(ctx, action, nr, n, a);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned n, const struct scmp_arg_cmp *a) {
	return ready_fd >= 0 ? 0 : __real_seccomp_rule_add_exact_array(ctx, action, nr, n, a);
}

static int copy_filter(int from, off_t at, int to) {
	char buf[4096];
	for (;;) {
		ssize_t n = pread(from, buf, sizeof buf, at);
		if (n == 0) return 0;
		if (n < 0 && errno == EINTR) continue;
		if (n < 0) return -errno;
		at += n;
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, buf + done, n - done);
			if (w < 0 && errno == EINTR) continue;
			if (w < 0) return -errno;
			done += w;
		}
	}
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd) {
	if (ready_fd >= 0) return copy_filter(ready_fd, 40, fd);
	if (capture_fd < 0) return __real_seccomp_export_bpf(ctx, fd);
	int rc = __real_seccomp_export_bpf(ctx, capture_fd);
	return rc != 0 ? rc : -ECANCELED;
}
*/
import "C"

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Compiling a seccomp filter is most of the cost of a start and of an exec: 20
// of 50 ms for the default profile with its three architectures. So a profile
// is compiled once, and its program kept beside the runtime's state; later
// starts hand it to their first process as a sealed file, in which libcontainer
// finds it where it would have compiled.
//
// A kept program is used only for the very profile, libseccomp and runtime
// version that it was made from: their hash is its name and its head. Whatever
// goes wrong with it, the filter is compiled as if there were no cache.
const (
	// filterMagic begins a kept program; the hash of its profile follows.
	filterMagic = "ocidbpf1"
	filterHead  = 40   // bytes; copy_filter's offset
	filterFD    = 3    // of the first process: libcontainer's ExtraFiles begin there
	maxFilter   = 4096 // instructions, BPF_MAXINSNS (linux/bpf_common.h)
	instruction = 8    // bytes of one
)

// takeFilter runs in a container's first process before libcontainer does. It
// accepts what giveFilter gave, and keeps the file from the container.
func takeFilter() {
	var head [filterHead]byte
	if _, err := unix.FcntlInt(filterFD, unix.F_GET_SEALS, 0); err != nil {
		return // no memory file, so none of ours
	}
	if n, err := unix.Pread(filterFD, head[:], 0); err != nil || n != len(head) || string(head[:len(filterMagic)]) != filterMagic {
		return
	}
	unix.CloseOnExec(filterFD)
	C.filter_ready(filterFD)
}

// giveFilter passes the profile's program to the process. It does nothing when
// there is no profile, or when the caller passes files of its own, whose
// numbers must not change.
func giveFilter(dir string, profile *configs.Seccomp, lp *libcontainer.Process) {
	if profile == nil || len(lp.ExtraFiles) > 0 {
		return
	}
	program, err := filter(dir, profile)
	if err != nil {
		return // the process compiles it, and tells what is wrong with it
	}
	f, err := sealed(program)
	if err != nil {
		return
	}
	lp.ExtraFiles = []*os.File{f}
}

// filter returns head and program of the profile, compiled now or before.
func filter(dir string, profile *configs.Seccomp) ([]byte, error) {
	head, err := filterKey(profile)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%x", head[len(filterMagic):]))
	b, err := os.ReadFile(path)
	if err == nil && whole(b, head) {
		return b, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if b, err = compile(head, profile); err != nil {
		return nil, err
	}
	if err := keep(path, b); err != nil {
		logrus.Debugf("the compiled seccomp filter is not kept: %v", err)
	}
	return b, nil
}

func whole(b, head []byte) bool {
	n := len(b) - filterHead
	return bytes.HasPrefix(b, head) && n > 0 && n%instruction == 0 && n <= maxFilter*instruction
}

// filterKey is a program's head: the magic, and the hash of all it depends on.
func filterKey(profile *configs.Seccomp) ([]byte, error) {
	b, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	v := C.seccomp_version()
	h := sha256.New()
	fmt.Fprintf(h, "%s %d.%d.%d\n", version, v.major, v.minor, v.micro)
	h.Write(b)
	return h.Sum([]byte(filterMagic)), nil
}

// compile has libcontainer make the filter and stops it before it is loaded.
func compile(head []byte, profile *configs.Seccomp) ([]byte, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	defer f.Close()
	if _, err := f.Write(head); err != nil {
		return nil, err
	}
	C.filter_capture(C.int(fd))
	_, err = seccomp.InitSeccomp(profile)
	C.filter_capture(-1)
	if !errors.Is(err, unix.ECANCELED) {
		return nil, fmt.Errorf("compile the seccomp filter: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, err
	}
	if !whole(b, head) {
		return nil, errors.New("compile the seccomp filter: a program of odd size")
	}
	return b, nil
}

// keep gives the program its name when all of it is written. Killed on the way
// it leaves nothing: the file has no name before.
func keep(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open a nameless file in", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	// A file that is there is damaged, or another process's equal one.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// sealed puts the program into memory that nobody can change any more.
func sealed(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	if _, err = f.Write(b); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
