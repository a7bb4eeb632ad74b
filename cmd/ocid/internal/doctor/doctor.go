// Package doctor examines a machine for what ocid needs: for each thing that is
// missing it says what that costs and how to mend it.
//
// Invariants:
//   - nothing is changed: what has to be tried is tried in a mount namespace of
//     its own, in a directory that is removed;
//   - a check that cannot be made is a finding, not an end;
//   - "fail" means that no pod, or no pod of the kind named, can run; "warn"
//     that something which many want is missing.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
)

// Status of a check.
type Status string

// The statuses.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is the result of one check. Cost and Mend are empty when it is ok.
type Finding struct {
	Area   string `json:"area"`
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Cost   string `json:"cost,omitempty"`
	Mend   string `json:"mend,omitempty"`
}

// Machine is what is examined.
type Machine struct {
	Config config.Config
	BinDir string // where ocid's other binaries are
	Dir    string // "/", or a tree that stands in for /proc, /sys and /etc
}

// Examine makes all checks.
func Examine(ctx context.Context, m Machine) []Finding {
	e := &exam{Machine: m}
	for _, area := range []struct {
		name   string
		checks func(context.Context)
	}{
		{"kernel", e.kernel},
		{"cgroups", e.cgroups},
		{"permissions", e.permissions},
		{"security", e.security},
		{"mounts", e.mounts},
		{"disk", e.disk},
		{"sysctls", e.sysctls},
		{"users", e.users},
		{"handlers", e.handlers},
		{"network", e.network},
		{"images", e.images},
		{"time", e.time},
	} {
		e.area = area.name
		area.checks(ctx)
	}
	return e.found
}

// Failed tells whether anything keeps pods from running.
func Failed(fs []Finding) bool {
	for _, f := range fs {
		if f.Status == Fail {
			return true
		}
	}
	return false
}

// exam gathers findings.
type exam struct {
	Machine
	area  string
	found []Finding
}

func (e *exam) ok(check, format string, args ...any) {
	e.found = append(e.found, Finding{Area: e.area, Check: check, Status: OK, Found: fmt.Sprintf(format, args...)})
}

func (e *exam) bad(s Status, check, found, cost, mend string) {
	e.found = append(e.found, Finding{Area: e.area, Check: check, Status: s, Found: found, Cost: cost, Mend: mend})
}

// expect is ok when good, and otherwise bad.
func (e *exam) expect(good bool, s Status, check, found, cost, mend string) {
	if good {
		e.ok(check, "%s", found)
		return
	}
	e.bad(s, check, found, cost, mend)
}

func (e *exam) path(p string) string { return filepath.Join(e.Dir, p) }

// read returns a small file's trimmed text.
func (e *exam) read(p string) (string, error) {
	b, err := os.ReadFile(e.path(p))
	return strings.TrimSpace(string(b)), err
}

// existing is p or the nearest directory above it that exists.
func existing(p string) string {
	for {
		if _, err := os.Stat(p); err == nil || p == "/" || p == "." {
			return p
		}
		p = filepath.Dir(p)
	}
}
