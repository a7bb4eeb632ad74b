package apparmor

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ocid-io/ocid/runtime"
)

var update = flag.Bool("update", false, "write golden files")

func TestText(t *testing.T) {
	const golden = "testdata/profile.golden"
	got := Text("example")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("the profile is not that of %s (%v); run with -update if that is meant:\n%s", golden, err, got)
	}
}

// TestParses has the real parser compile the profile; no kernel support is needed.
func TestParses(t *testing.T) {
	parser, err := exec.LookPath("/usr/sbin/apparmor_parser")
	if err != nil {
		t.Skip("needs apparmor_parser (Debian's apparmor)")
	}
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--stdout")
	cmd.Stdin = strings.NewReader(Text(DefaultName))
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil || out.Len() == 0 {
		t.Errorf("%v: %s", err, &errOut)
	}
}

// kernel is a machine with a list of loaded profiles and a parser that adds to it.
func kernel(t *testing.T, parser string, loaded ...string) (Options, string) {
	t.Helper()
	dir := t.TempDir()
	list := filepath.Join(dir, "fs", "apparmor", "profiles")
	for _, d := range []string{filepath.Dir(list), filepath.Join(dir, "module", "parameters")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var lines strings.Builder
	for _, l := range loaded {
		fmt.Fprintf(&lines, "%s (enforce)\n", l)
	}
	script := filepath.Join(dir, "apparmor_parser")
	for p, text := range map[string]string{
		list: lines.String(), filepath.Join(dir, "module", "parameters", "enabled"): "Y\n",
		script: "#!/bin/sh\n" + strings.ReplaceAll(parser, "LIST", list) + "\n",
	} {
		if err := os.WriteFile(p, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return Options{SecurityFS: filepath.Join(dir, "fs"), Module: filepath.Join(dir, "module"), Parsers: []string{"/no/such/parser", script}}, list
}

const loads = `echo load >> LIST.calls; grep -q '^profile ocid-default ' && grep -q . /dev/null; echo 'ocid-default (enforce)' >> LIST`

func TestDefaultIsLoaded(t *testing.T) {
	o, list := kernel(t, loads, "other")
	a := New(o)
	for i := range 3 {
		if got, err := a.Profile(t.Context(), runtime.SeccompDefault, ""); err != nil || got != DefaultName {
			t.Fatalf("%d: %q %v", i, got, err)
		}
	}
	if got, err := a.Profile(t.Context(), "", ""); err != nil || got != DefaultName {
		t.Fatalf("no kind: %q %v", got, err)
	}
	if calls, _ := os.ReadFile(list + ".calls"); strings.Count(string(calls), "load") != 1 {
		t.Errorf("loaded %d times", strings.Count(string(calls), "load"))
	}
	// Unloaded by somebody: loaded again.
	if err := os.WriteFile(list, []byte("other (enforce)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Profile(t.Context(), runtime.SeccompDefault, ""); err != nil {
		t.Error(err)
	}
	if calls, _ := os.ReadFile(list + ".calls"); strings.Count(string(calls), "load") != 2 {
		t.Error("not loaded again")
	}
}

func TestKinds(t *testing.T) {
	o, _ := kernel(t, loads, "web", "a b (c)")
	a := New(o)
	for _, c := range []struct {
		kind       runtime.ProfileKind
		name, want string
		err        error
	}{
		{runtime.SeccompUnconfined, "", "", nil},
		{runtime.SeccompLocalhost, "web", "web", nil},
		{runtime.SeccompLocalhost, "a b (c)", "a b (c)", nil},
		{runtime.SeccompLocalhost, "we", "", runtime.ErrInvalid},
		{runtime.SeccompLocalhost, "missing", "", runtime.ErrInvalid},
		{runtime.SeccompLocalhost, "unconfined", "", runtime.ErrInvalid},
		{"nonsense", "", "", runtime.ErrInvalid},
	} {
		got, err := a.Profile(t.Context(), c.kind, c.name)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("%s %q: %q %v", c.kind, c.name, got, err)
		}
	}
}

func TestFailures(t *testing.T) {
	o, _ := kernel(t, "echo the reason >&2; exit 1")
	_, err := New(o).Profile(t.Context(), runtime.SeccompDefault, "")
	if !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("a parser that fails: %v", err)
	}
	o.Parsers = []string{"/no/such/parser"}
	if _, err := New(o).Profile(t.Context(), runtime.SeccompDefault, ""); !errors.Is(err, runtime.ErrUnavailable) || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("no parser: %v", err)
	}
	o.Default = "operators-own"
	if _, err := New(o).Profile(t.Context(), runtime.SeccompDefault, ""); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("a configured profile that is not loaded: %v", err)
	}
	o, _ = kernel(t, "false", DefaultName)
	o.Parsers = []string{"/no/such/parser"}
	if _, err := New(o).Profile(t.Context(), runtime.SeccompDefault, ""); err != nil {
		t.Errorf("loaded by somebody else: %v", err)
	}
	o.SecurityFS = "/no/such"
	if _, err := New(o).Profile(t.Context(), runtime.SeccompLocalhost, "x"); !errors.Is(err, runtime.ErrUnavailable) {
		t.Errorf("no securityfs: %v", err)
	}
	o.Module = "/no/such"
	if New(o) != nil {
		t.Error("a machine without AppArmor has one")
	}
}
