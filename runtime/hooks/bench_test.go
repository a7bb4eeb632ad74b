package hooks

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// BenchmarkNoHooks is what a container costs on a machine without hooks.
func BenchmarkNoHooks(b *testing.B) {
	h := New([]string{"/no/such/a", "/no/such/b"}, nil)
	s, c := &specs.Spec{}, &runtime.Container{}
	for b.Loop() {
		if err := h.AdjustSpec(b.Context(), runtime.Pod{}, c, s); err != nil {
			b.Fatal(err)
		}
	}
}
