package runtimesvc

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/ocid-io/ocid/runtime"
)

// Bounds on what a client may send. They are far above what Kubernetes lets
// through, and low enough that no record grows without limit.
const (
	maxName     = 253
	maxPath     = 4095
	maxEntries  = 16 << 10
	maxMapBytes = 1 << 20
	maxProblems = 8
	maxID       = 1<<32 - 2 // (uid_t)-1 means "no change" to the kernel
)

// check collects what is wrong with a request, so that one answer names it all.
type check struct{ problems []string }

func (c *check) fail(field, format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, field+": "+fmt.Sprintf(format, args...))
	}
}

// err returns all problems as one error that wraps runtime.ErrInvalid.
func (c *check) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", runtime.ErrInvalid, strings.Join(c.problems, "; "))
}

// name checks a string that becomes part of an identity.
func (c *check) name(field, s string, required bool) string {
	switch {
	case s == "":
		if required {
			c.fail(field, "must not be empty")
		}
	case len(s) > maxName:
		c.fail(field, "is longer than %d bytes", maxName)
	case s == "." || s == ".." || strings.Contains(s, "/") || hasControl(s):
		c.fail(field, "%q must not hold slashes or control characters, or be a dot or two", s)
	}
	return s
}

// text checks a string that may hold anything but NUL.
func (c *check) text(field, s string) string {
	if strings.IndexByte(s, 0) >= 0 {
		c.fail(field, "holds a NUL byte")
	}
	return s
}

// word checks a string that is to stand between blanks in a file or a list.
func (c *check) word(field, s string) string {
	if s == "" || len(s) > maxName || hasControl(s) || strings.ContainsAny(s, " \t") {
		c.fail(field, "%q must be 1 to %d bytes without blanks or control characters", s, maxName)
	}
	return s
}

// abs checks an absolute path and returns it cleaned.
func (c *check) abs(field, s string) string {
	switch {
	case !filepath.IsAbs(s):
		c.fail(field, "%q must be an absolute path", s)
	case len(s) > maxPath:
		c.fail(field, "is longer than %d bytes", maxPath)
	case strings.IndexByte(s, 0) >= 0:
		c.fail(field, "holds a NUL byte")
	default:
		return filepath.Clean(s)
	}
	return s
}

// count checks the length of a list; a list that is too long is not looked at further.
func (c *check) count(field string, n, limit int) bool {
	if n > limit {
		c.fail(field, "has %d entries, more than %d", n, limit)
	}
	return n <= limit
}

func (c *check) texts(field string, list []string) []string {
	if !c.count(field, len(list), maxEntries) {
		return nil
	}
	for i, s := range list {
		c.text(index(field, i), s)
	}
	return list
}

func (c *check) paths(field string, list []string) []string {
	if !c.count(field, len(list), maxEntries) {
		return nil
	}
	var out []string
	for i, s := range list {
		out = append(out, c.abs(index(field, i), s))
	}
	return out
}

// stringMap checks labels and the like.
func (c *check) stringMap(field string, m map[string]string) map[string]string {
	if !c.count(field, len(m), maxEntries) {
		return nil
	}
	size := 0
	for k, v := range m {
		size += len(k) + len(v)
		if k == "" {
			c.fail(field, "has an empty key")
		}
		if strings.IndexByte(k, 0) >= 0 || strings.IndexByte(v, 0) >= 0 {
			c.fail(field, "%q holds a NUL byte", k)
		}
	}
	if size > maxMapBytes {
		c.fail(field, "takes %d bytes, more than %d", size, maxMapBytes)
	}
	return m
}

func (c *check) between(field string, n, low, high int64) {
	if n < low || n > high {
		c.fail(field, "%d must be between %d and %d", n, low, high)
	}
}

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// isID reports whether s can be an id or the beginning of one.
func isID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}
