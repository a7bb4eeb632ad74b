package proto

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite golden files")

func samples() []Msg {
	return []Msg{
		{Type: Hello, Min: 1, Max: 3},
		{Type: HelloOK, Max: 1, PID: 4711},
		{Type: Error, ID: 9, Code: int64(KindNotFound), Text: "no such container"},
		{Type: Create, ID: 1, Container: "c0ffee", Bundle: "/run/b", LogPath: "/var/log/x", Cgroup: "/kubepods/x", Flags: FlagTTY | FlagStdin},
		{Type: OK, ID: 1, PID: 12},
		{Type: Signal, ID: 2, Container: "c0ffee", Code: 15, Flags: FlagAll},
		{Type: Wait, ID: 3, Container: "c0ffee"},
		{Type: OK, ID: 3, Code: 137, Time: 1234567890123456789, Flags: FlagExited | FlagOOM},
		{Type: Exec, ID: 4, Container: "c0ffee", Data: []byte(`{"args":["true"]}`), Time: 1e9},
		{Type: Stdout, Data: []byte("hello\n")},
		{Type: ExecFiles, ID: 6, Container: "c0ffee", Data: []byte(`{"terminal":true}`), Flags: FlagTTY},
		{Type: Attach, ID: 7, Container: "c0ffee", Flags: FlagStdin | FlagStdout | FlagStderr},
		{Type: Opened, ID: 7, Flags: FlagFile},
		{Type: OK, ID: 5, Items: []Msg{{Container: "a", PID: 1, Flags: FlagStarted}, {Container: "b", Code: -1, Flags: FlagExited}}},
		{Type: Checkpoint, ID: 1, Time: 6e10, Flags: FlagTCP, Items: []Msg{{Container: "a", Bundle: "/w/a/checkpoint", LogPath: "/w/a"}}},
		{Type: Thaw, ID: 2},
		{Type: Restore, ID: 3, Container: "c0ffee", Bundle: "/run/b", Time: 6e10, Items: []Msg{{Bundle: "/r/checkpoint", LogPath: "/r"}}},
	}
}

// TestGolden pins the frames: monitors of older releases read and write them.
func TestGolden(t *testing.T) {
	var got strings.Builder
	for _, m := range samples() {
		got.WriteString(hex.EncodeToString(Append(nil, &m)) + "\n")
	}
	file := filepath.Join("testdata", "frames.v1.hex")
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("frames changed:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestRoundTrip(t *testing.T) {
	var stream []byte
	for _, m := range samples() {
		stream = Append(stream, &m)
	}
	r := bytes.NewReader(stream)
	var buf []byte
	for _, want := range samples() {
		var got Msg
		var err error
		if buf, err = Read(r, buf, &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
}

func TestUnknownFieldIsSkipped(t *testing.T) {
	b := Append(nil, &Msg{Type: Start, ID: 7, Container: "x"})
	b = append(b, 200, 3, 'n', 'e', 'w')
	b = append(b, appendInt(nil, tagPID, 5)...)
	var m Msg
	if err := Decode(b[4:], &m); err != nil {
		t.Fatal(err)
	}
	if m.Container != "x" || m.PID != 5 {
		t.Errorf("%+v", m)
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct{ lo, hi, want int64 }{{1, 1, 1}, {1, 9, MaxVersion}, {MaxVersion + 1, 9, 0}, {0, 0, 0}} {
		if got := Negotiate(c.lo, c.hi); got != c.want {
			t.Errorf("Negotiate(%d, %d) = %d, want %d", c.lo, c.hi, got, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		f.Add(Append(nil, &m)[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Msg
		if Decode(b, &m) != nil {
			return
		}
		var again Msg
		if err := Decode(Append(nil, &m)[4:], &again); err != nil {
			t.Fatalf("what was decoded does not encode: %v", err)
		}
	})
}
