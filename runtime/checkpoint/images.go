package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Expect is what the processes of a container may be at most. It comes from
// the spec that was made for the client's request.
type Expect struct {
	Bounding        uint64 // capabilities, a bit for each
	NoNewPrivileges bool
	UID             uint32 // of the first process
	GIDs            []uint32
	// MinOOMScore is the lowest oom_score_adj; it binds those without CAP_SYS_RESOURCE.
	MinOOMScore int32
	Seccomp     bool // a filter must be there
	// Profile is the AppArmor profile or SELinux label; "" stands for none.
	Profile string
	Mounts  []Mount
	// Covered are paths, masked or made read-only, that exist on this machine:
	// a mount must be there, or what it is to hide would show.
	Covered []string
}

// Mount is one mount that may be there. Several may be for one point: one of
// them has to fit.
type Mount struct {
	Point    string
	Types    []string // file systems; "bind" for one that is given from outside
	ReadOnly bool
	Below    bool // further mounts of these types may be below it
}

// Numbers of criu's format: two words of magic, then messages, each behind its
// length. Older kinds of images have no first word; none of those is read here.
const (
	magicCommon = 0x54564319
	magicCore   = 0x55053847
	magicMounts = 0x55563928
	maxMessage  = 4 << 20
	maxMessages = 64 << 10
)

var (
	corePattern   = regexp.MustCompile(`^core-[0-9]+\.img$`)
	mountsPattern = regexp.MustCompile(`^mountpoints-[0-9]+\.img$`)
)

