package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// Source says where a value came from: "default", "FILE:LINE" or "--FLAG".
type Source string

// SourceDefault is the source of what nobody set.
const SourceDefault Source = "default"

// Flag is a command-line flag that sets a key.
type Flag struct{ Key, Name, Value string }

// Loaded is a configuration and where each of its values came from.
type Loaded struct {
	Config
	sources map[string]Source // by dotted key, for what was set
	files   []string
}

// Load reads file and its drop-ins over the defaults, lays the flags over them,
// completes and validates. A missing file is an error only when required.
// Unknown keys are refused with the known key nearest to each.
func Load(file string, required bool, flags ...Flag) (*Loaded, error) {
	l := &Loaded{sources: map[string]Source{}}
	all := map[string]any{}
	dropIns, err := DropIns(file)
	if err != nil {
		return nil, err
	}
	for i, f := range append([]string{file}, dropIns...) {
		part, err := l.read(f)
		if errors.Is(err, fs.ErrNotExist) && i == 0 && !required {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration %s: %w", f, err)
		}
		l.files = append(l.files, f)
		merge(all, part)
	}
	if err := l.fill(all); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	for _, f := range flags {
		if err := l.set(f); err != nil {
			return nil, err
		}
	}
	if err := l.Complete(); err != nil {
		return nil, l.blame(err)
	}
	return l, nil
}

// DropIns lists the drop-in files of a configuration file in the order in
// which they are read.
func DropIns(file string) ([]string, error) {
	entries, err := os.ReadDir(file + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration drop-ins: %w", err)
	}
	var out []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, ".toml") && !strings.HasPrefix(n, ".") {
			out = append(out, filepath.Join(file+".d", n))
		}
	}
	return out, nil // ReadDir sorts
}

// read checks one file alone and returns what it sets.
func (l *Loaded) read(file string) (map[string]any, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%d bytes, more than %d", len(b), maxFile)
	}
	var typed Config
	md, err := toml.Decode(string(b), &typed)
	if err != nil {
		return nil, err
	}
	at := lines(string(b))
	if unknown := md.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		return nil, fmt.Errorf("line %d: unknown key %q%s", lineOf(at, key), key, suggestion(key))
	}
	for _, k := range md.Keys() {
		l.sources[k.String()] = Source(fmt.Sprintf("%s:%d", file, lineOf(at, k.String())))
	}
	part := map[string]any{}
	_, err = toml.Decode(string(b), &part)
	return part, err
}

// merge lays part over all; tables are joined, everything else is replaced.
func merge(all, part map[string]any) {
	for k, v := range part {
		sub, isTable := v.(map[string]any)
		old, wasTable := all[k].(map[string]any)
		if isTable && wasTable {
			merge(old, sub)
			continue
		}
		all[k] = v
	}
}

func (l *Loaded) fill(all map[string]any) error {
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(all); err != nil {
		return err
	}
	l.Config = Default()
	if _, err := toml.Decode(b.String(), &l.Config); err != nil {
		return err
	}
	if _, ok := l.Runtime.Handlers[EmbeddedHandler]; !ok {
		l.Runtime.Handlers[EmbeddedHandler] = Handler{}
	}
	return nil
}

// set applies a flag.
func (l *Loaded) set(f Flag) error {
	if f.Value == "" {
		return nil
	}
	all := map[string]any{}
	at := all
	parts := strings.Split(f.Key, ".")
	for _, p := range parts[:len(parts)-1] {
		next := map[string]any{}
		at[p] = next
		at = next
	}
	at[parts[len(parts)-1]] = f.Value
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(all); err != nil {
		return err
	}
	if _, err := toml.Decode(b.String(), &l.Config); err != nil {
		return fmt.Errorf("--%s: %w", f.Name, err)
	}
	l.sources[f.Key] = Source("--" + f.Name)
	return nil
}

// blame adds to a validation error, which begins with the key, where that key
// was set.
func (l *Loaded) blame(err error) error {
	key, _, _ := strings.Cut(err.Error(), " ")
	if s, ok := l.sources[key]; ok {
		return fmt.Errorf("%s: %w", s, err)
	}
	return err
}

// Source says where a key's value came from.
func (l *Loaded) Source(key string) Source {
	for k := key; ; {
		if s, ok := l.sources[k]; ok && (k == key || !l.isTable(k)) {
			return s
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			return SourceDefault
		}
		k = k[:i]
	}
}

