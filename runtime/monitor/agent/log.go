package agent

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// maxLine is the most that one entry holds; longer lines become several,
	// all but the last tagged P.
	maxLine  = 16 << 10
	readSize = 32 << 10
	outSize  = 64 << 10
	stamp    = "2006-01-02T15:04:05.000000000Z07:00"
)

// buffers are shared by all streams and only held while data is on its way, so
// a silent container costs none.
type buffers struct {
	in  [readSize]byte
	out [outSize]byte
}

var pool = sync.Pool{New: func() any { return new(buffers) }}

// logFile is a container's log. Losing output is better than stopping the
// container: errors of the disk are swallowed, and whole entries dropped.
type logFile struct {
	mu   sync.Mutex
	path string
	f    *os.File
	torn bool // the last entry was cut off: end its line first
}

func openLog(path string) (*os.File, error) {
	// O_NONBLOCK: a path that is a FIFO must not hang the monitor.
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0o640)
}

func newLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if path == "" {
		return l, nil
	}
	f, err := openLog(path)
	if err != nil && !fullDisk(err) {
		return nil, &failure{kind: kindInvalid, text: "log: " + err.Error()}
	}
	l.f = f
	return l, nil
}

func fullDisk(err error) bool {
	for _, e := range [...]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reopen opens the path again, after it was renamed. The old file stays if
// that fails.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := openLog(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.f
	l.f, l.torn = f, false
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

func (l *logFile) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil || len(b) == 0 {
		return
	}
	if l.torn {
		if n, _ := l.f.Write([]byte{'\n'}); n == 0 {
			return
		}
		l.torn = false
	}
	if n, err := l.f.Write(b); err != nil && n > 0 {
		l.torn = b[n-1] != '\n'
	}
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// stream turns bytes into entries.
type stream struct {
	log    *logFile
	name   string // "stdout" or "stderr"
	carry  []byte // the beginning of a line whose end has not come
	copies *sinks // of the clients attached
}

func (s *stream) feed(b, out []byte) {
	ts := time.Now().UTC().AppendFormat(make([]byte, 0, 40), stamp)
	out = out[:0]
	emit := func(tag byte, rest []byte) {
		if len(out)+len(ts)+len(s.name)+len(s.carry)+len(rest)+8 > outSize {
			s.log.write(out)
			out = out[:0]
		}
		out = append(out, ts...)
		out = append(out, ' ')
		out = append(out, s.name...)
		out = append(out, ' ', tag, ' ')
		out = append(out, s.carry...)
		out = append(out, rest...)
		out = append(out, '\n')
		if s.carry = s.carry[:0]; cap(s.carry) > 2048 {
			s.carry = nil
		}
	}
	for len(b) > 0 {
		room := maxLine - len(s.carry)
		i := bytes.IndexByte(b, '\n')
		switch {
		case i >= 0 && i <= room:
			emit('F', b[:i])
			b = b[i+1:]
		case len(b) >= room:
			emit('P', b[:room])
			b = b[room:]
		default:
			s.carry = append(s.carry, b...)
			b = nil
		}
	}
	s.log.write(out)
}

// end writes what is left without a newline.
func (s *stream) end(out []byte) {
	if len(s.carry) == 0 {
		return
	}
	s.feed([]byte{'\n'}, out)
}

// pump feeds sink from f until its end. A buffer is taken when f is readable.
func pump(f *os.File, sink func(data, out []byte)) {
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		var bufs *buffers
		var n int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			bufs = pool.Get().(*buffers)
			for {
				n, rerr = syscall.Read(int(fd), bufs.in[:])
				if rerr != syscall.EINTR {
					break
				}
			}
			if rerr == syscall.EAGAIN {
				pool.Put(bufs)
				bufs = nil
				return false
			}
			return true
		})
		if err != nil || bufs == nil {
			return
		}
		if rerr != nil || n <= 0 { // the end, or EIO of a terminal hung up
			pool.Put(bufs)
			return
		}
		sink(bufs.in[:n], bufs.out[:])
		pool.Put(bufs)
	}
}

// capture logs a stream until its end.
func (s *stream) capture(f *os.File) {
	pump(f, func(b, out []byte) {
		s.feed(b, out)
		s.copies.write(b)
	})
	bufs := pool.Get().(*buffers)
	s.end(bufs.out[:])
	pool.Put(bufs)
}
