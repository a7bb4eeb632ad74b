package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// counting is a program whose state is in memory, in a file, in one that is
// gone, and in its children.
const counting = `rm /bin/yes; n=100; while :; do n=$((n+1)); echo tick $n; echo $n > /tmp/n; sleep 0.2; done`

// needCriu skips where criu cannot do its work. Whether it can is found out by
// the real thing: its own check says no of things that containers do not need.
func needCriu(t *testing.T) {
	t.Helper()
	need(t)
	if _, err := exec.LookPath("criu"); err != nil {
		t.Skip("needs criu (Debian: apt-get install criu)")
	}
	dir := t.TempDir()
	// Without the files that were handed down to this test, which may be of
	// another mount namespace.
	p := exec.Command("setsid", "bash", "-c", `for i in {3..63}; do eval "exec $i>&-"; done; exec sleep 60`)
	check(t, p.Start())
	defer func() {
		_ = p.Process.Kill()
		_ = p.Wait()
	}()
	out, err := exec.Command("criu", "dump", "--leave-running", "-D", dir, "-o", "log", "-t", strconv.Itoa(p.Process.Pid)).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		var first string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "Error (") {
				first = strings.TrimSpace(line)
				break
			}
		}
		t.Skipf("criu of this machine cannot dump a process of its kernel: %v: %s %s", err, bytes.TrimSpace(out), first)
	}
}

// ticks returns the numbers in a container's log.
func ticks(t *testing.T, file string) (out []int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	check(t, err)
	for _, m := range regexp.MustCompile(`stdout F tick (\d+)\n`).FindAllSubmatch(b, -1) {
		n, err := strconv.Atoi(string(m[1]))
		check(t, err)
		out = append(out, n)
	}
	return out
}

// awaitTicks returns once more than n ticks are in the log.
func awaitTicks(t *testing.T, ctx context.Context, file string, n int) []int {
	t.Helper()
	for {
		if got := ticks(t, file); len(got) > n {
			return got
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no more than %d ticks in %s", n, file)
		case <-time.After(20 * time.Millisecond): // a log file has no event
		}
	}
}

func TestCheckpointRestore(t *testing.T) {
	needCriu(t)
	for _, c := range []struct {
		name, handler string
		pid           runtimeapi.NamespaceMode
	}{
		{"plain", "", runtimeapi.NamespaceMode_CONTAINER},
		{"shared PID namespace", "", runtimeapi.NamespaceMode_POD},
		{"runc", "runc", runtimeapi.NamespaceMode_CONTAINER},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, _ := env(t)
			checkpointRestore(t, deadline(t, 8*time.Minute), e, c.handler, c.pid)
		})
	}
}

func checkpointRestore(t *testing.T, ctx context.Context, e *harness.Env, handler string, pid runtimeapi.NamespaceMode) {
	dir := t.TempDir()
	newPod := func() *runtimeapi.PodSandboxConfig {
		p := e.Pod("count", false)
		p.Hostname = "count"
		p.Linux.SecurityContext.NamespaceOptions.Pid = pid
		return p
	}
	pod := newPod()
	c := harness.Shell("main", counting)
	c.Linux.SecurityContext.NamespaceOptions.Pid = pid
	podID, id, err := e.Up(ctx, pod, handler, c)
	check(t, err)
	t.Cleanup(func() { _ = e.Down(context.Background(), podID) })
	log := filepath.Join(pod.LogDirectory, "main.log")
	awaitTicks(t, ctx, log, 3)

	before := confinement(t, ctx, e, id)

	// One container, for whoever looks at it later.
	archive := filepath.Join(dir, "main.tar")
	_, err = e.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive})
	if handler == "runc" && status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "from 1.2 on") {
		t.Skip("needs runc 1.2 or newer: an older one cannot leave control groups out of a checkpoint")
	}
	check(t, err)
	checkArchive(t, archive)
	awaitTicks(t, ctx, log, len(ticks(t, log))) // it runs on

	// The pod, to be made again.
	out := filepath.Join(dir, "pod")
	check(t, os.Mkdir(out, 0o700))
	limited, cancel := context.WithTimeout(ctx, 6*time.Minute)
	defer cancel()
	_, err = e.Runtime.CheckpointPod(limited, &runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: out, ContainerIds: []string{id}})
	if pid == runtimeapi.NamespaceMode_POD {
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a pod with a shared PID namespace: %v", err)
		}
		check(t, e.Down(ctx, podID))
		check(t, os.RemoveAll(pod.LogDirectory))
		return
	}
	check(t, err)
	atMost := len(awaitTicks(t, ctx, log, len(ticks(t, log))))
	_, err = e.Runtime.CheckpointPod(limited, &runtimeapi.CheckpointPodRequest{PodSandboxId: podID, OutputPath: out, ContainerIds: []string{id}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a second checkpoint into the same directory: %v", err)
	}
	check(t, e.Down(ctx, podID))
	last := 100 + atMost

	again := newPod()
	req := &runtimeapi.RestorePodRequest{CheckpointPath: out, Config: again, RuntimeHandler: handler, ContainerConfigs: []*runtimeapi.ContainerConfig{c}}
	r := must[*runtimeapi.RestorePodResponse](t)(e.Runtime.RestorePod(limited, req))
	t.Cleanup(func() { _ = e.Down(context.Background(), r.PodSandboxId) })
	second := must[*runtimeapi.RestorePodResponse](t)(e.Runtime.RestorePod(limited, req))
	if len(r.RestoredContainers) != 1 || r.RestoredContainers[0].Name != "main" || second.String() != r.String() {
		t.Fatalf("restored %v, and then %v", r, second)
	}
	id = r.RestoredContainers[0].ContainerId
	if s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); s.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state after the restore is %v", s.State)
	}
	log = filepath.Join(again.LogDirectory, "main.log")
	if got := ticks(t, log); len(got) != 0 {
		t.Errorf("it ran before its start: %v", got)
	}
	check(t, os.RemoveAll(out)) // it is the client's to remove
	check(t, e.StartContainer(ctx, id))
	got := awaitTicks(t, ctx, log, 2)
	if got[0] <= 102 || got[0] > last+1 {
		t.Errorf("it goes on with tick %d; the last one before was %d", got[0], last)
	}
	x := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "test ! -e /bin/yes && test -s /tmp/n && hostname"))
	if x.ExitCode != 0 || string(x.Stdout) != "count\n" {
		t.Errorf("exec in the restored container: %d %q %q", x.ExitCode, x.Stdout, x.Stderr)
	}
	if after := confinement(t, ctx, e, id); after != before || !strings.Contains(after, "Seccomp:\t2") {
		t.Errorf("confined by\n%safter the restore, and before by\n%s", after, before)
	}
	stats := must[*runtimeapi.ContainerStatsResponse](t)(e.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))
	if stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("stats are %v", stats.Stats)
	}
	check(t, e.StopContainer(ctx, id, 1))
	if s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 && s.ExitCode != 143 {
		t.Errorf("after the stop: %v", s)
	}
	check(t, e.Down(ctx, r.PodSandboxId))
	check(t, os.RemoveAll(pod.LogDirectory))
	check(t, os.RemoveAll(again.LogDirectory))
}

