// Command ocid-runtime is the embedded OCI runtime: libcontainer behind the
// usual OCI runtime command line, and nothing else.
//
// It is short-lived. Each command does its work and leaves; whoever called it
// with a subreaper set is then the parent of the container's processes. The
// state directory and the command line follow the conventions of other OCI
// runtimes, so that one can be swapped for another.
//
// Invariants:
//   - start-up does no work that the command does not need (no flag framework,
//     no configuration file): it is paid several times per pod;
//   - an error is one line on stderr, and an entry in --log when that is given;
//   - a create that fails leaves no state directory, cgroup or process.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before the Go runtime starts

	_ "github.com/opencontainers/cgroups/devices" // device rules for cgroup v1 and v2

	"github.com/sirupsen/logrus"
)

func init() {
	// The second stage: this process is already inside the namespaces.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		takeFilter()
		libcontainer.Init()
	}
}

// version is set at link time.
var version = "dev"

// exitError carries the exit code of a foreground exec.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// command is one word of the command line and what it does.
type command struct {
	flags flagSet
	run   func(g *options, a *options) error
}

var commands = map[string]command{
	"create": {flagSet{
		"bundle": true, "b": true, "pid-file": true, "console-socket": true,
		"preserve-fds": true, "no-pivot": false, "no-new-keyring": false,
	}, create},
	"start": {flagSet{}, start},
	"state": {flagSet{}, state},
	"kill":  {flagSet{"all": false, "a": false}, kill},
	"delete": {flagSet{
		"force": false, "f": false,
	}, remove},
	"exec": {flagSet{
		"process": true, "p": true, "pid-file": true, "console-socket": true,
		"detach": false, "d": false, "tty": false, "t": false, "preserve-fds": true,
	}, execute},
	"update":     {flagSet{"resources": true, "r": true}, update},
	"list":       {flagSet{"format": true, "f": true, "quiet": false, "q": false}, list},
	"features":   {flagSet{}, printFeatures},
	"checkpoint": {checkpointFlags, checkpoint},
	"restore":    {restoreFlags, restore},
}

var globalFlags = flagSet{
	"root": true, "log": true, "log-format": true, "debug": false,
	"systemd-cgroup": false, "version": false, "v": false,
}

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	logrus.SetLevel(logrus.WarnLevel)
	g, rest, err := parse(globalFlags, args)
	if err != nil {
		return fail(nil, err)
	}
	if g.on("version", "v") || len(rest) > 0 && rest[0] == "version" {
		fmt.Printf("ocid-runtime version %s\nspec: 1.3.0\n", version)
		return 0
	}
	if len(rest) == 0 {
		return fail(g, errors.New("a command is missing: create, start, state, kill, delete, exec, update, list, features, checkpoint or restore"))
	}
	c, ok := commands[rest[0]]
	if !ok {
		return fail(g, fmt.Errorf("unknown command %q", rest[0]))
	}
	a, ids, err := parse(c.flags, rest[1:])
	if err != nil {
		return fail(g, fmt.Errorf("%s: %w", rest[0], err))
	}
	a.args = ids
	if err := setLog(g); err != nil {
		return fail(nil, err)
	}
	var code exitError
	if err := c.run(g, a); errors.As(err, &code) {
		return int(code)
	} else if err != nil {
		return fail(g, err)
	}
	return 0
}

func setLog(g *options) error {
	if g.on("debug") {
		logrus.SetLevel(logrus.DebugLevel)
	}
	if g.get("log") == "" {
		return nil
	}
	f, err := os.OpenFile(g.get("log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	logrus.SetOutput(f)
	if g.get("log-format") == "json" {
		logrus.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	}
	return nil
}

// fail reports err and returns the exit code for it.
func fail(g *options, err error) int {
	fmt.Fprintln(os.Stderr, "ocid-runtime:", err)
	if g != nil && g.get("log") != "" {
		logrus.Error(err)
	}
	return 1
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
