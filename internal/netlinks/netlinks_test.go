package netlinks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// namespace makes a network namespace with a dummy interface and pins it.
func namespace(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	pin := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(pin, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A veth pair talks to itself: what one end sends, the other gets.
	script := "ip link add eth0 type veth peer name peer0 && ip link set lo up && ip addr add 10.9.9.1/24 dev eth0 && " +
		"ip link set eth0 up && ip link set peer0 up && mount --bind /proc/self/ns/net " + pin
	out, err := exec.Command("unshare", "--net", "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Skipf("needs unshare, ip and veth: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(pin, unix.MNT_DETACH) })
	return pin
}

func TestLinks(t *testing.T) {
	pin := namespace(t)
	var r Reader
	defer r.Close()
	before, err := r.Links(pin)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != 2 {
		t.Fatalf("links are %+v", before)
	}
	out, err := exec.Command("nsenter", "--net="+pin, "bash", "-c", "echo x >/dev/udp/10.9.9.7/9; cat /proc/net/dev").CombinedOutput()
	if err != nil {
		t.Skipf("needs nsenter and bash: %v: %s", err, out)
	}
	after, err := r.Links(pin)
	if err != nil {
		t.Fatal(err)
	}
	sum := func(ls []Link) (n uint64) {
		for _, l := range ls {
			n += l.TxPackets + l.RxPackets
		}
		return n
	}
	if sum(after) <= sum(before) {
		t.Errorf("nothing was counted: %+v, then %+v\n%s", before, after, out)
	}
	for _, l := range after {
		if !strings.Contains(string(out), l.Name+":") {
			t.Errorf("%s is not in\n%s", l.Name, out)
		}
	}
	if _, err := r.Links("/proc/self/status"); err == nil {
		t.Error("a file that is no namespace was taken")
	}
	if again, err := r.Links(pin); err != nil || len(again) != 2 {
		t.Errorf("after a failure: %+v, %v", again, err)
	}
	if _, err := r.Links("/absent"); err == nil {
		t.Error("an absent file was taken")
	}
}

func BenchmarkLinks(b *testing.B) {
	pin := namespace(b)
	var r Reader
	defer r.Close()
	for b.Loop() {
		if _, err := r.Links(pin); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, data []byte) {
		var r Reader
		_, _ = r.messages(data, func(_ uint16, b []byte) { parseLink(b) })
	})
}
