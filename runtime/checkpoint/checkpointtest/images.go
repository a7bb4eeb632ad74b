// Package checkpointtest writes images as criu would for a container that does
// nothing, for tests of what handles them. No process can be restored of them.
package checkpointtest

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ocid-io/ocid/runtime/checkpoint"
)

// Magic numbers of the kinds of images.
const (
	common = 0x54564319
	Core   = 0x55053847
	Mounts = 0x55563928
)

// Image puts messages behind a kind's magic number.
func Image(magic uint32, msgs ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, common)
	b = binary.LittleEndian.AppendUint32(b, magic)
	for _, m := range msgs {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(m)))
		b = append(b, m...)
	}
	return b
}

// Number appends a field that is a number.
func Number(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

// Bytes appends a field that is text or a message.
func Bytes(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// Thread is what matters of a thread.
type Thread struct {
	UID, GID, Caps, NoNewPrivs, Seccomp uint64
	Profile                             string
}

// Message encodes it.
func (c Thread) Message() []byte {
	var cr []byte
	for n := protowire.Number(1); n <= 8; n += 2 {
		cr = Number(Number(cr, n, c.UID), n+1, c.GID)
	}
	for n := protowire.Number(9); n <= 12; n++ {
		cr = Number(Number(cr, n, c.Caps&0xffffffff), n, c.Caps>>32)
	}
	if c.Profile != "" {
		cr = Bytes(cr, 15, []byte(c.Profile))
	}
	cr = Number(cr, 18, c.NoNewPrivs)
	return Bytes(Number(nil, 1, 1), 5, Number(Bytes(nil, 10, cr), 11, c.Seccomp))
}

// Mount encodes one mount; one with a key comes from outside.
func Mount(point string, typ, flags uint64, key string) []byte {
	b := Number(Number(nil, 1, typ), 5, flags)
	b = Bytes(b, 7, []byte(point))
	if key != "" {
		b = Bytes(Number(b, 13, 1), 18, []byte(key))
	}
	return b
}

var types = map[string]uint64{"proc": 1, "sysfs": 2, "tmpfs": 5, "devpts": 6, "cgroup": 12, "mqueue": 14}

// OfSpec writes images of a container with that spec, its one process without
// capabilities, into dir.
func OfSpec(dir string, s *specs.Spec) error {
	t := Thread{UID: uint64(s.Process.User.UID), GID: uint64(s.Process.User.GID), Profile: s.Process.ApparmorProfile}
	if s.Process.NoNewPrivileges {
		t.NoNewPrivs = 1
	}
	if s.Linux.Seccomp != nil {
		t.Seccomp = 2
	}
	ms := [][]byte{Mount("./", 17, 0, "")}
	for _, m := range s.Mounts {
		flags := uint64(0)
		if slices.Contains(m.Options, "ro") {
			flags = 1
		}
		key := ""
		if m.Type == "bind" {
			key = m.Destination
		}
		ms = append(ms, Mount("."+m.Destination, types[m.Type], flags, key))
	}
	for _, p := range slices.Concat(s.Linux.MaskedPaths, s.Linux.ReadonlyPaths) {
		ms = append(ms, Mount("."+p, 1, 1, p))
	}
	for name, b := range map[string][]byte{
		checkpoint.Descriptors: []byte(`["/dev/null","pipe:[1]","pipe:[2]"]`),
		"core-1.img":           Image(Core, t.Message()),
		"mountpoints-1.img":    Image(Mounts, ms...),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
