// Package proto is the wire between the daemon and a pod's monitor.
//
// A frame is: length (4 bytes, little endian, of what follows), type (1),
// request id (4, little endian), fields. A field is: tag (1), length (unsigned
// varint), bytes. Integers are zigzag varints inside a field.
//
// The first frame of a connection is a Hello that names the oldest and newest
// version the client speaks; the monitor answers with the one it chose. Within
// a version, fields may be added: a reader skips tags that it does not know,
// and a monitor answers a request type that it does not know with an Error.
// So a monitor one release older, or newer, keeps working.
//
// Requests on a connection are answered in any order, by request id. Exec takes
// a connection of its own, whose end means that the client gave up: the socket
// buffers are then all the flow control that its output needs. ExecFiles and
// Attach do so too, and hand over pipe ends or a terminal instead of bytes.
//
// The package is linked into every monitor and stays free of fmt, reflection
// and maps.
package proto

import (
	"encoding/binary"
	"errors"
	"io"
)

// The versions that this release speaks.
const (
	MinVersion = 1
	MaxVersion = 3
)

// StreamsVersion is the first version with ExecFiles and Attach.
const StreamsVersion = 2

// CheckpointVersion is the first version with Checkpoint and Restore.
const CheckpointVersion = 3

// MaxFrame bounds a frame's length: a process or a set of limits as JSON is by
// far the largest thing that is ever sent.
const MaxFrame = 4 << 20

// Type says what a frame is.
type Type uint8

// Frame types. Values are on the wire: never reuse one.
const (
	Hello    Type = 1
	HelloOK  Type = 2
	Error    Type = 3
	OK       Type = 4
	Create   Type = 5
	Start    Type = 6
	Signal   Type = 7
	Wait     Type = 8
	Delete   Type = 9
	Exec     Type = 10
	Reopen   Type = 11
	Update   Type = 12
	State    Type = 13
	Shutdown Type = 14
	PIDNS    Type = 15
	Stdin    Type = 16
	StdinEOF Type = 17
	Stdout   Type = 18
	Stderr   Type = 19
	ExecDone Type = 20

	// Since version 2. ExecFiles and Attach carry descriptors, one for each of
	// FlagStdin, FlagStdout and FlagStderr that is set, in this order; they take
	// a connection of their own, as Exec does. Their answer is Opened, with the
	// terminal or the container's input as a descriptor if there is one to give
	// (FlagFile), then ExecDone or Error at the end. StdinEOF goes both ways in
	// an Attach: the sender has no more input, or takes none.
	ExecFiles Type = 21
	Attach    Type = 22
	Opened    Type = 23

	// PodNS is PIDNS in a new user namespace: Flags are clone flags, Items the
	// mappings, see MapUID.
	PodNS Type = 40
)

// MaxFiles is the most descriptors that one frame carries.
const MaxFiles = 3

// Frame types of CheckpointVersion.
//
// Checkpoint has a connection of its own: its containers are frozen until a
// Thaw comes, the connection ends or Time has passed, whichever is first. Each
// item names a container, the directory for its images (Bundle) and the one
// for the log (LogPath). Captured says that all is written and frozen still.
//
// Restore is a Create whose first process comes from the images in the
// directory that its one item names; the container runs when it is answered.
const (
	Checkpoint Type = 60
	Captured   Type = 61
	Thaw       Type = 62
	Restore    Type = 63
)

// Flags of requests and statuses.
const (
	FlagTTY       = 1 << 0
	FlagStdin     = 1 << 1
	FlagStdinOnce = 1 << 2
	FlagAll       = 1 << 3 // Signal: every process of the container
	FlagStarted   = 1 << 4
	FlagExited    = 1 << 5
	FlagOOM       = 1 << 6
	FlagStdout    = 1 << 7 // ExecFiles, Attach
	FlagStderr    = 1 << 8
	FlagFile      = 1 << 9  // Opened: a descriptor comes along
	FlagTCP       = 1 << 20 // Checkpoint, Restore: connections too
)

// A mapping of ids is an item of PodNS: Flags says of which kind, Min is the id
// in the namespace, Max the host's, Code how many.
const (
	MapUID = 1
	MapGID = 2
)

// Kind classifies an error.
type Kind int64

// Error kinds. Values are on the wire.
const (
	KindOther       Kind = 0
	KindNotFound    Kind = 1
	KindInvalid     Kind = 2
	KindState       Kind = 3
	KindTimeout     Kind = 4
	KindUnavailable Kind = 5
)

// Msg is any message; each type uses the fields that it needs, and a zero field
// is not sent.
type Msg struct {
	Type Type
	ID   uint32

	Container string
	Bundle    string
	LogPath   string
	Cgroup    string
	Flags     int64
	Code      int64 // exit code, signal number or error Kind
	PID       int64
	Time      int64 // nanoseconds: an instant, or a duration
	Min, Max  int64 // versions
	Text      string
	Data      []byte
	Items     []Msg // statuses, one per container
}

