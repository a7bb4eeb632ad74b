package observe

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ocid-io/ocid/internal/stages"
)

// Reference renders the metrics as Markdown: all of them are fed once, and what
// a scrape would get is listed.
func Reference() (string, error) {
	one := map[string]int{"STATE": 1}
	m := NewMetrics("VERSION", func(context.Context) Gauges {
		return Gauges{Pods: one, Containers: one, Leaks: map[string]uint64{"KIND": 1}}
	})
	for _, stage := range []string{"", "STAGE", cniPrefix + "OPERATION"} {
		_, end := m.Begin(context.Background(), "OPERATION", stage, []stages.Attr(nil))
		end(0, nil)
	}
	m.Pulled("RESULT", 0)
	m.Layer(true, 1, 0)
	families, err := m.registry.Gather()
	if err != nil {
		return "", fmt.Errorf("gather metrics: %w", err)
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\nMade from the code by `make docs`; do not edit.\n\n" +
		"Prometheus finds them at `/metrics` of the debug socket and of `[metrics] listen`.\n\n" +
		"| metric | type | labels | what |\n|---|---|---|---|\n")
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	return b.String(), nil
}
