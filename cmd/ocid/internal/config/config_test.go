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
	if err := c.Complete(); err != nil {
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
		"unknown key":   {"[network]\nconf_dirr = '/x'\n", `did you mean "network.conf_dir"?`},
		"bad duration":  {"[network]\ntimeout = '-1s'\n", "above zero"},
		"bad type":      {"root = 7\n", "incompatible types"},
		"handler path":  {"[runtime.handlers.x]\n", "needs a path"},
		"relative path": {"[runtime.handlers.x]\npath = 'runc'\n", "must be absolute"},
		"no default":    {"[runtime]\ndefault_handler = 'y'\n", `"y"`},
		"same roots":    {"root = '/a'\nrun_root = '/a'\n", "must differ"},
		"relative root": {"root = 'a'\n", "absolute"},
		"tcp":           {"[server]\nlisten = 'tcp://0.0.0.0:1'\n", "unix:///PATH"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Load(write(t, tc.text), true)
			if err == nil {
				err = c.Complete()
			}
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
