package runtime

import "fmt"

// RecordVersion is the version of Pod and Container records as written to disk.
const RecordVersion = 1

// Pod is the record of one pod. Intents are written before the effect that
// they announce, so that a crash can be undone from the record alone.
type Pod struct {
	Version   int       `json:"version"`
	ID        PodID     `json:"id"`
	Config    PodConfig `json:"config"`
	State     PodState  `json:"state"`
	BootID    string    `json:"bootID"` // kernel boot that the pod belongs to
	CreatedAt int64     `json:"createdAt"`
	Intents   []Intent  `json:"intents,omitempty"`
	// IPs are the pod's addresses, the default network's first.
	IPs []string `json:"ips,omitempty"`
	// SELinuxLevel is that of the pod's containers which ask for no other.
	SELinuxLevel string `json:"selinuxLevel,omitempty"`
	// Resources and Overhead replace those of Config once a client has changed
	// them; Config stays as asked for, so that a retry is known as one.
	Resources *Resources `json:"resources,omitempty"`
	Overhead  *Resources `json:"overhead,omitempty"`
	// MonitorPID and MonitorStart identify the monitor: pid and the start time
	// of /proc/PID/stat (clock ticks), so that a reused pid is told apart.
	MonitorPID   int    `json:"monitorPID,omitempty"`
	MonitorStart uint64 `json:"monitorStart,omitempty"`
	// SystemdCgroups says that the cgroup parent is a slice and each container
	// a scope in it: the driver at the time the pod was made.
	SystemdCgroups bool `json:"systemdCgroups,omitempty"`
	// CgroupsMade are the cgroups above the containers that came with the pod.
	CgroupsMade []string `json:"cgroupsMade,omitempty"`
}

// Container is the record of one container.
type Container struct {
	Version    int             `json:"version"`
	ID         ContainerID     `json:"id"`
	PodID      PodID           `json:"podID"`
	Config     ContainerConfig `json:"config"`
	State      ContainerState  `json:"state"`
	CreatedAt  int64           `json:"createdAt"`
	StartedAt  int64           `json:"startedAt,omitempty"`
	FinishedAt int64           `json:"finishedAt,omitempty"`
	ExitCode   int32           `json:"exitCode"`
	Reason     string          `json:"reason,omitempty"` // "Completed", "Error", "OOMKilled"
	Message    string          `json:"message,omitempty"`
	PID        int             `json:"pid,omitempty"`
	CgroupPath string          `json:"cgroupPath,omitempty"` // relative to each hierarchy's root
	StopSignal string          `json:"stopSignal,omitempty"` // resolved
	Intents    []Intent        `json:"intents,omitempty"`
	User       *ResolvedUser   `json:"user,omitempty"`
}

// ResolvedUser is the identity the container's first process starts with.
type ResolvedUser struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Intent names something outside the process that is about to exist, or exists.
type Intent string

// Intents, in the order of creation.
const (
	IntentNamespaces Intent = "namespaces" // pins under the pod's run directory
	IntentNetwork    Intent = "network"    // CNI attachment
	IntentMonitor    Intent = "monitor"    // monitor process
	IntentShm        Intent = "shm"        // pod's /dev/shm mount
	IntentRootfs     Intent = "rootfs"     // container root file system and its mount
	IntentVolumes    Intent = "volumes"    // images mounted as volumes, see VolumeIDs
	IntentBundle     Intent = "bundle"     // container's bundle directory
	IntentEngine     Intent = "engine"     // OCI runtime state, cgroup, processes
	// IntentRestore: the container starts from images of a checkpoint, which are
	// under the checkpoint directory. It goes when the container has started.
	IntentRestore Intent = "restore"
)

// MaxImageVolumes bounds the images that one container mounts.
const MaxImageVolumes = 256

// VolumeIDs names the root file systems that the container's image volumes
// are, in the order of its mounts; they follow from the record alone.
func (c *Container) VolumeIDs() []string {
	var out []string
	for _, m := range c.Config.Mounts {
		if m.Image != "" && len(c.ID) >= 60 {
			out = append(out, fmt.Sprintf("v%02x-%s", len(out), c.ID[:60]))
		}
	}
	return out
}

// Has reports whether i is among the intents.
func Has(intents []Intent, i Intent) bool {
	for _, x := range intents {
		if x == i {
			return true
		}
	}
	return false
}
