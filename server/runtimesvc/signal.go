package runtimesvc

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signal turns SIGNAL_SIGRTMINPLUS1 into SIGRTMIN+1, and the default into "".
func (c *check) signal(field string, in cri.Signal) string {
	if in == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	name, ok := cri.Signal_name[int32(in)]
	if !ok {
		c.fail(field, "unknown signal %d", in)
		return ""
	}
	name = strings.TrimPrefix(name, "SIGNAL_")
	name = strings.Replace(name, "SIGRTMINPLUS", "SIGRTMIN+", 1)
	return strings.Replace(name, "SIGRTMAXMINUS", "SIGRTMAX-", 1)
}

// criSignal is the way back. An image may say "term", "SIGTERM" or "15".
func criSignal(s string) cri.Signal {
	s = strings.ToUpper(s)
	if n, err := strconv.Atoi(s); err == nil {
		s = unix.SignalName(unix.Signal(n))
	}
	if s != "" && !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	s = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(s)
	return cri.Signal(cri.Signal_value["SIGNAL_"+s])
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
