// Package netlinks counts the traffic of the network interfaces of a namespace
// that is not the caller's.
//
// It asks the kernel from where it is, by the namespace's number
// (IFLA_TARGET_NETNSID, rtnetlink(7)), and enters no namespace: no thread is
// spent and none is left in a foreign one. A number that the kernel gives a
// namespace goes away with it.
package netlinks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Link is one interface with its counters since it was made.
type Link struct {
	Name string

	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Reader asks over one socket; calls wait for one another. The zero value is ready.
type Reader struct {
	mu  sync.Mutex
	fd  int // guarded by mu, as all below; valid if open
	up  bool
	seq uint32
	buf []byte
}

const (
	nsidNone    = -1 // NETNSA_NSID_NOT_ASSIGNED
	attrNSID    = 1  // NETNSA_NSID
	attrFD      = 3  // NETNSA_FD
	maxMessages = 1 << 16
)

// Links lists the interfaces of the namespace that path pins, loopback left out.
func (r *Reader) Links(path string) ([]Link, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	r.mu.Lock()
	defer r.mu.Unlock()
	links, err := r.links(f)
	if err != nil {
		r.close() // what else the socket holds belongs to a call that failed
		return nil, fmt.Errorf("interfaces of %s: %w", path, err)
	}
	return links, nil
}

// Close gives the socket back. The Reader may be used again.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.close()
}

func (r *Reader) close() {
	if r.up {
		_ = unix.Close(r.fd)
		r.up = false
	}
}

func (r *Reader) open() error {
	if r.up {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	// The kernel answers at once or not at all; a lost answer must not hang.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		_ = unix.Close(fd)
		return os.NewSyscallError("setsockopt", err)
	}
	r.fd, r.up = fd, true
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	return nil
}

func (r *Reader) links(ns *os.File) ([]Link, error) {
	if err := r.open(); err != nil {
		return nil, err
	}
	id, err := r.number(ns)
	if err != nil {
		return nil, fmt.Errorf("number of the namespace: %w", err)
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	body = attr32(body, unix.IFLA_TARGET_NETNSID, uint32(id)) //nolint:gosec // not negative
	var out []Link
	err = r.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, body, func(typ uint16, data []byte) {
		if typ != unix.RTM_NEWLINK || len(data) < unix.SizeofIfInfomsg {
			return
		}
		if binary.NativeEndian.Uint32(data[8:])&unix.IFF_LOOPBACK == 0 {
			out = append(out, parseLink(data[unix.SizeofIfInfomsg:]))
		}
	})
	return out, err
}

// number finds the namespace's number, and has it given one if it has none.
func (r *Reader) number(ns *os.File) (int32, error) {
	for range 2 {
		body := attr32([]byte{unix.AF_UNSPEC, 0, 0, 0}, attrFD, uint32(ns.Fd()))
		id := int32(nsidNone)
		err := r.ask(unix.RTM_GETNSID, 0, body, func(_ uint16, data []byte) {
			if len(data) < 4 {
				return
			}
			attrs(data[4:], func(typ uint16, v []byte) {
				if typ == attrNSID && len(v) >= 4 {
					id = int32(binary.NativeEndian.Uint32(v)) //nolint:gosec // signed in the kernel
				}
			})
		})
		if err != nil || id >= 0 {
			return id, err
		}
		auto := int32(nsidNone)
		body = attr32(body, attrNSID, uint32(auto))
		// Somebody else may number it meanwhile.
		if err := r.ask(unix.RTM_NEWNSID, unix.NLM_F_ACK, body, nil); err != nil && !errors.Is(err, unix.EEXIST) {
			return 0, err
		}
	}
	return 0, errors.New("the kernel gives it none")
}

// ask sends one request and calls each for every message of the answer.
func (r *Reader) ask(typ, flags uint16, body []byte, each func(typ uint16, data []byte)) error {
	r.seq++
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	msg = append(msg, body...)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg))) //nolint:gosec // small
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(msg[8:], r.seq)
	if err := unix.Sendto(r.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	for range maxMessages {
		n, _, err := unix.Recvfrom(r.fd, r.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		done, err := r.messages(r.buf[:n], each)
		if done || err != nil {
			return err
		}
	}
	return errors.New("an answer without an end")
}

func (r *Reader) messages(data []byte, each func(uint16, []byte)) (done bool, err error) {
	for len(data) >= unix.SizeofNlMsghdr {
		n := binary.NativeEndian.Uint32(data)
		typ, flags := binary.NativeEndian.Uint16(data[4:]), binary.NativeEndian.Uint16(data[6:])
		if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(data)) {
			return false, errors.New("a broken answer")
		}
		stale := binary.NativeEndian.Uint32(data[8:]) != r.seq
		body := data[unix.SizeofNlMsghdr:n]
		data = data[min(align(int(n)), len(data)):]
		if stale {
			continue
		}
		switch typ {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errors.New("a broken answer")
			}
			if e := int32(binary.NativeEndian.Uint32(body)); e != 0 { //nolint:gosec // signed in the kernel
				return false, unix.Errno(-e) //nolint:gosec // an errno
			}
			return true, nil
		}
		if each != nil {
			each(typ, body)
		}
		if flags&unix.NLM_F_MULTI == 0 {
			return true, nil
		}
	}
	return false, nil
}

func align(n int) int { return (n + 3) &^ 3 }

func attr32(b []byte, typ uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.NativeEndian.AppendUint32(b, v)
}

func attrs(b []byte, each func(typ uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if n < 4 || n > len(b) {
			return
		}
		each(typ, b[4:n])
		b = b[min(align(n), len(b)):]
	}
}

func parseLink(b []byte) Link {
	var l Link
	attrs(b, func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = string(bytes.TrimRight(v, "\x00"))
		case unix.IFLA_STATS64:
			// struct rtnl_link_stats64: packets, bytes, errors and drops, each
			// received and sent.
			if len(v) < 64 {
				return
			}
			n := func(i int) uint64 { return binary.NativeEndian.Uint64(v[8*i:]) }
			l.RxPackets, l.TxPackets, l.RxBytes, l.TxBytes = n(0), n(1), n(2), n(3)
			l.RxErrors, l.TxErrors, l.RxDropped, l.TxDropped = n(4), n(5), n(6), n(7)
		}
	})
	return l
}
