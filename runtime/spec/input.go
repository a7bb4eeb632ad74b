package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// Input is everything that Build needs; all paths are resolved, all outside
// facts are in it, so that building is pure.
type Input struct {
	Pod          runtime.Pod
	Container    runtime.ContainerConfig
	ContainerID  runtime.ContainerID
	Image        runtime.ImageConfig
	User         runtime.ResolvedUser
	Home         string            // home directory of User, "" if unknown
	RootPath     string            // mounted root file system
	CgroupPath   string            // linux.cgroupsPath
	Namespaces   map[string]string // "net", "ipc", "uts", "pid", "user" -> pinned path; absent: none shared
	HostsPath    string            // files to bind over /etc/hosts, /etc/hostname, /etc/resolv.conf; "" leaves the image's
	HostnamePath string
	ResolvPath   string
	ShmPath      string // pod's tmpfs bound at /dev/shm; "" with host IPC
	Hostname     string
	HostDevices  []specs.LinuxDevice // resolved Devices, with type, major, minor
	AllDevices   []specs.LinuxDevice // for privileged
	// HideHostDevices gives a privileged container the devices of an
	// unprivileged one.
	HideHostDevices bool
	DaemonCaps      []string // capabilities that may be given, "CAP_X" form
	MinOOMScore     int      // lowest oom_score_adj that may be set
	CgroupV2        bool
	SeccompFile     []byte // content of a localhost profile
	// AppArmorDefault names the loaded profile that AppArmor kind "default"
	// stands for; "" on a machine without AppArmor, where "default" confines nothing.
	AppArmorDefault string
	// SELinux says that the machine has SELinux switched on. Without it no label
	// is written, because an OCI runtime refuses labels that it cannot apply.
	SELinux bool
}
