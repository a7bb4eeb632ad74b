package lifecycle

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ocid-io/ocid/runtime"
)

// stopSignal is the container's, else the image's if it is one, else SIGTERM.
func stopSignal(cfg runtime.ContainerConfig, img runtime.ImageConfig) string {
	for _, s := range []string{cfg.StopSignal, img.StopSignal} {
		if n := parseSignal(s); n > 0 {
			return signalName(n)
		}
	}
	return "SIGTERM"
}

// maxSignal is SIGRTMAX on Linux (signal(7)).
const maxSignal = 64

// parseSignal reads "SIGTERM", "TERM" or "15"; 0 if it is no signal.
func parseSignal(s string) int {
	s = strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(s); err == nil {
		if n > 0 && n <= maxSignal {
			return n
		}
		return 0
	}
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	if rest, ok := strings.CutPrefix(s, "SIGRTMIN"); ok {
		return realTime(34, rest, "+")
	}
	if rest, ok := strings.CutPrefix(s, "SIGRTMAX"); ok {
		return realTime(maxSignal, rest, "-")
	}
	return int(unix.SignalNum(s))
}

func realTime(base int, rest, sign string) int {
	if rest == "" {
		return base
	}
	n, err := strconv.Atoi(strings.TrimPrefix(rest, sign))
	if err != nil || !strings.HasPrefix(rest, sign) || n < 0 {
		return 0
	}
	if sign == "-" {
		n = -n
	}
	if base+n < 34 || base+n > maxSignal {
		return 0
	}
	return base + n
}

func signalName(n int) string {
	if s := unix.SignalName(unix.Signal(n)); s != "" {
		return s
	}
	return strconv.Itoa(n)
}

func signalNumber(s string) int {
	if n := parseSignal(s); n > 0 {
		return n
	}
	return int(unix.SIGTERM)
}
