// Command ocid runs containers in production: the CRI daemon (ocid serve) and
// the commands that work beside it or without it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// Exit codes of the command line.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if reexec.Init() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ocid:", err)
		stop()
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return exitFailed
}

// usageError is a mistake on the command line rather than a failure of the work.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// ExitCode is what the command line ends with.
func (e *usageError) ExitCode() int { return exitUsage }
