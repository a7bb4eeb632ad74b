package agent

import (
	"errors"
	"os"
	"syscall"

	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// failure is an error with the kind that the client is to see.
type failure struct {
	kind proto.Kind
	text string
}

const (
	kindNotFound = proto.KindNotFound
	kindInvalid  = proto.KindInvalid
	kindState    = proto.KindState
	kindTimeout  = proto.KindTimeout
)

func (f *failure) Error() string { return f.text }

// errors2 prefixes err with what was tried.
func errors2(what string, err error) error {
	var f *failure
	if errors.As(err, &f) {
		return &failure{kind: f.kind, text: what + ": " + f.text}
	}
	return &failure{text: what + ": " + err.Error()}
}

// pipe makes a pipe whose one end, ours, goes through the poller, while the
// other blocks, as programs expect of their stdio. Both close on exec.
func pipe(oursReads bool) (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, -1, errors2("pipe", err)
	}
	o, t := p[0], p[1]
	if !oursReads {
		o, t = p[1], p[0]
	}
	_ = syscall.SetNonblock(o, true)
	return os.NewFile(uintptr(o), "pipe"), t, nil
}

func closeFDs(fds ...int) {
	for _, fd := range fds {
		if fd > 2 {
			_ = syscall.Close(fd)
		}
	}
}

// unixAddr names dir/name in a form that fits a socket address, however long
// dir is. The descriptor must stay open while the address is in use.
func unixAddr(dir, name, proc string) (addr string, fd int, err error) {
	fd, err = syscall.Open(dir, syscall.O_DIRECTORY|syscall.O_CLOEXEC|oPath, 0)
	if err != nil {
		return "", -1, errors2(dir, err)
	}
	return "/proc/" + proc + "/fd/" + itoa(fd) + "/" + name, fd, nil
}

const oPath = 0x200000

func itoa(n int) string {
	if n == 0 {
		return "0"
	}
	var b [20]byte
	i := len(b)
	for ; n > 0; n /= 10 {
		i--
		b[i] = byte('0' + n%10)
	}
	return string(b[i:])
}
