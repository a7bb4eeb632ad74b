package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
	"github.com/ocid-io/ocid/test/images"
)

// TestNoDescriptorsLeak: a process of a container has its standard files and no
// other, since each descriptor of the host's is a way out.
func TestNoDescriptorsLeak(t *testing.T) {
	e, ctx := env(t)
	// Names of descriptors only; the shell that lists has none but the directory.
	const list = `for f in /proc/self/fd/*; do echo "${f##*/} $(readlink $f)"; done`
	pod := e.Pod("descriptors", false)
	podID, id, err := e.Up(ctx, pod, "", harness.Shell("c", list+"; echo end; "+harness.Forever))
	check(t, err)
	defer func() { check(t, e.Down(ctx, podID)) }()
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", list))
	status := must[*runtimeapi.ContainerStatus](t)(e.Status(ctx, id))
	var log string
	for !strings.Contains(log, " end\n") && ctx.Err() == nil {
		b, err := os.ReadFile(status.LogPath)
		check(t, err)
		log = string(b)
	}
	standard := regexp.MustCompile(`(^|\s)[0-2] (pipe:\[\d+\]|/dev/null)$`)
	own := regexp.MustCompile(`(^|\s)\d+ (/proc/\d+/fd|)$`) // gone, or what lists
	for what, out := range map[string]string{"a container": log, "an exec": string(r.Stdout)} {
		found := 0
		for line := range strings.Lines(out) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case standard.MatchString(line):
				found++
			case own.MatchString(line), strings.HasSuffix(line, " end"):
			default:
				t.Errorf("%s has %q", what, line)
			}
		}
		if found < 3 {
			t.Errorf("%s: not even the standard files in %q", what, out)
		}
	}
}

// TestWorkingDirectoryOfTheHost: no working directory leads to the host by way
// of a descriptor that the runtime has open, whoever names it.
func TestWorkingDirectoryOfTheHost(t *testing.T) {
	e, ctx := env(t)
	image := busyboxWith(t, ctx, e, "cwd", func(c *v1.Config) { c.WorkingDir = "/proc/self/fd/7" }, func(b *images.Builder) { b.Dir("work", 0o755) })
	pod := e.Pod("cwd", false)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	defer func() { check(t, e.Down(ctx, podID)) }()
	for n := -2; n < 24; n++ {
		c := harness.Container(fmt.Sprintf("c%d", n+2), image, "sh", "-c", harness.Forever)
		switch {
		case n >= 0:
			c.WorkingDir = fmt.Sprintf("/proc/self/fd/%d", n)
		case n == -2:
			c.WorkingDir = "/work" // the image can be run
		}
		if _, err := e.RunContainer(ctx, podID, pod, c); (err == nil) != (n == -2) {
			t.Errorf("working directory %q: %v", c.WorkingDir, err)
		}
	}
}

// TestImageFullOfLinks: links of an image that lead to the host's files, where
// ocid writes and mounts, lead there within the image.
func TestImageFullOfLinks(t *testing.T) {
	e, ctx := env(t)
	victim := t.TempDir()
	check(t, os.WriteFile(filepath.Join(victim, "file"), []byte("safe"), 0o600))
	up := strings.Repeat("../", 20)
	image := busyboxWith(t, ctx, e, "links", func(c *v1.Config) {
		c.Labels = map[string]string{"org.systemd.property.ExecStopPost": "'/bin/touch " + victim + "/label'"}
		c.Volumes = map[string]struct{}{"/volume": {}}
	}, func(b *images.Builder) {
		b.Symlink("etc/resolv.conf", victim+"/file")
		b.Symlink("etc/hosts", victim+"/hosts")
		b.Symlink("etc/hostname", strings.TrimPrefix(up+victim, "/")+"/hostname")
		b.Symlink("etc/passwd", "/proc/self/root/etc/shadow")
		b.Symlink("data", victim)
		b.Symlink("climb", up+strings.TrimPrefix(victim, "/"))
		b.Symlink("volume", victim+"/volume")
	})
	pod := e.Pod("links", false)
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	defer func() { check(t, e.Down(ctx, podID)) }()
	c := harness.Container("c", image, "sh", "-c", harness.Forever)
	for _, at := range []string{"/data/a", "/climb/b", "/climb/c/d"} {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: at, HostPath: e.CNIConf, Readonly: true})
	}
	if id, err := e.RunContainer(ctx, podID, pod, c); err == nil {
		r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c", "cat "+victim+"/file | head -c 4"))
		if string(r.Stdout) == "safe" {
			t.Error("the container reads the host's file")
		}
	}
	left := must[[]os.DirEntry](t)(os.ReadDir(victim))
	b := must[[]byte](t)(os.ReadFile(filepath.Join(victim, "file")))
	if len(left) != 1 || string(b) != "safe" {
		t.Errorf("the host's directory has %v, its file %q", left, b)
	}
}

// TestSharedPIDShowsNoHost: a container that may trace processes and sees the
// pod's first process finds nothing of the host's behind it.
func TestSharedPIDShowsNoHost(t *testing.T) {
	e, ctx := env(t)
	pod := e.Pod("traced", false)
	pod.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}
	podID := must[string](t)(e.RunPod(ctx, pod, ""))
	defer func() { check(t, e.Down(ctx, podID)) }()
	c := harness.Shell("c", harness.Forever)
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	// By the default profile of AppArmor it may not trace at all.
	c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE", "SYS_ADMIN", "SYS_CHROOT"}}
	id := must[string](t)(e.RunContainer(ctx, podID, pod, c))
	r := must[*runtimeapi.ExecSyncResponse](t)(e.Exec(ctx, id, "sh", "-c",
		"grep -q monitor /proc/1/cmdline || grep -q pause /proc/1/cmdline || echo no holder; ls -A /proc/1/root/ 2>&1; ls -A /proc/1/cwd/ 2>&1; readlink /proc/1/ns/mnt"))
	lines := strings.Split(strings.TrimSpace(string(r.Stdout)), "\n")
	host := must[string](t)(os.Readlink("/proc/self/ns/mnt"))
	if len(lines) != 1 || lines[len(lines)-1] == host || !strings.HasPrefix(lines[len(lines)-1], "mnt:") {
		t.Errorf("the container sees %q", r.Stdout)
	}
}
