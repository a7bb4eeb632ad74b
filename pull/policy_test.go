package pull

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.podman.io/image/v5/types"
)

// A machine without a policy.json accepts images; one whose file is damaged,
// or whose configured file is missing, does not.
func TestPolicyFile(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	root := t.TempDir()
	p := New(Options{})
	if c, err := p.policy(&types.SystemContext{RootForImplicitAbsolutePaths: root}, ""); err != nil {
		t.Errorf("without a policy: %v", err)
	} else {
		_ = c.Destroy()
	}
	missing := filepath.Join(root, "missing.json")
	if _, err := New(Options{PolicyFile: missing}).policy(&types.SystemContext{SignaturePolicyPath: missing}, ""); err == nil {
		t.Error("a configured policy that is missing was taken for one that accepts all")
	}
	dir := filepath.Join(root, "etc", "containers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.policy(&types.SystemContext{RootForImplicitAbsolutePaths: root}, ""); err == nil {
		t.Error("a damaged policy was taken for one that accepts all")
	}
}

// A namespace's own policy counts, and never falls open.
func TestNamespacePolicy(t *testing.T) {
	dir := t.TempDir()
	p := New(Options{PolicyDir: dir})
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("strict.json", `{"default":[{"type":"reject"}]}`)
	write("open.json", `{"default":[{"type":"insecureAcceptAnything"}]}`)
	write("damaged.json", `{"default":[{"type":"insecureAccept`)
	write("empty.json", "")
	write("unknown.json", `{"default":[{"type":"maybe"}]}`)
	write("nodefault.json", `{}`)
	write("huge.json", `{"default":[{"type":"insecureAcceptAnything"}]}`+strings.Repeat(" ", maxPolicy))
	if err := os.Mkdir(filepath.Join(dir, "folder.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling.json")); err != nil {
		t.Fatal(err)
	}
	for ns, want := range map[string]bool{"strict": true, "open": true, "other": false, "": false} {
		if got, err := p.NamespacePolicy(ns); err != nil || (got != nil) != want {
			t.Errorf("%q: %v, %v", ns, got, err)
		}
	}
	for _, ns := range []string{"damaged", "empty", "unknown", "nodefault", "huge", "folder", "dangling"} {
		if got, err := p.NamespacePolicy(ns); !errors.Is(err, ErrDenied) || got != nil {
			t.Errorf("%s: %v, %v; want ErrDenied", ns, got, err)
		}
	}
	for _, ns := range []string{"../open", "a/b", ".", "..", ".open", "a\x00b", strings.Repeat("a", 300)} {
		if got, err := p.NamespacePolicy(ns); !errors.Is(err, ErrInvalid) || got != nil {
			t.Errorf("%q: %v, %v; want ErrInvalid", ns, got, err)
		}
	}
	gone := New(Options{PolicyDir: filepath.Join(dir, "gone")})
	if got, err := gone.NamespacePolicy("open"); !errors.Is(err, ErrDenied) {
		t.Errorf("the directory is missing: %v, %v; want ErrDenied", got, err)
	}
}
