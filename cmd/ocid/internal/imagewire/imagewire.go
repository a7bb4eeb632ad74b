// Package imagewire is where the store and the puller, which do not know each
// other, are tried together; and it leads the log of the libraries under both
// into ours.
package imagewire

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store/layered"
)

// The store is where pulls go as it is.
var _ pull.Sink = (*layered.Store)(nil)

// Logs sends what the image and storage libraries log to log. What they call
// information is debugging to our users.
func Logs(log *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	if log.Enabled(context.Background(), slog.LevelDebug) {
		logrus.SetLevel(logrus.InfoLevel)
	}
	hooks := logrus.LevelHooks{}
	hooks.Add(hook{log})
	logrus.StandardLogger().ReplaceHooks(hooks)
}

type hook struct{ log *slog.Logger }

func (hook) Levels() []logrus.Level { return logrus.AllLevels }

func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	case logrus.WarnLevel:
		level = slog.LevelWarn
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	h.log.Log(ctx, level, e.Message, "from", "image library")
	return nil
}
