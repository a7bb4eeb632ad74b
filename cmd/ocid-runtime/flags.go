package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// flagSet maps the name of a flag to whether it takes a value.
type flagSet map[string]bool

// options are parsed flags and what stood behind them.
type options struct {
	vals map[string]string
	args []string
}

// parse reads flags up to the first word that is none. "--" ends them.
func parse(fs flagSet, args []string) (*options, []string, error) {
	o := &options{vals: map[string]string{}}
	for len(args) > 0 {
		a := args[0]
		if a == "--" {
			return o, args[1:], nil
		}
		if len(a) < 2 || a[0] != '-' {
			return o, args, nil
		}
		args = args[1:]
		name, val, inline := strings.Cut(strings.TrimLeft(a, "-"), "=")
		takes, ok := fs[name]
		switch {
		case !ok:
			return nil, nil, fmt.Errorf("unknown flag %s", a)
		case !takes && !inline:
			val = "true"
		case takes && !inline:
			if len(args) == 0 {
				return nil, nil, fmt.Errorf("flag %s needs a value", a)
			}
			val, args = args[0], args[1:]
		}
		o.vals[name] = val
	}
	return o, nil, nil
}

// get returns the first of the names that was given.
func (o *options) get(names ...string) string {
	for _, n := range names {
		if v, ok := o.vals[n]; ok {
			return v
		}
	}
	return ""
}

func (o *options) on(names ...string) bool {
	v, err := strconv.ParseBool(o.get(names...))
	return err == nil && v
}

func (o *options) num(name string) (int, error) {
	v := o.get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--%s: not a number: %q", name, v)
	}
	return n, nil
}

// id returns the container id, the first word behind the flags.
func (o *options) id() (string, error) {
	if len(o.args) == 0 || o.args[0] == "" {
		return "", fmt.Errorf("a container id is missing")
	}
	return o.args[0], nil
}

func root(g *options) string {
	if r := g.get("root"); r != "" {
		return r
	}
	return "/run/ocid-runtime"
}

// filters is where compiled seccomp filters are kept: beside the state
// directory, whose every entry is a container.
func filters(g *options) string { return filepath.Clean(root(g)) + ".seccomp" }
