package agent

import (
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/ocid-io/ocid/runtime/engine"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

const (
	freezeWait = 10 * time.Second
	// giveUp is how long criu gets to let go of a container's processes once
	// the runtime that drives it is gone. Killed before, it would leave its own
	// code running in them.
	giveUp = 5 * time.Second
)

// cut is one checkpoint: containers that are frozen together, and the client
// that wants them so.
type cut struct {
	a     *agent
	cn    *conn
	limit *time.Timer
	gone  chan struct{} // closed when the client has left or asked for the thaw
	ask   uint32        // id of the Thaw; valid when gone is closed, 0 if it left
	dirs  []proto.Msg
	cs    []*container
}

// checkpoint freezes containers, writes the state of their processes and keeps
// them frozen until the client says otherwise, leaves, or has had its time.
// It never returns with one of them frozen.
func (a *agent) checkpoint(cn *conn, m proto.Msg) {
	id := m.ID
	k, err := a.newCut(cn, &m)
	if err != nil {
		cn.fail(id, err)
		return
	}
	err = k.capture(m.Flags&proto.FlagTCP != 0)
	if err == nil {
		cn.send(&proto.Msg{Type: proto.Captured, ID: id})
		select {
		case <-k.gone:
		case <-k.limit.C:
			err = &failure{kind: kindTimeout, text: "the time for the checkpoint has passed, and the containers run again"}
		}
	}
	k.release()
	switch {
	case err != nil:
		cn.fail(id, err)
	case k.ask != 0:
		cn.send(&proto.Msg{Type: proto.OK, ID: k.ask})
	}
}

func (a *agent) newCut(cn *conn, m *proto.Msg) (*cut, error) {
	if a.handler.VM {
		return nil, &failure{kind: kindState, text: "containers in a virtual machine cannot be checkpointed"}
	}
	if len(m.Items) == 0 || m.Time <= 0 {
		return nil, &failure{kind: kindInvalid, text: "a checkpoint needs containers and a time limit"}
	}
	k := &cut{a: a, cn: cn, dirs: m.Items, gone: make(chan struct{})}
	for i := range m.Items {
		c, err := a.find(m.Items[i].Container)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		running := c.started && !c.deleting && !c.hasExited()
		c.mu.Unlock()
		if !running || c.cgroup == "" {
			return nil, &failure{kind: kindState, text: "container " + c.id + " does not run"}
		}
		k.cs = append(k.cs, c)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cutting || a.closing {
		return nil, &failure{kind: kindState, text: "another checkpoint of this pod is under way"}
	}
	a.cutting = true
	k.limit = time.NewTimer(time.Duration(m.Time))
	go k.listen()
	return k, nil
}

// listen waits for the Thaw, or for the client's end.
func (k *cut) listen() {
	defer close(k.gone)
	var m proto.Msg
	if _, err := proto.Read(k.cn, nil, &m); err == nil && m.Type == proto.Thaw {
		k.ask = m.ID
	}
}

// capture freezes all, then writes one after the other.
func (k *cut) capture(tcp bool) error {
	for _, c := range k.cs {
		if err := cgroup.Freeze(c.cgroup, freezeWait); err != nil {
			return errors2("freeze container "+c.id, err)
		}
	}
	for i, c := range k.cs {
		argv := k.a.handler.Checkpoint(c.id, engine.CheckpointArgs{
			Images: k.dirs[i].Bundle, Work: k.dirs[i].LogPath, TCPEstablished: tcp,
		})
		if err := k.run(argv); err != nil {
			if strings.Contains(err.Error(), "manage cgroups mode") {
				return &failure{kind: kindState, text: "this OCI runtime cannot leave control groups out of a checkpoint; runc can from 1.2 on: " + err.Error()}
			}
			return errors2("checkpoint container "+c.id, err)
		}
	}
	for _, c := range k.cs {
		if c.hasExited() {
			return &failure{kind: kindState, text: "container " + c.id + " ended meanwhile"}
		}
		if !cgroup.Frozen(c.cgroup) {
			return &failure{text: "container " + c.id + " was thawed before all was captured"}
		}
	}
	return nil
}

// run runs the runtime until it ends, the client leaves or the time is over.
func (k *cut) run(argv []string) error {
	a := k.a
	errR, errW, err := pipe(true)
	if err != nil {
		return err
	}
	defer errR.Close()
	attr := a.attr(a.null, a.null, errW)
	// criu is in the group too, so that it can be waited for and killed.
	attr.Sys = &syscall.SysProcAttr{Setpgid: true}
	p, err := a.reaper.spawn(argv, attr)
	closeFDs(errW)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return a.await(p, argv, errR)
	case <-k.gone:
		err = &failure{text: "the client has left"}
	case <-k.limit.C:
		err = &failure{kind: kindTimeout, text: "the time for the checkpoint has passed"}
	}
	a.reaper.kill(p, syscall.SIGKILL, false)
	<-p.done
	drainGroup(p.pid)
	return err
}

// drainGroup waits for criu to let go, and kills it in the end.
func drainGroup(pgid int) {
	for end := time.Now().Add(giveUp); syscall.Kill(-pgid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			_ = syscall.Kill(-pgid, syscall.SIGKILL)
			return
		}
	}
}

// release thaws all. It tries every container, whatever happens to others.
func (k *cut) release() {
	k.limit.Stop()
	for _, c := range k.cs {
		cgroup.Thaw(c.cgroup)
	}
	k.a.mu.Lock()
	k.a.cutting = false
	k.a.mu.Unlock()
}

// restoration is the run of the runtime that makes c from images.
//
// It gets a mount namespace of its own, a slave of the host's: to restore, a
// runtime mounts the root file system and volumes in places where they do not
// stay, and what a killed one left there would be taken for the container's own
// files by whoever cleans up. Not a private one, since criu gives each volume
// the propagation that it finds at its source.
func (a *agent) restoration(c *container, io *stdio, pidFile string, m *proto.Msg, attr *syscall.ProcAttr) ([]string, time.Duration) {
	attr.Sys = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if a.handler.Embedded {
		attr.Files = append(attr.Files, uintptr(a.null), RuntimeFD) // 3, and 4 as in this process
	}
	r := engine.RestoreArgs{
		CreateArgs:     engine.CreateArgs{Bundle: c.bundle, PIDFile: pidFile, ConsoleSocket: io.consoleAddr},
		TCPEstablished: m.Flags&proto.FlagTCP != 0,
	}
	if len(m.Items) > 0 {
		r.Images, r.Work = m.Items[0].Bundle, m.Items[0].LogPath
	}
	limit := patience
	if m.Time > 0 {
		limit = time.Duration(m.Time)
	}
	return append([]string{"/proc/self/exe", "enslave"}, a.handler.Restore(c.id, r)...), limit
}

// enslave cuts the way of mounts from a new namespace to the host, and becomes
// the program that argv names.
func enslave(argv []string) int {
	if err := syscall.Mount("", "/", "", syscall.MS_SLAVE|syscall.MS_REC, ""); err != nil {
		return complain("cut the propagation of mounts: " + err.Error())
	}
	for fd := ListenerFD; fd <= RuntimeFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	return complain(argv[0] + ": " + syscall.Exec(argv[0], argv, os.Environ()).Error())
}
