package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestSlim guards the memory of every pod: none of these may be linked.
func TestSlim(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, heavy := range []string{"fmt", "net", "net/http", "encoding/json", "log", "log/slog", "os/exec", "runtime/cgo"} {
		if slices.Contains(deps, heavy) {
			t.Errorf("ocid-monitor links %s", heavy)
		}
	}
}
