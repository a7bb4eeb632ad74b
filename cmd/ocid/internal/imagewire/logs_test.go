package imagewire_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/ocid-io/ocid/cmd/ocid/internal/imagewire"
)

func TestLogs(t *testing.T) {
	var out bytes.Buffer
	imagewire.Logs(slog.New(slog.NewTextHandler(&out, nil)))
	defer imagewire.Logs(slog.New(slog.DiscardHandler))
	logrus.Info("chatter")
	logrus.Warn("trouble")
	if got := out.String(); strings.Contains(got, "chatter") || !strings.Contains(got, "level=WARN msg=trouble") {
		t.Fatalf("logged %q", got)
	}
}
