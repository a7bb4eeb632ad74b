package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
)

// Key documents one configuration key.
type Key struct {
	Name    string // dotted
	Doc     string
	Default any
}

// Keys lists every key in the order of the struct.
func Keys() []Key {
	d := Default()
	return keys("", reflect.ValueOf(d))
}

func keys(prefix string, v reflect.Value) []Key {
	var out []Key
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name := prefix + f.Tag.Get("toml")
		switch {
		case f.Type.Kind() == reflect.Struct:
			out = append(out, keys(name+".", v.Field(i))...)
		case f.Type == reflect.TypeFor[map[string]Handler]():
			out = append(out, keys(name+".NAME.", reflect.ValueOf(Handler{}))...)
		default:
			out = append(out, Key{Name: name, Doc: f.Tag.Get("doc"), Default: v.Field(i).Interface()})
		}
	}
	return out
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

func value(v any) string {
	var b bytes.Buffer
	if reflect.ValueOf(v).Kind() == reflect.Slice && reflect.ValueOf(v).IsNil() {
		return "[]"
	}
	if err := toml.NewEncoder(&b).Encode(map[string]any{"v": v}); err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(v))
	}
	return strings.TrimSpace(strings.TrimPrefix(b.String(), "v = "))
}
