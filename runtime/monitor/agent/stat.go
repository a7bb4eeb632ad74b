package agent

import (
	"os"
	"syscall"
)

// statAside starts a process that looks at a path which may never answer, and
// ends at once: the caller is not the parent of what may hang for ever.
func statAside(path string) int {
	p, err := os.StartProcess("/proc/self/exe", []string{"ocid-monitor", "stat-now", path}, &os.ProcAttr{
		Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return complain(err.Error())
	}
	_ = p.Release()
	return 0
}

// statNow writes its pid, then the number of stat's error, 0 for none.
func statNow(path string) int {
	_, _ = os.Stdout.WriteString(itoa(os.Getpid()) + "\n")
	var st syscall.Stat_t
	errno := syscall.Errno(0)
	for {
		err := syscall.Stat(path, &st)
		if e, ok := err.(syscall.Errno); ok { //nolint:errorlint // the system call's own, never wrapped
			errno = e
		}
		if err != syscall.EINTR {
			break
		}
	}
	_, _ = os.Stdout.WriteString(itoa(int(errno)) + "\n")
	return 0
}
