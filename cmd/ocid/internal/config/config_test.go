package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
)

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "ocid.toml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLoadKeepsDefaultsAndReadsKeys(t *testing.T) {
	c, err := Load(write(t, "root = '/x'\n[network]\ntimeout = '7s'\n[runtime.handlers.runc]\npath = '/usr/sbin/runc'\n"), true)
	if err != nil {
		t.Fatal(err)
	}
	if c.Root != "/x" || time.Duration(c.Network.Timeout) != 7*time.Second {
		t.Errorf("got %+v", c)
	}
	if c.Server.Listen != "unix:///run/ocid/ocid.sock" || c.Network.CacheDir != "/x/cni" {
		t.Errorf("paths that follow from others: %q %q", c.Server.Listen, c.Network.CacheDir)
	}
	if got := strings.Join(c.HandlerNames(), " "); got != "ocid runc" {
		t.Errorf("handlers %q: the embedded one must not vanish beside another", got)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"cgroup driver":  {"[runtime]\ncgroup_driver = 'v2'\n", "cgroupfs or systemd"},
		"no slice":       {"[runtime]\ncgroup_driver = 'systemd'\ncgroup_parent = '/x'\n", "NAME.slice"},
		"climbing":       {"[runtime]\ncgroup_parent = 'x/y'\n", "absolute path or NAME.slice"},
		"monitor cgroup": {"[runtime]\nmonitor_cgroup = '/x'\n", "pod or NAME.slice"},
		"monitor scope":  {"[runtime]\nmonitor_cgroup = 'pod'\ncgroup_driver = 'cgroupfs'\n", "needs the systemd cgroup driver"},
		"unknown key":    {"[network]\nconf_dirr = '/x'\n", `did you mean "network.conf_dir"?`},
		"bad duration":   {"[network]\ntimeout = '-1s'\n", "above zero"},
		"bad type":       {"root = 7\n", "incompatible types"},
		"handler path":   {"[runtime.handlers.x]\n", "needs a path"},
		"relative path":  {"[runtime.handlers.x]\npath = 'runc'\n", "must be absolute"},
		"no default":     {"[runtime]\ndefault_handler = 'y'\n", `"y"`},
		"same roots":     {"root = '/a'\nrun_root = '/a'\n", "must differ"},
		"relative root":  {"root = 'a'\n", "absolute"},
		"misplaced":      {"conf_dir = '/x'\n", `ocid.toml: line 1: unknown key "conf_dir" (did you mean "network.conf_dir"?)`},
		"handler key":    {"[runtime.handlers.runc]\nrot = '/x'\n", `did you mean "runtime.handlers.runc.root"?`},
		"log level":      {"log_level = 'loud'\n", "ocid.toml:1: log_level must be"},
		"metrics":        {"[metrics]\n\nlisten = '9090'\n", "ocid.toml:3: metrics.listen must be HOST:PORT"},
		"endpoint":       {"[tracing]\nendpoint = 'localhost:4317'\n", "http://HOST:PORT"},
		"sampling":       {"[tracing]\nsampling = 1.5\n", "between 0 and 1"},
		"tcp":            {"[server]\nlisten = 'tcp://0.0.0.0:1'\n", "unix:///PATH"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, tc.text), true)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want it to contain %q", err, tc.want)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	f := filepath.Join(t.TempDir(), "none")
	if _, err := Load(f, false); err != nil {
		t.Errorf("an optional file may be missing: %v", err)
	}
	if _, err := Load(f, true); err == nil {
		t.Error("a named file must exist")
	}
}

