package agent

import (
	"os"
	"syscall"
)

// listenConsole makes the socket over which the runtime sends the terminal.
func (a *agent) listenConsole(s *stdio, id string) error {
	name := "tty-" + id
	if len(name) > 40 {
		name = name[:40]
	}
	path := a.dir + "/" + name
	_ = os.Remove(path)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return errors2("console socket", err)
	}
	s.console = fd
	addr, dirfd, err := unixAddr(a.dir, name, itoa(os.Getpid()))
	if err != nil {
		return err
	}
	s.consoleDir, s.consoleAddr, s.consoleRemove = dirfd, addr, path
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: addr}); err != nil {
		return errors2("console socket", err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		return errors2("console socket", err)
	}
	return nil
}

// receiveConsole takes the terminal's master. The runtime has ended, so what
// it sent is there already.
func receiveConsole(listener int) (*os.File, error) {
	conn, _, err := syscall.Accept4(listener, syscall.SOCK_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(conn)
	var b [256]byte
	oob := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := syscall.Recvmsg(conn, b[:], oob, syscall.MSG_DONTWAIT|syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	msgs, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, &failure{text: "no terminal was sent"}
	}
	fds, err := syscall.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, &failure{text: "no terminal was sent"}
	}
	_ = syscall.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
