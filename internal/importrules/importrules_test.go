package importrules

import (
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"
)

const module = "github.com/ocid-io/ocid"

// rule: packages under any of from reach no package under any of forbidden.
type rule struct {
	name      string
	from      []string
	except    []string // packages that the rule does not bind
	forbidden []string
	allowed   []string // taken out of forbidden
}

var rules = []rule{
	{name: "pull is alone", from: []string{"pull"}, forbidden: []string{"store", "runtime", "server", "cmd", "publish"}},
	{name: "store is alone", from: []string{"store"}, forbidden: []string{"pull", "runtime", "server", "cmd", "publish"}},
	{name: "runtime is alone", from: []string{"runtime"}, forbidden: []string{"pull", "store", "server", "cmd", "publish"}},
	{
		name: "server knows contracts, no backend", from: []string{"server"},
		forbidden: []string{"store/", "runtime/", "cmd", "publish"},
	},
	{
		name: "a library does not know the command line", from: []string{"pull", "store", "runtime", "server", "internal"},
		forbidden: []string{"cmd", "test", "bench"},
	},
}

func TestLayers(t *testing.T) {
	graph := load(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for path := range graph {
				if !underAny(path, r.from) || underAny(path, r.except) {
					continue
				}
				reach(graph, path, func(dep string, chain []string) {
					if strings.HasPrefix(dep, module+"/") && underAny(dep, r.forbidden) && !underAny(dep, r.allowed) && !underAny(dep, selfOf(path, r.from)) {
						t.Errorf("%s reaches %s:\n  %s", path, dep, strings.Join(chain, "\n  "))
					}
				})
			}
		})
	}
}

// TestBackends: a store backend imports of this module store and internal only.
func TestBackends(t *testing.T) {
	graph := load(t)
	for path, deps := range graph {
		if !strings.HasPrefix(path, module+"/store/") {
			continue
		}
		for _, d := range deps {
			if strings.HasPrefix(d, module) && d != module+"/store" && !under(d, "internal") && !strings.HasPrefix(d, module+"/store/") {
				t.Errorf("%s imports %s", path, d)
			}
		}
	}
}

// TestHeavyLibraries: some libraries belong to one program each.
func TestHeavyLibraries(t *testing.T) {
	owners := map[string][]string{
		"github.com/opencontainers/runc/libcontainer": {"cmd/ocid-runtime"},
		"github.com/ostreedev/ostree-go":              {"cmd/ocid-ostree"},
		"github.com/godbus/dbus/v5":                   {"systemcontainers", "cmd/ocid-runtime"},
	}
	graph := load(t)
	for path, deps := range graph {
		if !strings.HasPrefix(path, module+"/") || under(path, "internal/deps") {
			continue
		}
		for _, d := range deps {
			for lib, who := range owners {
				if (d == lib || strings.HasPrefix(d, lib+"/")) && !underAny(path, who) {
					t.Errorf("%s imports %s, which belongs to %v", path, d, who)
				}
			}
		}
	}
}

// TestCRITypes: only server and what tests it know the CRI's types.
func TestCRITypes(t *testing.T) {
	for path, deps := range load(t) {
		if !strings.HasPrefix(path, module+"/") || underAny(path, []string{"server", "cmd/ocid", "test", "bench", "internal/deps"}) {
			continue
		}
		for _, d := range deps {
			if strings.HasPrefix(d, "k8s.io/cri-api/") {
				t.Errorf("%s imports %s: CRI types stop at server", path, d)
			}
		}
	}
}

// TestInternal: internal packages import the standard library, golang.org/x and each other.
func TestInternal(t *testing.T) {
	for path, deps := range load(t) {
		if !under(path, "internal") || under(path, "internal/deps") {
			continue
		}
		for _, d := range deps {
			first, _, _ := strings.Cut(d, "/")
			std := !strings.Contains(first, ".")
			if !std && !strings.HasPrefix(d, "golang.org/x/") && !strings.HasPrefix(d, module+"/internal/") {
				t.Errorf("%s imports %s", path, d)
			}
		}
	}
}

// load returns the imports of every package of the module that is not a test.
func load(t *testing.T) map[string][]string {
	t.Helper()
	cfg := &packages.Config{Mode: packages.NeedName | packages.NeedImports | packages.NeedDeps, Dir: "../.."}
	roots, err := packages.Load(cfg, "./...")
	if err != nil {
		t.Fatal(err)
	}
	graph := map[string][]string{}
	packages.Visit(roots, nil, func(p *packages.Package) {
		for path := range p.Imports {
			graph[p.PkgPath] = append(graph[p.PkgPath], path)
		}
	})
	if len(graph) < 10 {
		t.Fatalf("only %d packages were found", len(graph))
	}
	return graph
}

// reach calls visit for everything that path imports, at any distance, with the way to it.
func reach(graph map[string][]string, path string, visit func(dep string, chain []string)) {
	seen := map[string]bool{path: true}
	var walk func(at string, chain []string)
	walk = func(at string, chain []string) {
		for _, d := range graph[at] {
			if seen[d] || !strings.HasPrefix(d, module+"/") {
				continue
			}
			seen[d] = true
			next := append(append([]string(nil), chain...), d)
			visit(d, next)
			walk(d, next)
		}
	}
	walk(path, []string{path})
}

// selfOf is the layer that a package itself belongs to.
func selfOf(path string, layers []string) []string {
	for _, l := range layers {
		if under(path, l) {
			return []string{l}
		}
	}
	return nil
}

func underAny(path string, dirs []string) bool {
	for _, d := range dirs {
		if under(path, d) {
			return true
		}
	}
	return false
}

// under: path is dir or below it; a dir that ends in a slash means below only.
func under(path, dir string) bool {
	rel, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return false
	}
	if strings.HasSuffix(dir, "/") {
		return strings.HasPrefix(rel, dir)
	}
	return rel == dir || strings.HasPrefix(rel, dir+"/")
}