// CheckImages compares criu's images with what is expected. criu, which runs
// as root, would give a process whatever credentials an image names, and mount
// what it names: so that is looked at before.
func CheckImages(dir *os.Root, e Expect) error {
	ents, err := fs.ReadDir(dir.FS(), ImagesDir)
	if err != nil {
		return err
	}
	cores, spaces := 0, 0
	for _, ent := range ents {
		name := ent.Name()
		switch {
		case corePattern.MatchString(name):
			cores++
			err = messages(dir, name, magicCore, e.core)
		case mountsPattern.MatchString(name):
			spaces++
			m := mounts{e: e, at: map[string]bool{}}
			if err = messages(dir, name, magicMounts, m.entry); err == nil {
				err = m.covered()
			}
		case strings.HasPrefix(name, "userns-"):
			err = hostile("a user namespace of its own")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if cores == 0 || spaces == 0 {
		return hostile("the images name no process, or no mount namespace")
	}
	return nil
}

// messages calls fn with each message of an image.
func messages(dir *os.Root, name string, magic uint32, fn func([]byte) error) error {
	f, err := dir.Open(ImagesDir + "/" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [8]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return hostile("cut off")
	}
	if binary.LittleEndian.Uint32(head[:]) != magicCommon || binary.LittleEndian.Uint32(head[4:]) != magic {
		return hostile("not an image of its kind")
	}
	for range maxMessages {
		var size [4]byte
		if _, err := io.ReadFull(f, size[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return hostile("cut off")
		}
		n := binary.LittleEndian.Uint32(size[:])
		if n > maxMessage {
			return hostile("a message of %d bytes", n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(f, b); err != nil {
			return hostile("cut off")
		}
		if err := fn(b); err != nil {
			return err
		}
	}
	return hostile("more than %d messages", maxMessages)
}

// fields calls fn with each field of a message: v for numbers, b for bytes. A
// packed list of numbers comes as bytes.
func fields(b []byte, fn func(num protowire.Number, v uint64, b []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return hostile("malformed")
		}
		b = b[n:]
		var v uint64
		var val []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			val, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return hostile("malformed")
		}
		b = b[n:]
		if err := fn(num, v, val); err != nil {
			return err
		}
	}
	return nil
}

// core checks one thread.
func (e Expect) core(b []byte) error {
	const taskCore, threadCore = 3, 5
	found := 0
	err := fields(b, func(num protowire.Number, _ uint64, v []byte) error {
		switch int32(num) {
		case taskCore:
			return fields(v, e.task)
		case threadCore:
			found++
			return e.thread(v)
		}
		return nil
	})
	if err == nil && found != 1 {
		err = hostile("a thread is described %d times", found)
	}
	return err
}

// task checks a field of a process.
func (e Expect) task(num protowire.Number, v uint64, _ []byte) error {
	const oomScore = 14
	if score := int32(uint32(v)); num == oomScore && score < e.MinOOMScore && e.Bounding&(1<<capSysResource) == 0 { //nolint:gosec // as criu reads it
		return hostile("a process has the OOM score %d, and the container's is %d", score, e.MinOOMScore)
	}
	return nil
}

func (e Expect) thread(b []byte) error {
	const creds, mode, filtered = 10, 11, 2
	found, filter := 0, uint64(0)
	err := fields(b, func(num protowire.Number, v uint64, val []byte) error {
		switch int32(num) {
		case creds:
			found++
			return e.creds(val)
		case mode:
			filter = v
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case found != 1:
		return hostile("a thread has %d sets of credentials", found)
	case e.Seccomp && filter != filtered:
		return hostile("a thread has no seccomp filter, and the container has a profile")
	}
	return nil
}

// Field numbers of credentials.
const (
	credUID      = 1
	credFSUID    = 7
	credCapInh   = 9
	credFSGID    = 8
	credCapBound = 12
	credGroups   = 14
	credProfile  = 15
	credNNP      = 18
	credCapAmb   = 19
)

// Numbers of capabilities (capabilities(7)).
const (
	capSetgid      = 6
	capSetuid      = 7
	capSysResource = 24
)

func (e Expect) creds(b []byte) error {
	var caps [5]capSet
	var uids, gids []uint64
	nnp, profile := uint64(0), ""
	err := fields(b, func(num protowire.Number, v uint64, val []byte) error {
		switch {
		case num >= credCapInh && num <= credCapBound:
			return caps[num-credCapInh].add(v, val)
		case num == credCapAmb:
			return caps[4].add(v, val)
		case num >= credUID && num <= credFSUID && num%2 == 1:
			uids = append(uids, v) // uid, euid, suid, fsuid
		case num > credUID && num <= credFSGID:
			gids = append(gids, v)
		case num == credGroups:
			return numbers(v, val, func(g uint64) error {
				gids = append(gids, g)
				return nil
			})
		case num == credProfile:
			profile = string(val)
		case num == credNNP:
			nnp = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range caps {
		if extra := c.bits &^ e.Bounding; extra != 0 {
			return hostile("a thread has capability number %d, and the container may not", bits.TrailingZeros64(extra))
		}
	}
	if e.NoNewPrivileges && nnp != 1 {
		return hostile("a thread may gain privileges, and the container may not")
	}
	if !e.mayBecome(capSetuid, caps[1].bits) && slices.ContainsFunc(uids, func(u uint64) bool { return u != uint64(e.UID) }) {
		return hostile("a thread runs as another user than %d, which it cannot have become", e.UID)
	}
	if !e.mayBecome(capSetgid, caps[1].bits) && slices.ContainsFunc(gids, func(g uint64) bool {
		return g > math.MaxUint32 || !slices.Contains(e.GIDs, uint32(g))
	}) {
		return hostile("a thread is in another group than %v, which it cannot have joined", e.GIDs)
	}
	if profile != e.Profile && (e.Profile != "" || profile != "unconfined") {
		return hostile("a thread is confined by %.80q and not by %q", profile, e.Profile)
	}
	return nil
}

// mayBecome reports whether a thread can have changed its user or group, for
// which capability is needed. Root may have given it up since, others get it
// from nowhere.
func (e Expect) mayBecome(capability int, permitted uint64) bool {
	had := permitted
	if e.UID == 0 {
		had = e.Bounding
	}
	return !e.NoNewPrivileges || had&(1<<capability) != 0
}

// numbers calls fn with each number of a repeated field, packed or not.
func numbers(v uint64, packed []byte, fn func(uint64) error) error {
	if packed == nil {
		return fn(v)
	}
	for len(packed) > 0 {
		v, n := protowire.ConsumeVarint(packed)
		if n < 0 {
			return hostile("malformed")
		}
		packed = packed[n:]
		if err := fn(v); err != nil {
			return err
		}
	}
	return nil
}

// capSet gathers two words of 32 bits, the low one first.
type capSet struct {
	bits  uint64
	words int
}

func (c *capSet) add(v uint64, packed []byte) error { return numbers(v, packed, c.word) }

func (c *capSet) word(v uint64) error {
	const words = 2
	if c.words == words || v>>32 != 0 {
		return hostile("malformed capabilities")
	}
	c.bits |= v << (32 * c.words)
	c.words++
	return nil
}

// fsNames are criu's numbers of file systems, as far as a container has them.
var fsNames = map[uint64]string{
	1: "proc", 2: "sysfs", 5: "tmpfs", 6: "devpts", 12: "cgroup", 14: "mqueue", 17: "overlay", 23: "cgroup",
}

// mounts checks one mount namespace.
type mounts struct {
	e  Expect
	at map[string]bool
}

// Field numbers of a mount.
const (
	mntType     = 1
	mntFlags    = 5
	mntRoot     = 6
	mntPoint    = 7
	mntExternal = 13
	mntKey      = 18
)

func (m *mounts) entry(b []byte) error {
	var typ, flags uint64
	var point, key string
	external, root := false, "/"
	err := fields(b, func(num protowire.Number, v uint64, val []byte) error {
		switch int32(num) {
		case mntType:
			typ = v
		case mntFlags:
			flags = v
		case mntRoot:
			root = path.Clean("/" + string(val))
		case mntPoint:
			point = path.Clean("/" + strings.TrimPrefix(string(val), "."))
		case mntExternal:
			external = external || v != 0
		case mntKey:
			key = path.Clean("/" + string(val))
			external = external || len(val) > 0
		}
		return nil
	})
	if err != nil {
		return err
	}
	if point == "" || m.at[point] {
		return hostile("two mounts at %.100q", point)
	}
	m.at[point] = true
	kind := fsNames[typ]
	if external {
		kind = "bind"
		// The key says which of the binds that are handed to criu is mounted
		// here: another one's would come without that one's read-only flag.
		if point != "/" && key != point && key != "/dev/null" {
			return hostile("at %.100q is mounted what belongs to %.100q", point, key)
		}
	}
	if err := m.e.within(point, kind, root); err != nil {
		return err
	}
	return m.e.mount(point, kind, flags&1 != 0)
}

// within checks which part of a kernel's file system is mounted: one of another
// place would show what is masked there.
func (e Expect) within(point, kind, root string) error {
	if kind != "proc" && kind != "sysfs" {
		return nil
	}
	whole := slices.ContainsFunc(e.Mounts, func(w Mount) bool {
		return w.Point == point && len(w.Types) == 1 && w.Types[0] == kind
	})
	if whole && root == "/" || !whole && strings.HasSuffix(point, root) {
		return nil
	}
	return hostile("at %.100q is mounted %.100q of a %s", point, root, kind)
}

func (e Expect) mount(point, kind string, readOnly bool) error {
	err := hostile("there is a mount at %.100q, and the container has none there", point)
	for _, w := range e.Mounts {
		switch {
		case point != w.Point && (!w.Below || !strings.HasPrefix(point, w.Point+"/")):
		case !slices.Contains(w.Types, kind):
			err = hostile("at %.100q is a mount of kind %q and not %v", point, kind, w.Types)
		case w.ReadOnly && !readOnly:
			err = hostile("the mount at %.100q can be written to, and should not be", point)
		default:
			return nil
		}
	}
	return err
}

func (m *mounts) covered() error {
	for _, p := range m.e.Covered {
		if !m.at[p] {
			return hostile("%q is not covered by a mount, and has to be", p)
		}
	}
	return nil
}
