// Package engine says how an OCI runtime is called: which words make up the
// command line of each operation, for the embedded runtime and for any other.
//
// It is a pure table. Nothing here runs a process, so the monitor can link it
// at no cost, and a test can hold every line against what runtimes accept
// (runc 1.1 and later, crun, kata-runtime, runsc).
//
// Invariants:
//   - global flags stand before the command, the container id comes last, as
//     all known runtimes want it;
//   - a warning of the runtime never reaches the container's log: --log takes
//     it away, while the error of a failed command still appears on stderr.
package engine

// Handler is one configured OCI runtime.
type Handler struct {
	Name string
	Path string
	// Root is where the runtime keeps its state.
	Root string
	// Args are further global flags from the configuration.
	Args []string
	// Embedded marks ocid-runtime: its state directory is known, so that start
	// and delete need no process.
	Embedded bool
	// VM marks a runtime whose processes are not the host's: signals go
	// through the runtime instead of straight to the pid.
	VM bool
}

// CreateArgs are the paths of one create.
type CreateArgs struct {
	Bundle        string
	PIDFile       string
	ConsoleSocket string // "" without a terminal
}

// ExecArgs are the paths of one exec. The process runs detached.
type ExecArgs struct {
	ProcessFile   string
	PIDFile       string
	ConsoleSocket string // "" without a terminal
}

// command starts a command line: path, global flags, command.
func (h Handler) command(words ...string) []string {
	argv := make([]string, 0, 8+len(h.Args)+len(words))
	argv = append(argv, h.Path)
	if h.Root != "" {
		argv = append(argv, "--root", h.Root)
	}
	argv = append(argv, "--log", "/dev/null")
	argv = append(argv, h.Args...)
	return append(argv, words...)
}

// Create makes the container, its first process waiting to be started.
func (h Handler) Create(id string, a CreateArgs) []string {
	argv := h.command("create", "--bundle", a.Bundle, "--pid-file", a.PIDFile)
	if a.ConsoleSocket != "" {
		argv = append(argv, "--console-socket", a.ConsoleSocket)
	}
	return append(argv, id)
}

// Start lets the first process run.
func (h Handler) Start(id string) []string { return h.command("start", id) }

// State prints the state as JSON.
func (h Handler) State(id string) []string { return h.command("state", id) }

// Kill sends a signal, given by number, to the first process or to all.
func (h Handler) Kill(id, sig string, all bool) []string {
	if all {
		return h.command("kill", "--all", id, sig)
	}
	return h.command("kill", id, sig)
}

// Delete kills what is left and removes the container.
func (h Handler) Delete(id string) []string { return h.command("delete", "--force", id) }

// Exec runs a process in the container and returns while it runs.
func (h Handler) Exec(id string, a ExecArgs) []string {
	argv := h.command("exec", "--detach", "--process", a.ProcessFile, "--pid-file", a.PIDFile)
	if a.ConsoleSocket != "" {
		argv = append(argv, "--console-socket", a.ConsoleSocket)
	}
	return append(argv, id)
}

// Update reads new limits as JSON from its standard input.
func (h Handler) Update(id string) []string { return h.command("update", "--resources", "-", id) }

// Features prints what the runtime can do, as JSON.
func (h Handler) Features() []string { return h.command("features") }

// CheckpointArgs are the paths and wishes of one checkpoint. The container
// runs on after it.
type CheckpointArgs struct {
	Images         string // existing directory for criu's image files
	Work           string // existing directory for its log
	TCPEstablished bool
}

// Checkpoint writes the state of the container's processes. It leaves control
// groups out: whoever restores makes its own.
func (h Handler) Checkpoint(id string, a CheckpointArgs) []string {
	argv := h.command("checkpoint", "--image-path", a.Images, "--work-path", a.Work,
		"--leave-running", "--file-locks", "--manage-cgroups-mode", "ignore")
	if a.TCPEstablished {
		argv = append(argv, "--tcp-established")
	}
	return append(argv, id)
}

// RestoreArgs are the paths and wishes of one restore. The first process runs
// when it returns.
type RestoreArgs struct {
	CreateArgs
	Images         string
	Work           string
	TCPEstablished bool
}

// Restore makes the container of a bundle with the processes of a checkpoint.
func (h Handler) Restore(id string, a RestoreArgs) []string {
	argv := h.command("restore", "--detach", "--bundle", a.Bundle, "--pid-file", a.PIDFile,
		"--image-path", a.Images, "--work-path", a.Work, "--file-locks", "--manage-cgroups-mode", "ignore")
	if a.ConsoleSocket != "" {
		argv = append(argv, "--console-socket", a.ConsoleSocket)
	}
	if a.TCPEstablished {
		argv = append(argv, "--tcp-established")
	}
	return append(argv, id)
}