// confinement is what holds the counting process: credentials, filters, and
// the mounts that cover paths or cannot be written to.
func confinement(t *testing.T, ctx context.Context, e *harness.Env, id string) string {
	t.Helper()
	const script = `for p in /proc/[0-9]*; do
		if tr '\0' ' ' < $p/cmdline | grep -q '^sh -c rm '; then
			grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' $p/status
			awk '{print $5, $6}' $p/mountinfo | grep -E '^/(proc|sys)' | sed 's/,relatime//;s/,noatime//' | sort
			exit 0
		fi
	done; exit 1`
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", script))
	if r.ExitCode != 0 {
		t.Fatalf("look at the process: %d %q %q", r.ExitCode, r.Stdout, r.Stderr)
	}
	return string(r.Stdout)
}

// TestCheckpointSurvivesKill kills the daemon in a checkpoint: the container is
// let go at once, and the next daemon removes what was begun.
func TestCheckpointSurvivesKill(t *testing.T) {
	needCriu(t)
	e, ctx := own(t, harness.Options{})
	_, err := e.Pull(ctx, harness.Busybox)
	check(t, err)
	pod := e.Pod("count", false)
	podID, id, err := e.Up(ctx, pod, "", harness.Shell("main", counting))
	check(t, err)
	log := filepath.Join(pod.LogDirectory, "main.log")
	awaitTicks(t, ctx, log, 2)
	out := t.TempDir()
	begun := filepath.Join(e.Root, "checkpoints", "capture", "*", id, "*")
	for _, sign := range []string{"", "/descriptors.json", "/pages-1.img"} {
		go func() {
			_, _ = e.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(out, "main.tar")})
		}()
		for {
			if m, _ := filepath.Glob(begun + sign); len(m) > 0 {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("no %s%s", begun, sign)
			}
		}
		check(t, e.Signal(unix.SIGKILL))
		<-e.Exited()
		awaitTicks(t, ctx, log, len(ticks(t, log))) // without any daemon
		check(t, e.Start(ctx))
		left, err := filepath.Glob(filepath.Join(e.Root, "checkpoints", "*", "*"))
		check(t, err)
		beside, err := filepath.Glob(filepath.Join(out, ".*"))
		check(t, err)
		if len(left)+len(beside) > 0 {
			t.Errorf("killed at %q, left: %v %v", sign, left, beside)
		}
		if s := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id)); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("killed at %q, the container is %v", sign, s.State)
		}
	}
	_, err = e.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(out, "main.tar")})
	check(t, err)
	check(t, e.Down(ctx, podID))
}

// checkArchive reads an archive as other programs do.
func checkArchive(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the archive: %v, %v", st.Mode(), err)
	}
	have := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		b, err := io.ReadAll(io.LimitReader(r, 1<<16))
		check(t, err)
		have[h.Name] = string(b)
	}
	for _, n := range []string{
		"config.dump", "spec.dump", "status", "deleted.files", "rootfs-diff.tar", "dump.log", "stats-dump", "container.log",
		"checkpoint/descriptors.json", "checkpoint/inventory.img", "checkpoint/pstree.img",
	} {
		if have[n] == "" {
			t.Errorf("the archive has no %s, or it is empty", n)
		}
	}
	if !strings.Contains(have["deleted.files"], `"bin/yes"`) {
		t.Errorf("deleted.files: %s", have["deleted.files"])
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".ocid-checkpoint-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left beside: %v %v", left, err)
	}
	if testing.Verbose() {
		fmt.Printf("archive members: %d\n", len(have))
	}
}