func TestDropInsAndFlags(t *testing.T) {
	f := write(t, "log_level = 'warn'\n\n[runtime.handlers.runc]\npath = '/usr/sbin/runc'\n[network]\nconf_dir = '/one'\n")
	if err := os.Mkdir(f+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"20-b.toml":  "[network]\nconf_dir = '/three'\n",
		"10-a.toml":  "[network]\nconf_dir = '/two'\ntimeout = '3s'\n[runtime]\n[runtime.handlers.runc]\nargs = [\n  '--debug',\n]\n",
		"ignored":    "nonsense",
		".hid.toml":  "nonsense",
		"x.toml.old": "nonsense",
	} {
		if err := os.WriteFile(filepath.Join(f+".d", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Load(f, true, Flag{"run_root", "run-root", "/r"}, Flag{"root", "root", ""})
	if err != nil {
		t.Fatal(err)
	}
	if h := l.Runtime.Handlers["runc"]; h.Path != "/usr/sbin/runc" || len(h.Args) != 1 || l.Network.ConfDir != "/three" || l.RunRoot != "/r" {
		t.Errorf("got %+v", l.Config)
	}
	for key, want := range map[string]Source{
		"log_level":                  Source(f + ":1"),
		"network.conf_dir":           Source(f + ".d/20-b.toml:2"),
		"network.timeout":            Source(f + ".d/10-a.toml:3"),
		"runtime.handlers.runc.path": Source(f + ":4"),
		"runtime.handlers.runc.args": Source(f + ".d/10-a.toml:6"),
		"runtime.handlers.runc.root": SourceDefault,
		"run_root":                   "--run-root",
		"root":                       SourceDefault,
		"server.listen":              SourceDefault,
	} {
		if got := l.Source(key); got != want {
			t.Errorf("%s comes from %s, want %s", key, got, want)
		}
	}
	show := l.Show()
	for _, want := range []string{
		"conf_dir = \"/three\"  # " + f + ".d/20-b.toml:2\n", "run_root = \"/r\"  # --run-root\n",
		"[runtime.handlers.runc]\npath = \"/usr/sbin/runc\"  # " + f + ":4\n", "timeout = \"3s\"",
	} {
		if !strings.Contains(show, want) {
			t.Errorf("%q is not in\n%s", want, show)
		}
	}
	again, err := Load(write(t, show), true)
	if err != nil {
		t.Fatalf("what show prints is no configuration: %v\n%s", err, show)
	}
	if c := Changes(l.Config, again.Config); len(c) != 0 {
		t.Errorf("what show prints is another configuration: %+v", c)
	}
	if err := os.WriteFile(filepath.Join(f+".d", "30-c.toml"), []byte("rot = '/x'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(f, true); err == nil || !strings.Contains(err.Error(), "30-c.toml: line 1: unknown key") {
		t.Errorf("a bad drop-in gave %v", err)
	}
}

func TestChanges(t *testing.T) {
	before, after := Default(), Default()
	after.LogLevel, after.Root = "debug", "/elsewhere"
	after.Runtime.Handlers = map[string]Handler{EmbeddedHandler: {}, "crun": {Path: "/usr/bin/crun"}}
	got := map[string]bool{}
	for _, c := range Changes(before, after) {
		got[c.Key] = c.Reload
	}
	if reload, ok := got["root"]; !ok || reload {
		t.Error("a changed root was not found, or said to be reloadable")
	}
	for _, k := range []string{"log_level", "runtime.handlers.crun.path"} {
		if !got[k] {
			t.Errorf("%s is missing from, or not reloadable in, %v", k, got)
		}
	}
}

func TestLines(t *testing.T) {
	at := lines("a = 1\n# b = 2\nc = \"\"\"\nd = 3\n\"\"\"\n[ t . \"u\" ]\nb = 4\n[[l]]\nk=1\n")
	for key, want := range map[string]int{"a": 1, "c": 3, "t.u": 6, "t.u.b": 7, "l": 8, "l.k": 9} {
		if at[key] != want {
			t.Errorf("%s is on line %d, got %d", key, want, at[key])
		}
	}
	if at["d"] != 0 || at["b"] != 0 {
		t.Errorf("comments or strings were taken for keys: %v", at)
	}
	if lineOf(at, "t.u.x.y") != 6 {
		t.Errorf("a key in an inline table has the line of the table around it")
	}
}

func TestSampleIsTheDefault(t *testing.T) {
	var live strings.Builder
	for line := range strings.Lines(Sample()) {
		rest, ok := strings.CutPrefix(line, "# ")
		if ok && strings.Contains(rest, " = ") && !strings.Contains(rest, ". ") {
			live.WriteString(rest)
		} else if strings.HasPrefix(line, "[") {
			live.WriteString(line)
		}
		if strings.Contains(line, "NAME") {
			break
		}
	}
	var c Config
	if _, err := toml.Decode(live.String(), &c); err != nil {
		t.Fatalf("%v in\n%s", err, live.String())
	}
	if d := Default(); c.Root != d.Root || c.Runtime.DefaultHandler != d.Runtime.DefaultHandler {
		t.Errorf("sample decodes to %+v", c)
	}
	for _, k := range Keys() {
		if k.Doc == "" {
			t.Errorf("key %s has no documentation", k.Name)
		}
	}
}
