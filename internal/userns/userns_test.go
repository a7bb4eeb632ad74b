package userns

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestHost(t *testing.T) {
	m := []Map{{0, 1000, 10}, {20, 5000, 1}}
	for id, want := range map[uint32]int64{0: 1000, 9: 1009, 10: -1, 19: -1, 20: 5000, 21: -1, 1<<32 - 1: -1} {
		got := int64(-1)
		if h, ok := Host(m, id); ok {
			got = int64(h)
		}
		if got != want {
			t.Errorf("%d is %d on the host, want %d", id, got, want)
		}
	}
}

func TestHolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: other ids than one's own are mapped")
	}
	h, err := Start([]Map{{0, 70000, 65536}}, []Map{{0, 80000, 65536}}, syscall.CLONE_NEWNET)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	dir := "/proc/" + strconv.Itoa(h.PID()) + "/"
	for file, want := range map[string]string{"uid_map": "0 70000 65536", "gid_map": "0 80000 65536"} {
		b, err := os.ReadFile(dir + file)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(strings.Fields(string(b)), " "); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t70000\t70000", "Gid:\t80000\t80000", "State:\tt"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the holder's status lacks %q:\n%s", want, status)
		}
	}
	mine, _ := os.Readlink("/proc/self/ns/net")
	if its, err := os.Readlink(dir + "ns/net"); err != nil || its == mine {
		t.Errorf("its network namespace is %s (%v), ours %s", its, err, mine)
	}
	f, err := h.Open("user")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.Close()
	h.Close()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the holder is still there: %v", err)
	}
	if _, err := f.Stat(); err != nil {
		t.Errorf("the namespace went with its holder: %v", err)
	}
}

func TestBadMapping(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: other ids than one's own are mapped")
	}
	if _, err := Start([]Map{{0, 1000, 10}, {0, 2000, 10}}, []Map{{0, 1000, 10}}, 0); err == nil {
		t.Error("overlapping mappings were accepted")
	}
	if _, err := Start(nil, nil, 0); err == nil {
		t.Error("no mappings were accepted")
	}
}
