package daemon

import "testing"

func TestMatchName(t *testing.T) {
	const name = "registry.k8s.io/pause:3.10"
	for pattern, want := range map[string]bool{
		name: true, "registry.k8s.io/pause:3.1": false, "registry.k8s.io/pause*": true, "*/pause:3.10": true,
		"*pause*": true, "pause*": false, "*pause": false, "*": true, "**": true, "x*": false,
	} {
		if got := matchName(pattern, name); got != want {
			t.Errorf("%q: %t, want %t", pattern, got, want)
		}
	}
}
