package observe

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	keepErrors = 16   // of the log's warnings and errors
	maxError   = 1024 // bytes of one
)

// Recent keeps the last warnings and errors of a log.
type Recent struct {
	mu   sync.Mutex
	kept []Logged // guarded by mu; the newest last
}

// Logged is one line of the log.
type Logged struct {
	Time  time.Time `json:"time"`
	Level string    `json:"level"`
	Text  string    `json:"text"`
}

// Handler passes everything on to next and keeps what is serious.
func (r *Recent) Handler(next slog.Handler) slog.Handler { return recentHandler{next, r, ""} }

// Last lists what was kept, the newest last.
func (r *Recent) Last() []Logged {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Logged{}, r.kept...)
}

type recentHandler struct {
	slog.Handler
	recent *Recent
	attrs  string
}

// Handle implements slog.Handler.
func (h recentHandler) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Level >= slog.LevelWarn {
		var b strings.Builder
		b.WriteString(rec.Message)
		b.WriteString(h.attrs)
		rec.Attrs(func(a slog.Attr) bool {
			// Whole stacks are for the log itself.
			if a.Key != "stack" {
				b.WriteString(" " + a.String())
			}
			return b.Len() < maxError
		})
		text := b.String()
		h.recent.add(Logged{rec.Time, rec.Level.String(), strings.ToValidUTF8(text[:min(len(text), maxError)], "")})
	}
	return h.Handler.Handle(ctx, rec)
}

func (r *Recent) add(l Logged) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kept) == keepErrors {
		r.kept = append(r.kept[:0], r.kept[1:]...)
	}
	r.kept = append(r.kept, l)
}

// WithAttrs implements slog.Handler.
func (h recentHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	text := h.attrs
	for _, a := range attrs {
		text += " " + a.String()
	}
	return recentHandler{h.Handler.WithAttrs(attrs), h.recent, text}
}

// WithGroup implements slog.Handler.
func (h recentHandler) WithGroup(name string) slog.Handler {
	return recentHandler{h.Handler.WithGroup(name), h.recent, h.attrs}
}
