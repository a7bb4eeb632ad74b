package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOOMKills(t *testing.T) {
	for text, want := range map[string]uint64{
		"low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n": 1,
		"low 0\nhigh 0\nmax 31\noom 2\noom_kill 0\noom_group_kill 0\n": 0,
		"oom_kill_disable 0\nunder_oom 0\noom_kill 12\n":               12,
		"": 0,
	} {
		if got := oomKills(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestSeenAfterTheGroupIsGone: a file that cannot be read any more stands for a
// group that is gone.
func TestSeenAfterTheGroupIsGone(t *testing.T) {
	above := filepath.Join(t.TempDir(), "memory.events")
	count := func(text string) {
		if err := os.WriteFile(above, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &OOMWatch{file: gone, above: above}
	defer w.Close()
	count("oom_kill 3\n")
	w.look()
	if w.Seen(true) {
		t.Error("seen although nothing was killed since")
	}
	count("oom_kill 4\n")
	if w.Seen(false) {
		t.Error("seen although the process did not die by SIGKILL")
	}
	count("oom_kill 5\n")
	if !w.Seen(true) {
		t.Error("a kill since the last look was not seen")
	}
	var none *OOMWatch
	none.Close()
	if none.Seen(true) {
		t.Error("no watch has seen something")
	}
}
