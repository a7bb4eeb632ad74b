package daemon

import (
	"testing"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
)

func TestCgroupDriver(t *testing.T) {
	systemd, fs := config.Systemd, config.Cgroupfs
	v2, v1, bare := host{systemd: true, cgroupV2: true}, host{systemd: true}, host{cgroupV2: true}
	for name, tc := range map[string]struct {
		conf           config.Runtime
		host           host
		driver, parent string // "" is an error
	}{
		"systemd on v2":        {config.Runtime{}, v2, systemd, "ocid.slice"},
		"systemd on v1":        {config.Runtime{}, v1, fs, "/ocid"},
		"no systemd":           {config.Runtime{}, bare, fs, "/ocid"},
		"asked for cgroupfs":   {config.Runtime{CgroupDriver: fs}, v2, fs, "/ocid"},
		"a path as parent":     {config.Runtime{CgroupParent: "/x"}, v2, fs, "/x"},
		"a slice as parent":    {config.Runtime{CgroupParent: "x.slice"}, v2, systemd, "x.slice"},
		"asked for on v1":      {config.Runtime{CgroupDriver: systemd}, v1, "", ""},
		"asked for without":    {config.Runtime{CgroupDriver: systemd}, bare, "", ""},
		"monitors in scopes":   {config.Runtime{MonitorCgroup: "pod"}, v2, systemd, "ocid.slice"},
		"monitors, no systemd": {config.Runtime{MonitorCgroup: "pod"}, bare, "", ""},
	} {
		driver, parent, err := cgroupDriver(tc.conf, tc.host)
		if driver != tc.driver || parent != tc.parent || (err != nil) != (tc.driver == "") {
			t.Errorf("%s: %q %q %v", name, driver, parent, err)
		}
	}
}
