package main

import (
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	fs := flagSet{"bundle": true, "b": true, "force": false}
	for _, c := range []struct {
		in   []string
		vals map[string]string
		rest []string
		bad  bool
	}{
		{in: []string{"--bundle", "/b", "id"}, vals: map[string]string{"bundle": "/b"}, rest: []string{"id"}},
		{in: []string{"-b=/b", "--force", "id", "--bundle"}, vals: map[string]string{"b": "/b", "force": "true"}, rest: []string{"id", "--bundle"}},
		{in: []string{"--", "--force"}, vals: map[string]string{}, rest: []string{"--force"}},
		{in: []string{"--force=false"}, vals: map[string]string{"force": "false"}},
		{in: []string{"--bundle"}, bad: true},
		{in: []string{"--nonsense"}, bad: true},
	} {
		o, rest, err := parse(fs, c.in)
		if (err != nil) != c.bad {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if err == nil && (!reflect.DeepEqual(o.vals, c.vals) || len(rest) != len(c.rest) || len(rest) > 0 && !reflect.DeepEqual(rest, c.rest)) {
			t.Errorf("%q: %v %q", c.in, o.vals, rest)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{"9": 9, "TERM": 15, "sighup": 1, "0": 0} {
		if got, err := parseSignal(in); err != nil || int(got) != want {
			t.Errorf("%s: %d %v", in, got, err)
		}
	}
	for _, in := range []string{"", "-1", "65", "NOPE"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}
