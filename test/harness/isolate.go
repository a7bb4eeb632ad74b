package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const stageVar = "OCID_HARNESS_STAGE"

// Isolate makes sure that the calling program runs in mount, network and
// process namespaces of its own, with every mount shared and lo up. The host
// sees none of its mounts and links, and whatever it leaves running dies with it.
//
// The first call starts the program again inside and exits with its status;
// inside, the call returns. An intermediate process is the namespace's init
// and reaps orphans, as a machine's init does.
//
// On a machine that is there for the test alone (test/vm) the variable has the
// value "main" from the start, and the program runs as it is: systemd takes
// process ids as PID 1 sees them.
func Isolate() error {
	switch os.Getenv(stageVar) {
	case "":
		if err := Prepare(false); err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c := exec.Command("unshare", append([]string{
			"--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
			"--propagation", "private", self,
		}, os.Args[1:]...)...)
		c.Env = append(os.Environ(), stageVar+"=init")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		signal.Ignore(os.Interrupt) // it reaches the inner process too, which ends first
		return exit(c.Run())
	case "init":
		if err := prepare(); err != nil {
			return err
		}
		return beInit()
	}
	return nil
}

// Prepare makes the test images while the machine's network is in reach; inside
// the private namespaces it does nothing.
func Prepare(big bool) error {
	if os.Getenv(stageVar) != "" {
		return nil
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	_, err = layouts(context.Background(), filepath.Join(cache, "images"), Options{Big: big, Progress: os.Stderr})
	return err
}

func exit(err error) error {
	var status *exec.ExitError
	if errors.As(err, &status) {
		os.Exit(max(status.ExitCode(), 1))
	}
	if err != nil {
		return fmt.Errorf("enter private namespaces: %w", err)
	}
	os.Exit(0)
	return nil
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// beInit runs the program proper and reaps everything until it ends.
func beInit() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM)
	// Not appended to os.Environ: the first of two equal names would win.
	if err := os.Setenv(stageVar, "main"); err != nil {
		return err
	}
	p, err := os.StartProcess(self, os.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return err
	}
	signal.Ignore(os.Interrupt)
	go func() {
		for s := range signals {
			// The child may have gone; then this process ends too.
			_ = unix.Kill(p.Pid, s.(syscall.Signal))
		}
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if pid != p.Pid {
			continue
		}
		if ws.Signaled() {
			os.Exit(128 + int(ws.Signal()))
		}
		os.Exit(ws.ExitStatus())
	}
}
