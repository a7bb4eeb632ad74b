package spec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/userdb"
	"github.com/ocid-io/ocid/runtime"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:\n1234:x:0:0::/evil:\nbad:x:7:7::relative:\n"
	group  = "root:x:0:\nweb:x:1001:\nextra:x:50000:web\nlog:x:60:other,web\n77:x:0:\n"
)

func userRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for f, s := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, "etc", f), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestResolveUser(t *testing.T) {
	dir := userRoot(t)
	for name, c := range map[string]struct {
		image string
		sec   runtime.Security
		uid   uint32
		gid   uint32
		more  []uint32
		home  string
		err   string
	}{
		"nothing":               {home: "/root"},
		"name":                  {image: "web", uid: 1000, gid: 1001, more: []uint32{60, 50000}, home: "/home/web"},
		"number in passwd":      {image: "1000", uid: 1000, gid: 1001, more: []uint32{60, 50000}, home: "/home/web"},
		"number not in passwd":  {image: "4242", uid: 4242},
		"name and group":        {image: "web:log", uid: 1000, gid: 60, more: []uint32{50000}, home: "/home/web"},
		"numbers":               {image: "4242:4343", uid: 4242, gid: 4343},
		"number is no name":     {image: "1234", uid: 1234},
		"group is no name":      {image: "web:77", uid: 1000, gid: 77, more: []uint32{60, 50000}, home: "/home/web"},
		"relative home":         {image: "bad", uid: 7, gid: 7},
		"run as user":           {image: "web:log", sec: runtime.Security{RunAsUser: new(int64(5))}, uid: 5},
		"run as image's user":   {sec: runtime.Security{RunAsUser: new(int64(1000))}, uid: 1000, gid: 1001, more: []uint32{60, 50000}, home: "/home/web"},
		"run as user and group": {sec: runtime.Security{RunAsUser: new(int64(5)), RunAsGroup: new(int64(6))}, uid: 5, gid: 6},
		"run as name":           {sec: runtime.Security{RunAsUserName: "web", RunAsGroup: new(int64(6))}, uid: 1000, gid: 6, more: []uint32{60, 50000}, home: "/home/web"},
		"merge":                 {image: "web", sec: runtime.Security{SupplementalGroups: []int64{9, 60, 1001, 9}}, uid: 1000, gid: 1001, more: []uint32{9, 60, 50000}, home: "/home/web"},
		"strict":                {image: "web", sec: runtime.Security{SupplementalGroups: []int64{9}, GroupsPolicy: runtime.GroupsStrict}, uid: 1000, gid: 1001, more: []uint32{9}, home: "/home/web"},
		"highest id":            {sec: runtime.Security{RunAsUser: new(int64(userdb.MaxID))}, uid: userdb.MaxID},

		"unknown name":        {image: "ghost", err: `"ghost"`},
		"unknown group":       {image: "web:ghosts", err: `"ghosts"`},
		"unknown run as name": {sec: runtime.Security{RunAsUserName: "ghost"}, err: `"ghost"`},
		"name with colon":     {sec: runtime.Security{RunAsUserName: "web:log"}, err: "':'"},
		"group alone":         {sec: runtime.Security{RunAsGroup: new(int64(6))}, err: "run_as_group"},
		"group alone, image":  {image: "web", sec: runtime.Security{RunAsGroup: new(int64(6))}, err: "run_as_group"},
		"both":                {sec: runtime.Security{RunAsUser: new(int64(5)), RunAsUserName: "web"}, err: "both"},
		"no id":               {sec: runtime.Security{RunAsUser: new(int64(1<<32 - 1))}, err: "4294967295"},
		"wraps to root":       {image: "4294967296", err: "4294967296"},
		"group wraps":         {image: "web:4294967296", err: "4294967296"},
		"negative":            {sec: runtime.Security{RunAsUser: new(int64(-1))}, err: "-1"},
		"negative image":      {image: "-1", err: `"-1"`},
		"negative group":      {sec: runtime.Security{RunAsUser: new(int64(1)), RunAsGroup: new(int64(-1))}, err: "-1"},
		"supplemental range":  {sec: runtime.Security{SupplementalGroups: []int64{1 << 32}}, err: "supplemental"},
		"policy":              {sec: runtime.Security{GroupsPolicy: "odd"}, err: "odd"},
		"two colons":          {image: "a:b:c", err: "a:b:c"},
		"empty group":         {image: "web:", err: "web:"},
		"newline":             {image: "web\nx", err: "user:group"},
	} {
		t.Run(name, func(t *testing.T) {
			u, home, err := ResolveUser(dir, runtime.ImageConfig{User: c.image}, c.sec)
			if c.err != "" {
				if !errors.Is(err, runtime.ErrInvalid) || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want an invalid request that mentions %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := append([]uint32{c.gid}, c.more...)
			if u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.Groups, want) || home != c.home {
				t.Errorf("got %+v home %q, want %d:%d %v %q", u, home, c.uid, c.gid, want, c.home)
			}
		})
	}
}

func TestResolveUserHostileDatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ResolveUser(dir, runtime.ImageConfig{}, runtime.Security{}); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzImageUser(f *testing.F) {
	for _, s := range []string{"", "root", "0", "1000:1000", "web:log", "a:b:c", ":", ":x", "x:", "+1", "-1", "4294967295", "00", "1 ", "\xff"} {
		f.Add(s)
	}
	users, groups := userdb.ParseUsers([]byte(passwd)), userdb.ParseGroups([]byte(group))
	f.Fuzz(func(t *testing.T, s string) {
		ask, err := parseImageUser(s)
		if err == nil {
			_, _, err = resolve(ask, runtime.Security{}, users, groups)
		}
		if err != nil && !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	})
}

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	node := filepath.Join(dir, "sub", "zero")
	if err := os.Mkdir(filepath.Dir(node), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(node, unix.S_IFCHR|0o640, int(unix.Mkdev(1, 5))); err != nil {
		t.Skipf("device nodes cannot be made here: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Devices([]runtime.Device{{HostPath: dir, ContainerPath: "/dev/all"}, {HostPath: node}, {HostPath: node, ContainerPath: "/dev/z"}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"/dev/all/sub/zero", node, "/dev/z"} {
		if d := got[i]; d.Path != want || d.Type != "c" || d.Major != 1 || d.Minor != 5 || *d.FileMode != 0o640 {
			t.Errorf("device %d: %+v", i, d)
		}
	}
	for _, p := range []string{"", "dev/null", "/no/such/device", filepath.Join(dir, "file"), t.TempDir()} {
		if _, err := Devices([]runtime.Device{{HostPath: p}}); !errors.Is(err, runtime.ErrInvalid) {
			t.Errorf("%q: got %v", p, err)
		}
	}
}

func TestHostDevices(t *testing.T) {
	all, err := HostDevices()
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{}
	for _, d := range all {
		paths[d.Path] = true
		if strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") || d.Path == "/dev/ptmx" {
			t.Errorf("%s belongs to each container", d.Path)
		}
	}
	if !paths["/dev/null"] {
		t.Error("/dev/null is missing")
	}
}
