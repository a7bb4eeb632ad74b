package agent

import (
	"bytes"
	"os"
	"syscall"
	"time"
)

// runtime runs the OCI runtime to its end; a failure carries what it wrote on
// stderr. input, if not nil, is what it reads.
func (a *agent) runtime(argv []string, input []byte) error {
	errR, errW, err := pipe(true)
	if err != nil {
		return err
	}
	defer errR.Close()
	in := a.null
	if input != nil {
		var inW *os.File
		if inW, in, err = pipe(false); err != nil {
			closeFDs(errW)
			return err
		}
		go func() {
			_, _ = inW.Write(input)
			inW.Close()
		}()
		defer closeFDs(in)
	}
	c, err := a.reaper.spawn(argv, a.attr(in, a.null, errW))
	closeFDs(errW)
	if err != nil {
		return err
	}
	return a.await(c, argv, errR)
}

func (a *agent) attr(in, out, errw int) *syscall.ProcAttr {
	return &syscall.ProcAttr{Env: a.env, Files: []uintptr{uintptr(in), uintptr(out), uintptr(errw)}}
}

// await waits for a run of the runtime; a failure carries its words from errR.
func (a *agent) await(c *child, argv []string, errR *os.File) error {
	return a.awaitFor(c, argv, errR, patience)
}

func (a *agent) awaitFor(c *child, argv []string, errR *os.File, limit time.Duration) error {
	t := time.AfterFunc(limit, func() { a.reaper.kill(c, syscall.SIGKILL, false) })
	<-c.done
	t.Stop()
	if c.code() == 0 {
		return nil
	}
	text := "the OCI runtime was killed"
	if c.status.Exited() {
		text = "the OCI runtime failed with exit status " + itoa(c.status.ExitStatus())
	}
	if w := words(errR); w != "" {
		text += ": " + w
	}
	if len(argv) > 0 && c.status.Signaled() {
		text += " (signal " + itoa(int(c.status.Signal())) + ")"
	}
	return &failure{text: text}
}

// words reads what is in the pipe now, bounded.
func words(f *os.File) string {
	if f == nil {
		return ""
	}
	_ = f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 4096)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil {
			break
		}
	}
	return concise(b[:n])
}

// concise leaves out the stacks that a Go program prints when it cannot go on,
// as it does when its container may have no more processes.
func concise(b []byte) string {
	for _, mark := range [...]string{"\nruntime stack:", "\ngoroutine "} {
		if i := bytes.Index(b, []byte(mark)); i >= 0 {
			b = b[:i]
		}
	}
	return string(bytes.TrimSpace(b))
}
