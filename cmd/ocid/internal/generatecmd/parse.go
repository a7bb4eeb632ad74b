package generatecmd

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/runtime/spec"
)

// cpuPeriod is the scheduling period in microseconds that --cpus is counted in.
const cpuPeriod = 100_000

func (f *flags) limits(in *spec.Input) error {
	r := &runtime.Resources{}
	in.Container.Resources = r
	if f.memory != "" {
		n, err := parseBytes(f.memory)
		if err != nil {
			return fmt.Errorf("--memory %q: %w", f.memory, err)
		}
		r.Memory = &n
	}
	if f.cpus != 0 {
		// The kernel takes no quota below one millisecond.
		if math.IsNaN(f.cpus) || f.cpus < 0.01 || f.cpus > 1<<16 {
			return fmt.Errorf("--cpus %v: want 0.01 or more", f.cpus)
		}
		r.CPUPeriod, r.CPUQuota = new(uint64(cpuPeriod)), new(int64(math.Round(f.cpus*cpuPeriod)))
	}
	if f.cpuShares != 0 {
		if f.cpuShares < 2 || f.cpuShares > 262144 {
			return fmt.Errorf("--cpu-shares %d: want 2 to 262144", f.cpuShares)
		}
		r.CPUShares = &f.cpuShares
	}
	if f.pids != 0 {
		r.Pids = &f.pids
	}
	return nil
}

// parseBytes reads a size such as 64m; units are powers of 1024.
func parseBytes(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "bkmgi")
	shift, ok := map[string]uint{
		"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30,
	}[strings.ToLower(s[len(digits):])]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil || n == 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%w: want a size such as 256m", runtime.ErrInvalid)
	}
	return int64(n << shift), nil
}

// parseVolume reads HOST:CONTAINER[:OPTION,...].
func parseVolume(v string) (runtime.Mount, error) {
	parts := strings.Split(v, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return runtime.Mount{}, fmt.Errorf("--volume %q: want HOST:CONTAINER[:OPTIONS]", v)
	}
	m := runtime.Mount{HostPath: parts[0], ContainerPath: parts[1], Propagation: runtime.PropagationPrivate}
	if len(parts) == 2 {
		return m, nil
	}
	for o := range strings.SplitSeq(parts[2], ",") {
		switch o {
		case "rw":
		case "ro":
			m.ReadOnly = true
		case "rro":
			m.ReadOnly, m.RecursiveReadOnly = true, true
		case "private", "rprivate":
			m.Propagation = runtime.PropagationPrivate
		case "slave", "rslave":
			m.Propagation = runtime.PropagationHostToContain
		case "shared", "rshared":
			m.Propagation = runtime.PropagationBidirectional
		default:
			return m, fmt.Errorf("--volume %q: unknown option %q", v, o)
		}
	}
	return m, nil
}
