package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/internal/capbuf"
	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
)

const (
	maxPluginOutput = 4 << 20
	maxPluginStderr = 4 << 10
	// drainDelay is how long a plugin's output is read on after it ended, in
	// case a process that it left behind holds the pipe.
	drainDelay = 500 * time.Millisecond
)

// pluginExec runs CNI plugins; it implements libcni's invoke.Exec.
type pluginExec struct {
	version.PluginDecoder
}

// FindInPath returns the executable of a plugin.
func (pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) {
		return "", fmt.Errorf("%w: CNI plugin name %.80q", runtime.ErrInvalid, plugin)
	}
	for _, dir := range paths {
		path := filepath.Join(dir, plugin)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: CNI plugin %q is not in %s", runtime.ErrUnavailable, plugin, strings.Join(paths, ", "))
}

// ExecPlugin runs a plugin in its own process group and kills all of the group
// when ctx ends.
//
// A plugin that adds dies with this process: an ADD that went on beside the DEL
// of the next daemon would leak. One that deletes goes on to its end: plugins
// find what else there is to delete by the interface that they delete first, so
// that a DEL cut short cannot be made good by another.
func (pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := filepath.Base(path)
	stdout := &capbuf.Buffer{Limit: maxPluginOutput}
	stderr := &capbuf.Buffer{Limit: maxPluginStderr}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !slices.Contains(environ, "CNI_COMMAND=DEL") {
		// The signal comes when the thread that forked ends (prctl(2)), so that
		// the thread must be this call's alone.
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = drainDelay
	end := stages.Start(ctx, "cni-plugin", stages.Attr{Key: "plugin", Value: name})
	err := cmd.Run()
	end()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil && cmd.ProcessState.Success() {
		err = nil
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("CNI plugin %s was stopped: %w%s", name, timeoutError(ctx), tail(stderr))
	case err != nil:
		return nil, fmt.Errorf("CNI plugin %s: %w%s", name, pluginError(err, stdout.Bytes()), tail(stderr))
	case stdout.Over():
		return nil, fmt.Errorf("CNI plugin %s: more than %d bytes of output", name, maxPluginOutput)
	}
	return stdout.Bytes(), nil
}

func timeoutError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w (%w)", runtime.ErrTimeout, ctx.Err())
	}
	return ctx.Err()
}

func killGroup(pid int) error {
	if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// pluginError prefers what the plugin printed in the form that CNI defines.
func pluginError(err error, stdout []byte) error {
	var perr types.Error
	if json.Unmarshal(stdout, &perr) == nil && (perr.Msg != "" || perr.Code != 0) {
		return &perr
	}
	if out := strings.TrimSpace(string(stdout[:min(len(stdout), 512)])); out != "" {
		return fmt.Errorf("%w: %q", err, out)
	}
	return err
}

func tail(stderr *capbuf.Buffer) string {
	if s := strings.TrimSpace(stderr.String()); s != "" {
		return fmt.Sprintf(" (stderr: %q)", s)
	}
	return ""
}
