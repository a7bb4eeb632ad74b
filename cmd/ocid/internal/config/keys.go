package config

import (
	"bytes"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"github.com/BurntSushi/toml"
)

// Key documents one configuration key.
type Key struct {
	Name    string // dotted; NAME stands for a name that the user chooses
	Doc     string
	Default any
	Reload  bool // a running daemon takes it over at SIGHUP
}

// Keys lists every key in the order of the struct.
func Keys() []Key {
	return keys("", reflect.ValueOf(Default()), false, documented)
}

// effective lists the keys of a configuration, with the names in its tables
// and the values instead of the defaults.
func effective(c Config) []Key {
	return keys("", reflect.ValueOf(c), false, present)
}

// documented stands for all entries that a table of names may have.
func documented(table reflect.Value) map[string]reflect.Value {
	return map[string]reflect.Value{"NAME": reflect.Zero(table.Type().Elem())}
}

func present(table reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	for _, k := range table.MapKeys() {
		out[k.String()] = table.MapIndex(k)
	}
	return out
}

func keys(prefix string, v reflect.Value, reload bool, entries func(reflect.Value) map[string]reflect.Value) []Key {
	var out []Key
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := prefix + f.Tag.Get("toml")
		reload := reload || f.Tag.Get("reload") != ""
		switch {
		case f.Type.Kind() == reflect.Struct:
			out = append(out, keys(name+".", v.Field(i), reload, entries)...)
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			named := entries(v.Field(i))
			for _, n := range sorted(named) {
				out = append(out, keys(name+"."+n+".", named[n], reload, entries)...)
			}
		default:
			out = append(out, Key{Name: name, Doc: f.Tag.Get("doc"), Default: v.Field(i).Interface(), Reload: reload})
		}
	}
	return out
}

func sorted(m map[string]reflect.Value) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Sample renders the default configuration file, every key commented out.
func Sample() string {
	var b strings.Builder
	b.WriteString("# ocid's configuration. Every key is shown with its default.\n")
	section := ""
	for _, k := range Keys() {
		sec, name := "", k.Name
		if i := strings.LastIndexByte(k.Name, '.'); i >= 0 {
			sec, name = k.Name[:i], k.Name[i+1:]
		}
		if sec != section {
			section = sec
			head := "[" + sec + "]"
			if strings.Contains(sec, "NAME") {
				head = "# " + head
			}
			fmt.Fprintf(&b, "\n%s\n", head)
		}
		fmt.Fprintf(&b, "# %s\n# %s = %s\n", k.Doc, name, value(k.Default))
	}
	return b.String()
}

// Reference renders the keys' documentation as Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration reference

Made from the code by ` + "`make docs`" + `; do not edit.

The file is ` + "`" + DefaultFile + "`" + ` or what ` + "`--config`" + ` names, and optional. The files
` + "`FILE.d/*.toml`" + ` are read after it in lexical order and override it key by key; flags
override them. ` + "`ocid config show`" + ` prints the values in force and where each came from,
` + "`ocid config check FILE`" + ` tells what is wrong with a file. Keys marked *reload* are taken
over at SIGHUP (` + "`systemctl reload ocid`" + `), the others at a restart, which stops no pod.
What the keys of images point to, certificates and CNI configurations are read anew whenever
they are used or have changed, with no signal.

| key | default | what |
|---|---|---|
`)
	for _, k := range Keys() {
		note := ""
		if k.Reload {
			note = " *reload*"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s%s |\n", k.Name, value(k.Default), strings.ReplaceAll(k.Doc, "|", "\\|"), note)
	}
	return b.String()
}

func value(v any) string {
	var b bytes.Buffer
	if reflect.ValueOf(v).Kind() == reflect.Slice && reflect.ValueOf(v).IsNil() {
		return "[]"
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Map {
		var parts []string
		for _, k := range rv.MapKeys() {
			parts = append(parts, fmt.Sprintf("%q = %s", k.String(), value(rv.MapIndex(k).Interface())))
		}
		sort.Strings(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	if err := toml.NewEncoder(&b).Encode(map[string]any{"v": v}); err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(v))
	}
	return strings.TrimSpace(strings.TrimPrefix(b.String(), "v = "))
}
