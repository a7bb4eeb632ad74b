package pull

import (
	"os"
	"path/filepath"
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
	if c, err := p.policy(&types.SystemContext{RootForImplicitAbsolutePaths: root}); err != nil {
		t.Errorf("without a policy: %v", err)
	} else {
		_ = c.Destroy()
	}
	missing := filepath.Join(root, "missing.json")
	if _, err := New(Options{PolicyFile: missing}).policy(&types.SystemContext{SignaturePolicyPath: missing}); err == nil {
		t.Error("a configured policy that is missing was taken for one that accepts all")
	}
	dir := filepath.Join(root, "etc", "containers")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "policy.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.policy(&types.SystemContext{RootForImplicitAbsolutePaths: root}); err == nil {
		t.Error("a damaged policy was taken for one that accepts all")
	}
}
