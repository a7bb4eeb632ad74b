package daemon

import (
	"context"
	"fmt"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/internal/cgroup"
)

// Parents of pods that name none.
const (
	defaultCgroup = "/ocid"
	defaultSlice  = "ocid.slice"
)

// cgroupDriver decides who makes the cgroups, and where those of pods without
// a parent are. The kubelet asks for the answer and follows it.
func cgroupDriver(r config.Runtime, h host) (driver, parent string, err error) {
	able := h.systemd && h.cgroupV2
	driver, parent = r.CgroupDriver, r.CgroupParent
	slice := strings.HasSuffix(parent, ".slice")
	if driver == "" {
		driver = config.Cgroupfs
		if able && (parent == "" || slice) {
			driver = config.Systemd
		}
	}
	switch {
	case driver == config.Systemd && !able:
		return "", "", fmt.Errorf("runtime.cgroup_driver is %s, which needs systemd as PID 1 (here: %t) and cgroup v2 alone (here: %t)", driver, h.systemd, h.cgroupV2)
	case driver != config.Systemd && r.MonitorCgroup != "":
		return "", "", fmt.Errorf("runtime.monitor_cgroup is %q, which needs the systemd cgroup driver; in use is %s", r.MonitorCgroup, driver)
	case driver == config.Systemd && parent == "":
		parent = defaultSlice
	case parent == "":
		parent = defaultCgroup
	}
	return driver, parent, nil
}

// cgroups implements lifecycle.Cgroups.
type cgroups struct{ systemd bool }

// Missing lists which of the group and its parents do not exist.
func (cgroups) Missing(path string) []string {
	host, err := cgroup.Host()
	if err != nil {
		return nil
	}
	return host.Missing(path)
}

// sliceStop bounds one call of systemd.
const sliceStop = 30 * time.Second

// RemoveEmpty removes the group if nothing is in it. A slice goes through
// systemd, which would otherwise believe that it is there.
func (c cgroups) RemoveEmpty(ctx context.Context, group string) error {
	host, err := cgroup.Host()
	if err != nil {
		return err
	}
	empty, err := host.Empty(group)
	if err != nil || !empty {
		return err
	}
	if c.systemd && strings.HasSuffix(group, ".slice") {
		ctx, cancel := context.WithTimeout(ctx, sliceStop)
		defer cancel()
		out, err := exec.CommandContext(ctx, "systemctl", "--no-ask-password", "stop", "--", path.Base(group)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("stop %s: %w: %s", path.Base(group), err, strings.TrimSpace(string(out)))
		}
	}
	return host.Remove(group)
}

// removeDefaultCgroup removes the parent of pods that name none, where it is
// empty. With systemd it is systemd's.
func (d *parts) removeDefaultCgroup() {
	if d.driver == config.Systemd {
		return
	}
	if host, err := cgroup.Host(); err == nil {
		if empty, err := host.Empty(d.cgroupParent); err == nil && empty {
			_ = host.Remove(d.cgroupParent) // it is made again when it is needed
		}
	}
}
