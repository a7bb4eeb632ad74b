package daemon

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestCalm(t *testing.T) {
	for _, c := range []struct {
		level         slog.Level
		message, want string
	}{
		{slog.LevelDebug, "Unhandled Error", "level=DEBUG"},
		{slog.LevelInfo, "Unhandled Error", ""},
		{slog.LevelInfo, "Observed a panic", "level=ERROR"},
	} {
		var b bytes.Buffer
		l := slog.New(calm{slog.NewTextHandler(&b, &slog.HandlerOptions{Level: c.level})}).With("from", "x")
		l.Error(c.message)
		if got := b.String(); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("at %v, %q: %q", c.level, c.message, got)
		}
	}
}