// isTable tells whether other keys that were set lie below key.
func (l *Loaded) isTable(key string) bool {
	for k := range l.sources {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

// Files lists the files that were read, in order.
func (l *Loaded) Files() []string { return l.files }

// lines finds the line of every table and key of a TOML text. It knows as much
// of TOML as that takes: what it cannot place has the line of the table around it.
func lines(text string) map[string]int {
	at := map[string]int{}
	table, fence, n := "", "", 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if fence != "" {
			if strings.Count(line, fence)%2 == 1 {
				fence = ""
			}
			continue
		}
		for _, f := range []string{`"""`, `'''`} {
			if strings.Count(line, f)%2 == 1 {
				fence = f
			}
		}
		if strings.HasPrefix(line, "[") {
			if name, _, ok := strings.Cut(strings.TrimLeft(line, "["), "]"); ok {
				if table = plain(name); at[table] == 0 {
					at[table] = n
				}
				continue
			}
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		key := plain(name)
		if table != "" {
			key = table + "." + key
		}
		if at[key] == 0 {
			at[key] = n
		}
	}
	return at
}

// plain takes blanks and quotes out of a dotted key.
func plain(key string) string {
	parts := strings.Split(key, ".")
	for i, p := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return strings.Join(parts, ".")
}

// lineOf is the line of a key or of the nearest table around it.
func lineOf(at map[string]int, key string) int {
	for k := plain(key); ; {
		if n, ok := at[k]; ok {
			return n
		}
		i := strings.LastIndexByte(k, '.')
		if i < 0 {
			return 1
		}
		k = k[:i]
	}
}

// suggestion names the known key that takes the fewest edits from key.
func suggestion(key string) string {
	name := ""
	parts := strings.Split(key, ".")
	if len(parts) == 4 && parts[0] == "runtime" && parts[1] == "handlers" {
		name, parts[2] = parts[2], "NAME"
		key = strings.Join(parts, ".")
	}
	best, cost := "", len(key)/2+1
	for _, k := range Keys() {
		d := distance(key, k.Name)
		// A right name in the wrong table is nearer than its letters say.
		if last(k.Name) == last(key) {
			d = min(d, 1)
		}
		if d < cost {
			best, cost = k.Name, d
		}
	}
	if best == "" {
		return ""
	}
	if name != "" {
		best = strings.Replace(best, "NAME", name, 1)
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := diagonal
			if a[i-1] != b[j-1] {
				change++
			}
			diagonal = row[j]
			row[j] = min(change, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// Value is one effective value.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source Source `json:"source"`
	// Reload says that a running daemon takes the value over at SIGHUP.
	Reload bool `json:"reload"`
}

// Values lists the effective values in the order of the struct.
func (l *Loaded) Values() []Value {
	var out []Value
	for _, k := range effective(l.Config) {
		v := k.Default
		if d, ok := v.(Duration); ok {
			b, _ := d.MarshalText()
			v = string(b)
		}
		out = append(out, Value{Key: k.Name, Value: v, Source: l.Source(k.Name), Reload: k.Reload})
	}
	return out
}

// Show renders the effective values as TOML, each with its source.
func (l *Loaded) Show() string {
	var b strings.Builder
	for _, f := range l.files {
		fmt.Fprintf(&b, "# read: %s\n", f)
	}
	section := ""
	for _, v := range l.Values() {
		sec, name := "", v.Key
		if i := strings.LastIndexByte(v.Key, '.'); i >= 0 {
			sec, name = v.Key[:i], v.Key[i+1:]
		}
		if sec != section {
			section = sec
			fmt.Fprintf(&b, "\n[%s]\n", sec)
		}
		fmt.Fprintf(&b, "%s = %s  # %s\n", name, value(v.Value), v.Source)
	}
	return b.String()
}

// Change is a key whose value differs between two configurations.
type Change struct {
	Key      string
	Old, New string // as TOML; "" when the table it is in is not there
	Reload   bool
}

// Changes compares two configurations, in the order of the keys' names.
func Changes(before, after Config) []Change {
	found := map[string]*Change{}
	for _, k := range effective(before) {
		found[k.Name] = &Change{Key: k.Name, Old: value(k.Default), Reload: k.Reload}
	}
	for _, k := range effective(after) {
		c := found[k.Name]
		if c == nil {
			if reflect.ValueOf(k.Default).IsZero() {
				continue // of a new table only what is set is worth a word
			}
			c = &Change{Key: k.Name, Reload: k.Reload}
			found[k.Name] = c
		}
		c.New = value(k.Default)
	}
	var out []Change
	for _, c := range found {
		if c.Old != c.New {
			out = append(out, *c)
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return out
}
