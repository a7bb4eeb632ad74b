// Package agent is the monitor process of a pod: the parent of its containers,
// the writer of their logs and the keeper of their exit codes.
//
// It is what ocid-monitor links, and so it has to stay small: no fmt, net,
// encoding/json, reflection. One process serves all containers of the pod; the
// memory it needs for an idle container is a few goroutines.
//
// Invariants:
//   - one goroutine reaps (reaper); a pid is signalled only while unreaped;
//   - an exit is in its file before anybody is told;
//   - a container's process never waits for the log, the daemon or a client of
//     an exec that it is not part of; a client attached to it can hold it up for
//     a bounded time only (sink), and is then detached;
//   - every descriptor closes on exec;
//   - the process ends by Shutdown only; SIGTERM is dropped.
//
// Lock order: agent.mu, container.mu, reaper.mu; none is held across a run of
// the OCI runtime.
package agent

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// SocketName is the monitor's socket in the pod's run directory.
const SocketName = "monitor.sock"

// Descriptors that the monitor inherits.
const (
	ListenerFD = 3
	RuntimeFD  = 4 // the sealed embedded runtime, if the handler is that
)

type agent struct {
	dir      string
	handler  engine.Handler
	listener *os.File
	reaper   *reaper
	null     int
	env      []string
	execs    chan struct{}
	serial   atomic.Int64

	mu         sync.Mutex
	containers map[string]*container
	closing    bool
	pidns      *child // pid 1 of the pod's pid namespace
	pidnsPipe  *os.File
	cutting    bool // a checkpoint is under way
}

// Main runs the monitor and returns its exit code.
//
//	ocid-monitor run DIR NAME PATH ROOT embedded|vm|plain [RUNTIME FLAGS...]
//	ocid-monitor pause
//	ocid-monitor stat PATH
//	ocid-monitor enslave PROGRAM [ARGUMENTS...]
func Main(args []string) int {
	switch {
	case len(args) > 1 && args[1] == "pause":
		return pause()
	case len(args) == 3 && args[1] == "stat":
		return statAside(args[2])
	case len(args) == 3 && args[1] == "stat-now":
		return statNow(args[2])
	case len(args) > 2 && args[1] == "enslave":
		return enslave(args[2:])
	}
	if len(args) < 7 || args[1] != "run" {
		return complain("usage: ocid-monitor run DIR NAME PATH ROOT embedded|vm|plain [RUNTIME FLAGS...]")
	}
	null, err := syscall.Open("/dev/null", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return complain(err.Error())
	}
	a := &agent{
		dir: args[2],
		handler: engine.Handler{
			Name: args[3], Path: args[4], Root: args[5],
			Embedded: args[6] == "embedded", VM: args[6] == "vm", Args: args[7:],
		},
		reaper:     newReaper(),
		null:       null,
		env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		execs:      make(chan struct{}, maxExecs),
		containers: map[string]*container{},
	}
	if a.handler.Embedded {
		// It lives for milliseconds: collecting garbage is not worth it.
		a.env = append(a.env, "GOGC=off")
	}
	const setChildSubreaper = 36
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0); e != 0 {
		return complain("subreaper: " + e.Error())
	}
	syscall.CloseOnExec(ListenerFD)
	syscall.CloseOnExec(RuntimeFD)
	_ = syscall.SetNonblock(ListenerFD, true)
	a.listener = os.NewFile(ListenerFD, SocketName)
	a.reaper.run()
	if err := a.accept(); err != nil {
		return complain(err.Error())
	}
	return 0
}

func complain(text string) int {
	_, _ = os.Stderr.WriteString("ocid-monitor: " + text + "\n")
	return 1
}

func (a *agent) state() []proto.Msg {
	a.mu.Lock()
	all := make([]*container, 0, len(a.containers))
	for _, c := range a.containers {
		all = append(all, c)
	}
	a.mu.Unlock()
	items := make([]proto.Msg, 0, len(all))
	for _, c := range all {
		if <-c.made; c.err == nil {
			items = append(items, a.status(c))
		}
	}
	return items
}

func (a *agent) shutdown() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.containers); n > 0 {
		return &failure{kind: kindState, text: "the monitor still holds " + itoa(n) + " containers"}
	}
	a.closing = true
	if a.pidns != nil {
		a.pidnsPipe.Close()
		a.reaper.kill(a.pidns, syscall.SIGKILL, false)
		<-a.pidns.done
		a.pidns = nil
	}
	_ = os.Remove(a.dir + "/" + SocketName)
	return nil
}

func (a *agent) exit() { os.Exit(0) } //nolint:forbidigo // the monitor's only way out

// pidNamespace makes the process that holds the pod's pid namespace. Idempotent.
func (a *agent) pidNamespace() (int, error) {
	return a.hold(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | alone})
}

// ownable are the namespaces that a pod's user namespace may own, beside its
// pid namespace.
const ownable = syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS

// podNamespaces says how the holder of a pod with a user namespace is born. It
// runs as that namespace's root, so that the pod's root has no process with
// the host's root identity in reach.
func podNamespaces(m *proto.Msg) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | alone,
		GidMappingsEnableSetgroups: true,
	}
	for i := range m.Items {
		it := &m.Items[i]
		id := syscall.SysProcIDMap{ContainerID: int(it.Min), HostID: int(it.Max), Size: int(it.Code)}
		switch it.Flags {
		case proto.MapUID:
			attr.UidMappings = append(attr.UidMappings, id)
		case proto.MapGID:
			attr.GidMappings = append(attr.GidMappings, id)
		}
	}
	if m.Flags&^ownable != 0 || len(attr.UidMappings) == 0 || len(attr.GidMappings) == 0 {
		return nil, &failure{kind: kindInvalid, text: "bad flags, or no id mappings"}
	}
	attr.Credential = &syscall.Credential{
		Uid: uint32(attr.UidMappings[0].ContainerID), Gid: uint32(attr.GidMappings[0].ContainerID),
	}
	return attr, nil
}

// hold starts the process that holds the pod's namespaces, or returns the one
// that does.
func (a *agent) hold(sys *syscall.SysProcAttr) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return 0, &failure{kind: kindState, text: "the monitor is shutting down"}
	}
	if a.pidns != nil {
		select {
		case <-a.pidns.done: // it was killed, and all in the namespace with it
			a.pidnsPipe.Close()
			a.pidns = nil
		default:
			return a.pidns.pid, nil
		}
	}
	w, r, err := pipe(false)
	if err != nil {
		return 0, err
	}
	ready, said, err := pipe(true)
	if err != nil {
		closeFDs(r)
		w.Close()
		return 0, err
	}
	attr := a.attr(r, said, a.null)
	// The last keeps Go's runtime from having files of the host's cgroup open.
	attr.Env = []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=containermaxprocs=0"}
	attr.Sys = sys
	c, err := a.reaper.spawn([]string{"/proc/self/exe", "pause"}, attr)
	closeFDs(r, said)
	if err != nil {
		ready.Close()
		w.Close()
		return 0, err
	}
	if err := awaitHolder(ready); err != nil {
		w.Close()
		a.reaper.kill(c, syscall.SIGKILL, false)
		return 0, err
	}
	a.pidns, a.pidnsPipe = c, w
	return c.pid, nil
}