const (
	tagContainer = 1
	tagBundle    = 2
	tagLogPath   = 3
	tagCgroup    = 4
	tagFlags     = 5
	tagCode      = 6
	tagPID       = 7
	tagTime      = 8
	tagMin       = 9
	tagMax       = 10
	tagText      = 11
	tagData      = 12
	tagItem      = 13
)

// Errors of the codec.
var (
	ErrMalformed = errors.New("malformed frame")
	ErrTooLarge  = errors.New("frame too large")
)

const header = 9

// Append encodes m at the end of dst.
func Append(dst []byte, m *Msg) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0, byte(m.Type), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(dst[at+5:], m.ID)
	dst = appendFields(dst, m)
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

func appendFields(dst []byte, m *Msg) []byte {
	dst = appendString(dst, tagContainer, m.Container)
	dst = appendString(dst, tagBundle, m.Bundle)
	dst = appendString(dst, tagLogPath, m.LogPath)
	dst = appendString(dst, tagCgroup, m.Cgroup)
	dst = appendInt(dst, tagFlags, m.Flags)
	dst = appendInt(dst, tagCode, m.Code)
	dst = appendInt(dst, tagPID, m.PID)
	dst = appendInt(dst, tagTime, m.Time)
	dst = appendInt(dst, tagMin, m.Min)
	dst = appendInt(dst, tagMax, m.Max)
	dst = appendString(dst, tagText, m.Text)
	if len(m.Data) > 0 {
		dst = append(dst, tagData)
		dst = binary.AppendUvarint(dst, uint64(len(m.Data)))
		dst = append(dst, m.Data...)
	}
	for i := range m.Items {
		b := appendFields(nil, &m.Items[i])
		dst = append(dst, tagItem)
		dst = binary.AppendUvarint(dst, uint64(len(b)))
		dst = append(dst, b...)
	}
	return dst
}

func appendString(dst []byte, tag byte, s string) []byte {
	if s == "" {
		return dst
	}
	dst = append(dst, tag)
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendInt(dst []byte, tag byte, v int64) []byte {
	if v == 0 {
		return dst
	}
	var b [binary.MaxVarintLen64]byte
	n := binary.PutVarint(b[:], v)
	dst = append(dst, tag, byte(n))
	return append(dst, b[:n]...)
}

// Decode reads one frame without its length. Data points into b.
func Decode(b []byte, m *Msg) error {
	*m = Msg{}
	if len(b) < header-4 {
		return ErrMalformed
	}
	m.Type = Type(b[0])
	m.ID = binary.LittleEndian.Uint32(b[1:])
	return decodeFields(b[5:], m, 0)
}

func decodeFields(b []byte, m *Msg, depth int) error {
	for len(b) > 0 {
		tag := b[0]
		n, w := binary.Uvarint(b[1:])
		if w <= 0 || n > uint64(len(b)-1-w) {
			return ErrMalformed
		}
		val := b[1+w : 1+w+int(n)]
		b = b[1+w+int(n):]
		if err := m.setField(tag, val, depth); err != nil {
			return err
		}
	}
	return nil
}

func (m *Msg) setField(tag byte, val []byte, depth int) error {
	switch tag {
	case tagContainer:
		m.Container = string(val)
	case tagBundle:
		m.Bundle = string(val)
	case tagLogPath:
		m.LogPath = string(val)
	case tagCgroup:
		m.Cgroup = string(val)
	case tagText:
		m.Text = string(val)
	case tagData:
		m.Data = val
	case tagItem:
		if depth > 0 {
			return ErrMalformed
		}
		m.Items = append(m.Items, Msg{})
		return decodeFields(val, &m.Items[len(m.Items)-1], depth+1)
	case tagFlags:
		return setInt(&m.Flags, val)
	case tagCode:
		return setInt(&m.Code, val)
	case tagPID:
		return setInt(&m.PID, val)
	case tagTime:
		return setInt(&m.Time, val)
	case tagMin:
		return setInt(&m.Min, val)
	case tagMax:
		return setInt(&m.Max, val)
	}
	return nil // a field of a later release
}

func setInt(to *int64, val []byte) error {
	v, w := binary.Varint(val)
	if w != len(val) {
		return ErrMalformed
	}
	*to = v
	return nil
}

// Read reads one frame into m. It uses buf if that is large enough, and returns
// the buffer for the next call; m.Data points into it.
func Read(r io.Reader, buf []byte, m *Msg) ([]byte, error) {
	if cap(buf) < 4 {
		buf = make([]byte, 512)
	}
	hd := buf[:4]
	if _, err := io.ReadFull(r, hd); err != nil {
		return buf, err
	}
	n := int(binary.LittleEndian.Uint32(hd))
	if n > MaxFrame {
		return buf, ErrTooLarge
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return buf, err
	}
	return buf, Decode(buf, m)
}

// Negotiate picks the newest version that both sides speak, 0 if there is none.
func Negotiate(minVersion, maxVersion int64) int64 {
	v := min(maxVersion, MaxVersion)
	if v < max(minVersion, MinVersion) {
		return 0
	}
	return v
}
