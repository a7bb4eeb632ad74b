// Command testlog reads the output of `go test -json`. Without a flag it prints
// one line per package; with -failures also all that failed tests printed; with
// -summary it lists skipped and failed tests over all files and closes with the
// line "N passed, N failed, N skipped".
//
// A test with subtests counts through them: only leaves are counted. A package
// that failed outside its tests, such as by not compiling, counts as one failure.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type results struct {
	outcome map[string]string // "package test" -> pass, fail, skip
	output  map[string]*strings.Builder
	parents map[string]bool
	pkgs    map[string]event
}

func main() {
	failures := flag.Bool("failures", false, "print the output of failed tests")
	summary := flag.Bool("summary", false, "print skipped and failed tests and the sum")
	broken := flag.Bool("broken", false, "a step outside the tests failed: never end with success")
	flag.Parse()
	r := &results{outcome: map[string]string{}, output: map[string]*strings.Builder{}, parents: map[string]bool{}, pkgs: map[string]event{}}
	for _, f := range flag.Args() {
		if err := r.read(f); err != nil {
			fmt.Fprintln(os.Stderr, "testlog:", err)
			os.Exit(1)
		}
	}
	if *summary {
		os.Exit(r.summary(*broken))
	}
	r.report(*failures)
}

func (r *results) read(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			fmt.Println(s.Text()) // what go itself printed
			continue
		}
		r.add(e)
	}
	return s.Err()
}

func (r *results) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.pkgs[e.Package] = e
			return
		}
		r.outcome[key] = e.Action
		for t := e.Test; strings.Contains(t, "/"); {
			t = t[:strings.LastIndex(t, "/")]
			r.parents[e.Package+" "+t] = true
		}
	}
}

func (r *results) report(failures bool) {
	for _, p := range sorted(r.pkgs) {
		if e := r.pkgs[p]; e.Action != "skip" {
			fmt.Printf("%-5s %6.1fs %s\n", e.Action, e.Elapsed, p)
		}
	}
	if !failures {
		return
	}
	for _, key := range sorted(r.output) {
		pkg, test, _ := strings.Cut(key, " ")
		if r.outcome[key] == "fail" || test == "" && (r.pkgs[pkg].Action == "fail" || r.pkgs[pkg].Action == "") {
			fmt.Printf("--- %s\n%s", key, r.output[key])
		}
	}
}

func (r *results) summary(broken bool) int {
	var passed, failed, skipped []string
	failedIn := map[string]bool{}
	for _, key := range sorted(r.outcome) {
		pkg, _, _ := strings.Cut(key, " ")
		switch o := r.outcome[key]; {
		case o == "fail":
			failedIn[pkg] = true
			if !r.parents[key] {
				failed = append(failed, key)
			}
		case r.parents[key]:
		case o == "pass":
			passed = append(passed, key)
		case o == "skip":
			skipped = append(skipped, key)
		}
	}
	for _, p := range sorted(r.pkgs) {
		if r.pkgs[p].Action == "fail" && !failedIn[p] {
			failed = append(failed, p+" (the package)")
		}
	}
	for _, pkg := range sorted(failedIn) {
		if !anyWith(failed, pkg+" ") {
			failed = append(failed, pkg+" (a test outside its subtests)")
		}
	}
	for _, s := range skipped {
		fmt.Printf("SKIPPED %s: %s\n", s, reason(r.output[s]))
	}
	for _, f := range failed {
		fmt.Println("FAILED", f)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", len(passed), len(failed), len(skipped))
	if len(failed) > 0 || broken || len(passed) == 0 {
		return 1
	}
	return 0
}

func anyWith(list []string, prefix string) bool {
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

// reason is what the test said when it skipped itself.
func reason(b *strings.Builder) string {
	if b == nil {
		return "no reason given"
	}
	for l := range strings.Lines(b.String()) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
