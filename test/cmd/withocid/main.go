// Command withocid runs a command beside a private ocid: in namespaces of its
// own, under a temporary root, with a registry of test images on loopback and
// a bridge network. All of it is gone when the command ends.
//
// The command finds OCID_SOCKET, CONTAINER_RUNTIME_ENDPOINT,
// IMAGE_SERVICE_ENDPOINT, OCID_TEST_DIR (with daemon.pid and ocid.log) and
// OCID_CGROUP_PARENT in its environment. A daemon that ends is started again,
// as systemd would.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/ocid-io/ocid/test/harness"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "withocid:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (code int, err error) {
	big := flag.Bool("big", false, "serve the big image for the pull benchmark")
	loop := flag.Int64("loop-root", 0, "put the root on a fresh ext4 of this many GiB")
	keepLog := flag.String("log", "", "copy the daemon's log to this file at the end")
	flag.Parse()
	if flag.NArg() == 0 {
		return 2, errors.New("usage: withocid [flags] -- COMMAND [ARG...]")
	}
	if err := harness.Prepare(*big); err != nil {
		return 1, err
	}
	if err := harness.Isolate(); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e, err := harness.New(ctx, harness.Options{Big: *big, LoopRoot: *loop << 30, Progress: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer func() {
		if *keepLog != "" {
			if b, rerr := os.ReadFile(e.LogFile()); rerr == nil {
				err = errors.Join(err, os.WriteFile(*keepLog, b, 0o644))
			}
		}
		err = errors.Join(err, e.Close())
	}()
	if err := e.Start(ctx); err != nil {
		return 1, err
	}
	e.Keep()
	c := exec.CommandContext(ctx, flag.Arg(0), flag.Args()[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	endpoint := "unix://" + e.Socket
	c.Env = append(os.Environ(),
		"OCID_SOCKET="+e.Socket,
		"CONTAINER_RUNTIME_ENDPOINT="+endpoint,
		"IMAGE_SERVICE_ENDPOINT="+endpoint,
		"OCID_TEST_DIR="+e.Dir,
		"OCID_CGROUP_PARENT="+e.CgroupParent,
	)
	err = c.Run()
	var status *exec.ExitError
	if errors.As(err, &status) {
		return max(status.ExitCode(), 1), nil
	}
	return 0, err
}
