package engine

import (
	"strings"
	"testing"
)

func TestCommandLines(t *testing.T) {
	t.Parallel()
	embedded := Handler{Name: "ocid", Path: "/proc/self/fd/4", Root: "/run/ocid/engine", Embedded: true}
	crun := Handler{Name: "crun", Path: "/usr/bin/crun", Root: "/run/crun", Args: []string{"--cgroup-manager=cgroupfs"}}
	bare := Handler{Name: "runc", Path: "/usr/sbin/runc"}
	for want, got := range map[string][]string{
		"/proc/self/fd/4 --root /run/ocid/engine --log /dev/null create --bundle /b --pid-file /p c1":                                           embedded.Create("c1", CreateArgs{Bundle: "/b", PIDFile: "/p"}),
		"/usr/sbin/runc --log /dev/null create --bundle /b --pid-file /p --console-socket /s c1":                                                bare.Create("c1", CreateArgs{Bundle: "/b", PIDFile: "/p", ConsoleSocket: "/s"}),
		"/usr/bin/crun --root /run/crun --log /dev/null --cgroup-manager=cgroupfs start c1":                                                     crun.Start("c1"),
		"/usr/sbin/runc --log /dev/null state c1":                                                                                               bare.State("c1"),
		"/usr/sbin/runc --log /dev/null kill c1 15":                                                                                             bare.Kill("c1", "15", false),
		"/usr/sbin/runc --log /dev/null kill --all c1 9":                                                                                        bare.Kill("c1", "9", true),
		"/usr/sbin/runc --log /dev/null delete --force c1":                                                                                      bare.Delete("c1"),
		"/usr/sbin/runc --log /dev/null exec --detach --process /x --pid-file /p c1":                                                            bare.Exec("c1", ExecArgs{ProcessFile: "/x", PIDFile: "/p"}),
		"/usr/sbin/runc --log /dev/null exec --detach --process /x --pid-file /p --console-socket /s c1":                                        bare.Exec("c1", ExecArgs{ProcessFile: "/x", PIDFile: "/p", ConsoleSocket: "/s"}),
		"/usr/sbin/runc --log /dev/null update --resources - c1":                                                                                bare.Update("c1"),
		"/usr/bin/crun --root /run/crun --log /dev/null --cgroup-manager=cgroupfs features":                                                     crun.Features(),
		"/usr/sbin/runc --log /dev/null checkpoint --image-path /i --work-path /w --leave-running --file-locks --manage-cgroups-mode ignore c1": bare.Checkpoint("c1", CheckpointArgs{Images: "/i", Work: "/w"}),
		"/usr/sbin/runc --log /dev/null restore --detach --bundle /b --pid-file /p --image-path /i --work-path /w --file-locks --manage-cgroups-mode ignore --console-socket /s --tcp-established c1": bare.Restore("c1", RestoreArgs{CreateArgs: CreateArgs{Bundle: "/b", PIDFile: "/p", ConsoleSocket: "/s"}, Images: "/i", Work: "/w", TCPEstablished: true}),
	} {
		if g := strings.Join(got, " "); g != want {
			t.Errorf("got  %s\nwant %s", g, want)
		}
	}
}

// TestArgsAreNotShared guards against append into a shared backing array.
func TestArgsAreNotShared(t *testing.T) {
	t.Parallel()
	h := Handler{Path: "/r", Args: make([]string, 0, 16)}
	a, b := h.Start("one"), h.Start("two")
	if a[len(a)-1] != "one" || b[len(b)-1] != "two" {
		t.Fatalf("%v %v", a, b)
	}
}
