package network

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/mountinfo"
	"github.com/ocid-io/ocid/internal/userns"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
)

var mapping = runtime.UserNamespace{
	UIDs: []runtime.IDMapping{{ContainerID: 0, HostID: 200000, Length: 65536}},
	GIDs: []runtime.IDMapping{{ContainerID: 0, HostID: 300000, Length: 65536}},
}

func TestPinUserNamespace(t *testing.T) {
	needRoot(t)
	for _, held := range []bool{false, true} {
		req := lifecycle.PinRequest{
			Dir: filepath.Join(t.TempDir(), "ns"), Want: []string{"net", "uts", "ipc", "user"},
			Hostname: "box", User: &mapping,
			Sysctls: map[string]string{"kernel.shmmax": "123456", "net.ipv4.ip_unprivileged_port_start": "80"},
		}
		t.Cleanup(func() { _ = Namespaces{}.Unpin(req.Dir) })
		if held {
			h, err := userns.Start(maps(mapping.UIDs), maps(mapping.GIDs), unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWPID)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			req.Holder = h.PID()
		}
		if err := (Namespaces{}).Pin(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		owner := inode(t, filepath.Join(req.Dir, "user"))
		for _, k := range []string{"net", "uts", "ipc"} {
			if got := ownerOf(t, filepath.Join(req.Dir, k)); got != owner {
				t.Errorf("%s namespace is owned by %d, the pod's user namespace is %d", k, got, owner)
			}
		}
		inside := func(args ...string) string {
			flags := []string{}
			for _, k := range req.Want {
				flags = append(flags, "--"+k+"="+filepath.Join(req.Dir, k))
			}
			out, err := exec.Command("nsenter", append(flags, args...)...).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %v: %s", args, err, out)
			}
			return strings.Join(strings.Fields(string(out)), " ")
		}
		for want, cmd := range map[string][]string{
			"box": {"uname", "-n"}, "123456": {"cat", "/proc/sys/kernel/shmmax"},
			"80":             {"cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"},
			"0 200000 65536": {"cat", "/proc/self/uid_map"}, "0 300000 65536": {"cat", "/proc/self/gid_map"},
		} {
			if got := inside(cmd...); got != want {
				t.Errorf("%v gives %q, want %q", cmd, got, want)
			}
		}
		if err := (Namespaces{}).Pin(t.Context(), req); err != nil || inode(t, filepath.Join(req.Dir, "user")) != owner {
			t.Errorf("a second call made them anew, or failed: %v", err)
		}
		if err := (Namespaces{}).Unpin(req.Dir); err != nil {
			t.Fatal(err)
		}
		if left, _ := mountinfo.Under(req.Dir); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

func TestPinUserNamespaceBadSysctl(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	err := Namespaces{}.Pin(t.Context(), lifecycle.PinRequest{
		Dir: dir, Want: []string{"ipc", "user"}, User: &mapping, Sysctls: map[string]string{"kernel.shmmax": "x"},
	})
	if !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	if left, _ := mountinfo.Under(dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if uid := os.Geteuid(); uid != 0 {
		t.Errorf("the process became user %d", uid)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func ownerOf(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return inode(t, "/proc/self/fd/"+strconv.Itoa(fd))
}
