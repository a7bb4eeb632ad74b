// Package critest runs the Kubernetes CRI validation suite against the built
// binaries and compares its outcome with two lists: expected-pass.txt, specs
// that must pass, and not-yet.txt, specs that do not yet, each with its reason.
package critest

import (
	"bufio"
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/test/harness"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		if err := harness.Isolate(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// focusVar narrows a run to the specs that it matches; the others are not missed.
const focusVar = "CRITEST_FOCUS"

type report struct {
	Suites []struct {
		Cases []testcase `xml:"testcase"`
	} `xml:"testsuite"`
}

type testcase struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"`
	Time    float64 `xml:"time,attr"`
	Failure *struct {
		Message string `xml:"message,attr"`
	} `xml:"failure"`
}

// spec is the name without ginkgo's kind and labels.
func (c testcase) spec() string {
	n := strings.TrimPrefix(c.Name, "[It] ")
	if i := strings.LastIndex(n, " ["); i > 0 && strings.HasSuffix(n, "]") && !strings.HasSuffix(n, "[Conformance]") {
		n = n[:i]
	}
	return n
}

func TestCritest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cache, err := harness.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "bin", "critest")
	if _, err := os.Stat(bin); err != nil {
		t.Skip("needs critest (hack/tools critest)")
	}
	limit := 18 * time.Minute
	if end, ok := t.Deadline(); ok {
		limit = time.Until(end) - time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	e, err := harness.New(ctx, harness.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(cache, "results")
	if r := os.Getenv("RESULTS"); r != "" {
		out = r
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	xmlFile := filepath.Join(out, "critest.xml")
	os.Remove(xmlFile)
	logFile, err := os.Create(filepath.Join(out, "critest.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()
	// Its status is not asked for: the lists say what must pass.
	c := exec.CommandContext(ctx, bin, "-runtime-endpoint", "unix://"+e.Socket,
		"-image-endpoint", "unix://"+e.Socket, "-ginkgo.junit-report="+xmlFile, "-ginkgo.v", "-ginkgo.timeout="+(limit-time.Minute).String())
	if f := os.Getenv(focusVar); f != "" {
		c.Args = append(c.Args, "-ginkgo.focus="+f)
	}
	c.Stdout, c.Stderr = logFile, logFile
	runErr := c.Run()
	if b, err := os.ReadFile(e.LogFile()); err == nil {
		_ = os.WriteFile(filepath.Join(out, "critest-ocid.log"), b, 0o644)
	}
	b, err := os.ReadFile(xmlFile)
	if err != nil {
		text, _ := os.ReadFile(logFile.Name())
		t.Fatalf("critest wrote no report: %v\n%s", runErr, tail(string(text), 4000))
	}
	var r report
	if err := xml.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	compare(t, r)
}

func compare(t *testing.T, r report) {
	must := list(t, "expected-pass.txt")
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && on[0] == 'Y' {
		maps.Copy(must, list(t, "expected-pass-apparmor.txt"))
	}
	notYet := list(t, "not-yet.txt")
	seen := map[string]bool{}
	passed, failed := 0, 0
	for _, s := range r.Suites {
		for _, c := range s.Cases {
			if !strings.HasPrefix(c.Name, "[It] ") {
				continue
			}
			name := c.spec()
			_, expected := must[name]
			reason, known := notYet[name]
			if c.Status == "passed" {
				passed++
			} else if c.Failure != nil {
				failed++
			}
			seen[name] = true
			t.Run(strings.ReplaceAll(name, "/", "|"), func(t *testing.T) {
				switch {
				case os.Getenv(focusVar) != "" && c.Status == "skipped":
					t.Skip("not in focus")
				case c.Status == "skipped" || c.Status == "pending":
					if expected {
						t.Error("must pass, but was skipped")
					}
					t.Skip("the suite skips it on this machine")
				case c.Status == "passed" && !expected:
					t.Logf("NEWLY PASSES: move it to expected-pass.txt")
				case c.Status != "passed" && known:
					t.Skip("not yet: " + reason)
				case c.Status != "passed":
					msg := c.Status
					if c.Failure != nil {
						msg = c.Failure.Message
					}
					t.Errorf("%s", tail(msg, 2000))
				}
			})
		}
	}
	for _, name := range keys(must) {
		if !seen[name] {
			t.Errorf("must pass, but did not run: %s", name)
		}
	}
	t.Logf("critest: %d passed, %d failed", passed, failed)
}

// list reads "spec" or "spec # reason" lines.
func list(t *testing.T, file string) map[string]string {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		l := strings.TrimSpace(s.Text())
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		name, reason, _ := strings.Cut(l, " # ")
		out[strings.TrimSpace(name)] = strings.TrimSpace(reason)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func keys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
