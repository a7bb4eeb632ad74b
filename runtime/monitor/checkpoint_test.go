package monitor

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/lifecycle"
	"github.com/ocid-io/ocid/runtime/monitor/cgroup"
	"github.com/ocid-io/ocid/runtime/monitor/proto"
)

// stub makes an OCI runtime that stands for one with a working criu: it is the
// embedded one, but "restore" starts the bundle's program anew, and
// "checkpoint" does what the file "mode" beside it says.
func stub(t testing.TB, dir, embedded string) string {
	t.Helper()
	const script = `#!/bin/sh
args="$*"
root= cmd= images= bundle= pidfile= work=
while [ $# -gt 0 ]; do
	case $1 in
	--root) root=$2; shift ;;
	--log) shift ;;
	--image-path) images=$2; shift ;;
	--work-path) work=$2; shift ;;
	--bundle) bundle=$2; shift ;;
	--pid-file) pidfile=$2; shift ;;
	--manage-cgroups-mode) shift ;;
	checkpoint|restore) cmd=$1 ;;
	esac
	id=$1
	shift
done
case $cmd in
checkpoint)
	case $(cat MODE 2>/dev/null) in
	fail) echo "no luck today" >&2; exit 1 ;;
	hang) exec sleep 1000 ;;
	esac
	echo image >"$images/core-1.img"
	echo log >"$work/dump.log" ;;
restore)
	[ -s "$images/core-1.img" ] || { echo "no images" >&2; exit 1; }
	[ "$(readlink /proc/self/ns/mnt)" != "$(readlink /proc/$PPID/ns/mnt)" ] || { echo "no mount namespace of its own" >&2; exit 1; }
	REAL --root "$root" create --bundle "$bundle" --pid-file "$pidfile" "$id" && exec REAL --root "$root" start "$id" ;;
*) exec REAL $args ;;
esac
`
	path := filepath.Join(dir, "stub")
	text := strings.NewReplacer("REAL", embedded, "MODE", filepath.Join(dir, "mode")).Replace(script)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func stubPod(t *testing.T) (*pod, *Client) {
	t.Helper()
	if err := haveCriu(); err != nil {
		t.Skip(err)
	}
	p := newPod(t, "stub")
	c, ok := p.m.(*Client)
	if !ok {
		t.Fatalf("the monitor is a %T", p.m)
	}
	return p, c
}

func (p *pod) mode(mode string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(p.dir), "mode"), []byte(mode), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

const tick = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.01; done"

// cutOf asks for a checkpoint of containers, with fresh directories.
func (p *pod) cutOf(limit time.Duration, ids ...runtime.ContainerID) lifecycle.CheckpointRequest {
	p.t.Helper()
	r := lifecycle.CheckpointRequest{Limit: limit}
	for _, id := range ids {
		d := lifecycle.CheckpointDirs{ID: id, Work: p.t.TempDir()}
		d.Images = filepath.Join(d.Work, "checkpoint")
		if err := os.Mkdir(d.Images, 0o700); err != nil {
			p.t.Fatal(err)
		}
		r.Containers = append(r.Containers, d)
	}
	return r
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// runsOn fails unless the container's log grows.
func runsOn(t *testing.T, r lifecycle.CreateRequest) {
	t.Helper()
	if cgroup.Frozen(r.CgroupPath) {
		t.Fatal("the container is frozen")
	}
	before := size(r.LogPath)
	await(t, func() bool { return size(r.LogPath) > before })
}

func TestCheckpointFreezesAllUntilTheThaw(t *testing.T) {
	p, c := stubPod(t)
	a, b := p.run("a", nil, "sh", "-c", tick), p.run("b", nil, "sh", "-c", tick)
	runsOn(t, a)
	req := p.cutOf(time.Minute, a.ID, b.ID)
	thaw, err := c.Checkpoint(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []lifecycle.CreateRequest{a, b} {
		if !cgroup.Frozen(r.CgroupPath) {
			t.Errorf("%s runs", r.ID)
		}
		if size(filepath.Join(req.Containers[i].Images, "core-1.img")) == 0 || size(filepath.Join(req.Containers[i].Work, "dump.log")) == 0 {
			t.Errorf("%s: no images", r.ID)
		}
	}
	if _, err := c.Checkpoint(t.Context(), p.cutOf(time.Minute, a.ID)); !errors.Is(err, runtime.ErrState) {
		t.Errorf("a second one at the same time: %v", err)
	}
	if !cgroup.Frozen(a.CgroupPath) {
		t.Error("the second one has thawed it")
	}
	for range 2 {
		if err := thaw(); err != nil {
			t.Error(err)
		}
	}
	runsOn(t, a)
	runsOn(t, b)
	if thaw, err = c.Checkpoint(t.Context(), p.cutOf(time.Minute, a.ID)); err != nil {
		t.Fatalf("the next one: %v", err)
	}
	if err := thaw(); err != nil {
		t.Error(err)
	}
}

func TestCheckpointNeverStaysFrozen(t *testing.T) {
	p, c := stubPod(t)
	a := p.run("a", nil, "sh", "-c", tick)
	p.mode("fail")
	if _, err := c.Checkpoint(t.Context(), p.cutOf(time.Minute, a.ID)); err == nil || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("%v", err)
	}
	runsOn(t, a)

	p.mode("hang")
	begin := time.Now()
	if _, err := c.Checkpoint(t.Context(), p.cutOf(200*time.Millisecond, a.ID)); !errors.Is(err, runtime.ErrTimeout) {
		t.Errorf("%v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	runsOn(t, a)

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := c.Checkpoint(ctx, p.cutOf(time.Minute, a.ID)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	await(t, func() bool { return !cgroup.Frozen(a.CgroupPath) })
	runsOn(t, a)

	p.mode("")
	thaw, err := c.Checkpoint(t.Context(), p.cutOf(300*time.Millisecond, a.ID))
	if err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return !cgroup.Frozen(a.CgroupPath) })
	if err := thaw(); err == nil {
		t.Error("a thaw that came too late is no error")
	}
	runsOn(t, a)

	if _, err := c.Checkpoint(t.Context(), p.cutOf(time.Minute, a.ID, "nothing")); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("an unknown container: %v", err)
	}
	runsOn(t, a)
}

// TestCheckpointOfALostClient: the end of the connection is the thaw.
func TestCheckpointOfALostClient(t *testing.T) {
	p, c := stubPod(t)
	a := p.run("a", nil, "sh", "-c", tick)
	conn, err := c.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := p.cutOf(time.Minute, a.ID).Containers[0]
	m := proto.Msg{Type: proto.Checkpoint, ID: 1, Time: int64(time.Minute), Items: []proto.Msg{{Container: "a", Bundle: d.Images, LogPath: d.Work}}}
	if r, err := c.ask(t.Context(), conn, m); err != nil || r.Type != proto.Captured {
		t.Fatalf("%v, %v", r, err)
	}
	if !cgroup.Frozen(a.CgroupPath) {
		t.Error("not frozen")
	}
	conn.Close()
	await(t, func() bool { return !cgroup.Frozen(a.CgroupPath) })
	runsOn(t, a)
}

func TestRestoreUnderTheMonitor(t *testing.T) {
	p, c := stubPod(t)
	p.mode("")
	a := p.run("a", nil, "sh", "-c", tick)
	req := p.cutOf(time.Minute, a.ID)
	thaw, err := c.Checkpoint(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(thaw(), p.m.Delete(t.Context(), a.ID), os.Remove(a.LogPath)); err != nil {
		t.Fatal(err)
	}
	r := lifecycle.RestoreRequest{CreateRequest: a, Images: t.TempDir(), Work: req.Containers[0].Work, Limit: time.Minute}
	if _, err := c.Restore(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no images") {
		t.Errorf("without images: %v", err)
	}
	if cgroup.Exists(a.CgroupPath) {
		t.Error("a failed restore left its control group")
	}
	r.Images = req.Containers[0].Images
	pid, err := c.Restore(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Restore(t.Context(), r); err != nil || again != pid {
		t.Errorf("again: %d, %v", again, err)
	}
	runsOn(t, a)
	st, err := p.m.State(t.Context())
	if err != nil || len(st) != 1 || !st[0].Started || st[0].PID != pid {
		t.Errorf("%+v, %v", st, err)
	}
	if out, code, err := p.exec(t.Context(), a.ID, time.Second, "echo", "hello"); out != "hello\n" || code != 0 || err != nil {
		t.Errorf("exec: %q %d %v", out, code, err)
	}
	if err := p.m.Signal(t.Context(), a.ID, int(syscall.SIGKILL), true); err != nil {
		t.Fatal(err)
	}
	if e := p.wait(a.ID); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	if b, err := os.ReadFile(a.LogPath); err != nil || !bytes.Contains(b, []byte("stdout F tick 1\n")) {
		t.Errorf("log: %.100q, %v", b, err)
	}
}

// TestOlderMonitorIsToldApart: what it does not know is not asked of it.
func TestOlderMonitorIsToldApart(t *testing.T) {
	if err := haveCriu(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan proto.Type, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var m proto.Msg
		if _, err := proto.Read(conn, nil, &m); err != nil {
			return
		}
		_, _ = conn.Write(proto.Append(nil, &proto.Msg{Type: proto.HelloOK, Max: proto.CheckpointVersion - 1}))
		if _, err := proto.Read(conn, nil, &m); err == nil {
			asked <- m.Type
		}
		close(asked)
	}()
	c := &Client{dir: dir}
	if _, err := c.Checkpoint(t.Context(), lifecycle.CheckpointRequest{}); !errors.Is(err, runtime.ErrState) || !strings.Contains(err.Error(), "release") {
		t.Errorf("%v", err)
	}
	if what, ok := <-asked; ok {
		t.Errorf("it was asked %d", what)
	}
}
