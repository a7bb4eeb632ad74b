// Package patientstat looks at paths that may lie on a file system whose
// server is dead, where a system call may never return.
//
// A path that stays on local file systems is looked at directly. Any other is
// looked at by a process of its own, which is not the caller's child for longer
// than its start: whatever becomes of it, the caller is left with no thread, no
// goroutine and no zombie.
//
// Invariants: no system call here enters a file system that may hang; one path
// has at most one process that hangs.
package patientstat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoAnswer says that the file system did not answer in time.
var ErrNoAnswer = errors.New("its file system does not answer: is the server of the share dead?")

// Prober looks at paths. The zero value is not ready: Helper is needed.
type Prober struct {
	// Helper begins the command line that, followed by a path, starts a process
	// and ends; that process writes its pid and a newline, then the number of
	// the error of stat(2), 0 for none, and a newline.
	Helper []string

	mu    sync.Mutex
	stuck map[string]int // guarded by mu: path -> pidfd of a process that did not answer
}

// Stat returns nil if path is there, an error of stat(2), or ErrNoAnswer when
// ctx ends first.
func (p *Prober) Stat(ctx context.Context, path string) error {
	remote, err := onRemote(path)
	if err != nil {
		return err
	}
	if !remote {
		_, err := os.Stat(path)
		return err
	}
	if p.waiting(path) {
		return &fs.PathError{Op: "stat", Path: path, Err: ErrNoAnswer}
	}
	return p.ask(ctx, path)
}

// waiting says whether an earlier process still hangs on path.
func (p *Prober) waiting(path string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, ok := p.stuck[path]
	if !ok {
		return false
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n == 0 && err == nil {
		return true
	}
	_ = unix.Close(fd)
	delete(p.stuck, path)
	return false
}

// startTime bounds the start of a process.
const startTime = 10 * time.Second

func (p *Prober) ask(ctx context.Context, path string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = w.Close()
		return err
	}
	argv := append(append([]string{}, p.Helper...), path)
	proc, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Files: []*os.File{null, w, null}, Sys: &syscall.SysProcAttr{Setsid: true}})
	_ = w.Close()
	_ = null.Close()
	if err != nil {
		return fmt.Errorf("start what looks at %s: %w", path, err)
	}
	if _, err := proc.Wait(); err != nil {
		return err
	}
	// The pid is read whatever the context says, so that the process can be ended.
	if err := r.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(r, 64)
	pid, err := number(lines)
	if err == nil {
		err = r.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		fd = -1 // it has ended, so its answer is in the pipe
	}
	// Ends the read below: a deadline of the context's, and its cancellation.
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	errno, err := number(lines)
	if errors.Is(err, os.ErrDeadlineExceeded) && fd >= 0 {
		p.giveUp(path, fd)
		return &fs.PathError{Op: "stat", Path: path, Err: ErrNoAnswer}
	}
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if errno != 0 {
		return &fs.PathError{Op: "stat", Path: path, Err: syscall.Errno(errno)}
	}
	return nil
}

// giveUp kills the process. Some file systems do not let even that end it
// before their server answers; then it is remembered.
func (p *Prober) giveUp(path string, fd int) {
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck == nil {
		p.stuck = map[string]int{}
	}
	if old, ok := p.stuck[path]; ok {
		_ = unix.Close(old)
	}
	p.stuck[path] = fd
}

func number(r *bufio.Reader) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(line))
}
