// Package runtime is the contract of the runtime layer: what a pod and a
// container are, which states they pass through, and how failures are named.
//
// It holds types and pure functions only. Effects live in the packages below
// it: ledger (records), spec (OCI specs), engine (OCI runtimes), monitor (the
// per-pod process), network (CNI and namespaces) and lifecycle (the order in
// which these are used). No CRI type appears here; package server translates.
//
// All byte counts are bytes, all times are nanoseconds since the Unix epoch
// unless a field says otherwise, and all host paths are absolute.
package runtime

import "strings"

// PodID and ContainerID are 64 lower-case hexadecimal characters, unique on
// the node for ever.
type (
	PodID       string
	ContainerID string
)

// PodName is the identity that a client gives a pod (CRI PodSandboxMetadata).
// It is the idempotence key: two requests with an equal PodName speak of one pod.
type PodName struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt"`
}

// ContainerName is the identity of a container within its pod (CRI ContainerMetadata).
type ContainerName struct {
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt"`
}

// NamespaceMode says whose namespace a process joins (CRI NamespaceMode).
type NamespaceMode string

// Namespace modes. The zero value is not valid in a record.
const (
	NamespacePod       NamespaceMode = "pod"       // shared by the pod's containers
	NamespaceContainer NamespaceMode = "container" // private to the container
	NamespaceNode      NamespaceMode = "node"      // the host's
	NamespaceTarget    NamespaceMode = "target"    // that of Namespaces.Target
)

// Namespaces names the mode of each namespace that CRI lets a client choose.
type Namespaces struct {
	Network NamespaceMode  `json:"network"`
	PID     NamespaceMode  `json:"pid"`
	IPC     NamespaceMode  `json:"ipc"`
	Target  ContainerID    `json:"target,omitempty"` // with PID == NamespaceTarget
	User    *UserNamespace `json:"user,omitempty"`   // nil: the host's
}

// UserNamespace is a pod-level user namespace with its id mappings.
type UserNamespace struct {
	UIDs []IDMapping `json:"uids"`
	GIDs []IDMapping `json:"gids"`
}

// IDMapping maps Length ids from ContainerID to HostID (user_namespaces(7)).
type IDMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Length      uint32 `json:"length"`
}

// DNS is what goes into a pod's resolv.conf. A nil *DNS means the host's file.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// PortMapping forwards a host port to the pod.
type PortMapping struct {
	Protocol      string `json:"protocol"` // "tcp", "udp" or "sctp"
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"` // 0: not forwarded
	HostIP        string `json:"hostIP,omitempty"`
}

// PodConfig is a pod as the client asked for it, validated.
type PodConfig struct {
	Name         PodName           `json:"name"`
	Handler      string            `json:"handler"` // "" is the default handler
	Hostname     string            `json:"hostname,omitempty"`
	LogDirectory string            `json:"logDirectory,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"`
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"` // "" is the configured default
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Namespaces   Namespaces        `json:"namespaces"`
	Privileged   bool              `json:"privileged,omitempty"`
	Resources    *Resources        `json:"resources,omitempty"` // sum over containers, informative
	Overhead     *Resources        `json:"overhead,omitempty"`  // informative
	// Security holds the sandbox-level defaults (run-as ids, SELinux, seccomp)
	// that apply to the pod's own processes.
	Security Security `json:"security"`
}

// ContainerConfig is a container as the client asked for it, validated, with
// the image resolved to an id.
type ContainerConfig struct {
	Name        ContainerName     `json:"name"`
	Image       string            `json:"image"`              // as the user wrote it
	ImageID     string            `json:"imageID"`            // store id
	ImageRef    string            `json:"imageRef,omitempty"` // "name@digest" to show for the image; "" is ImageID
	Command     []string          `json:"command,omitempty"`
	Args        []string          `json:"args,omitempty"`
	WorkingDir  string            `json:"workingDir,omitempty"`
	Env         []EnvVar          `json:"env,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	Devices     []Device          `json:"devices,omitempty"`
	CDIDevices  []string          `json:"cdiDevices,omitempty"` // "vendor/class=name"
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"logPath,omitempty"` // absolute; "" logs nowhere
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdinOnce,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StopSignal  string            `json:"stopSignal,omitempty"` // "SIGTERM" form; "" asks the image, then SIGTERM
	Resources   *Resources        `json:"resources,omitempty"`
	Security    Security          `json:"security"`
}

// EnvVar is one environment variable. Value may hold any byte but NUL.
type EnvVar struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Propagation of a mount (CRI MountPropagation).
type Propagation string

// Mount propagation modes.
const (
	PropagationPrivate       Propagation = "private"
	PropagationHostToContain Propagation = "rslave"
	PropagationBidirectional Propagation = "rshared"
)

// Mount binds a host path, or an image, into the container.
type Mount struct {
	ContainerPath string `json:"containerPath"`
	// Image, as the client named it, and ImageID stand in place of HostPath.
	Image             string      `json:"image,omitempty"`
	ImageID           string      `json:"imageID,omitempty"`
	ImageSubPath      string      `json:"imageSubPath,omitempty"`
	Options           []string    `json:"options,omitempty"` // of MountOptions
	HostPath          string      `json:"hostPath,omitempty"`
	ReadOnly          bool        `json:"readOnly,omitempty"`
	RecursiveReadOnly bool        `json:"recursiveReadOnly,omitempty"`
	SELinuxRelabel    bool        `json:"selinuxRelabel,omitempty"`
	Propagation       Propagation `json:"propagation"`
	UIDMappings       []IDMapping `json:"uidMappings,omitempty"`
	GIDMappings       []IDMapping `json:"gidMappings,omitempty"`
}

// MountOptions are those that a client may set on a mount: all take rights
// away, or say when a file's access time is written.
var MountOptions = []string{
	"noexec", "nosuid", "nodev", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime",
}

// Device passes a host device node (or a directory of them) into the container.
type Device struct {
	HostPath      string `json:"hostPath"`
	ContainerPath string `json:"containerPath"`
	Permissions   string `json:"permissions"` // subset of "rwm"
}

// Resources are limits; a nil pointer leaves the kernel's default.
type Resources struct {
	CPUPeriod     *uint64           `json:"cpuPeriod,omitempty"` // microseconds
	CPUQuota      *int64            `json:"cpuQuota,omitempty"`  // microseconds; -1 unlimited
	CPUShares     *uint64           `json:"cpuShares,omitempty"`
	CPUSetCPUs    string            `json:"cpusetCPUs,omitempty"`
	CPUSetMems    string            `json:"cpusetMems,omitempty"`
	Memory        *int64            `json:"memory,omitempty"` // bytes
	MemorySwap    *int64            `json:"memorySwap,omitempty"`
	Pids          *int64            `json:"pids,omitempty"`
	OOMScoreAdj   *int              `json:"oomScoreAdj,omitempty"`
	HugepageLimit map[string]uint64 `json:"hugepageLimit,omitempty"` // "2MB" -> bytes
	Unified       map[string]string `json:"unified,omitempty"`       // cgroup v2 files
}

// unifiedKeys are the cgroup v2 files that a client may write for a container:
// its limits, protections and weights. What acts at once on other cgroups, or
// changes how the cgroup is run, is not among them.
var unifiedKeys = map[string]bool{
	"cpu.weight": true, "cpu.weight.nice": true, "cpu.max": true, "cpu.max.burst": true, "cpu.idle": true,
	"cpu.uclamp.min": true, "cpu.uclamp.max": true,
	"cpuset.cpus": true, "cpuset.mems": true,
	"memory.min": true, "memory.low": true, "memory.high": true, "memory.max": true, "memory.oom.group": true,
	"memory.swap.high": true, "memory.swap.max": true, "memory.zswap.max": true, "memory.zswap.writeback": true,
	"io.max": true, "io.weight": true, "io.bfq.weight": true, "io.latency": true, "io.prio.class": true,
	"pids.max": true, "rdma.max": true, "misc.max": true,
}

// UnifiedKey tells whether a client may set a cgroup v2 file by name.
func UnifiedKey(name string) bool {
	if unifiedKeys[name] {
		return true
	}
	size, ok := strings.CutPrefix(name, "hugetlb.")
	if !ok {
		return false
	}
	size, what, _ := strings.Cut(size, ".")
	return (what == "max" || what == "rsvd.max") && size != "" && strings.Trim(size, "0123456789KMGB") == ""
}

// SeccompKind chooses the seccomp profile.
type SeccompKind string

// Seccomp kinds. The zero value means unconfined, as CRI leaves it when a
// client names no profile.
const (
	SeccompUnconfined SeccompKind = "unconfined"
	SeccompDefault    SeccompKind = "default"
	SeccompLocalhost  SeccompKind = "localhost"
)

// ProfileKind chooses an AppArmor profile with the same words as seccomp.
type ProfileKind = SeccompKind

// SELinux is a label's four parts.
type SELinux struct {
	User, Role, Type, Level string
}

// GroupsPolicy says how supplemental groups are computed (CRI SupplementalGroupsPolicy).
type GroupsPolicy string

// Supplemental group policies.
const (
	GroupsMerge  GroupsPolicy = "merge"  // image's groups and the asked ones
	GroupsStrict GroupsPolicy = "strict" // the asked ones only
)

// Security is what confines a process.
type Security struct {
	Privileged         bool         `json:"privileged,omitempty"`
	AddCapabilities    []string     `json:"addCapabilities,omitempty"` // without CAP_; "ALL" allowed
	DropCapabilities   []string     `json:"dropCapabilities,omitempty"`
	AmbientCaps        []string     `json:"ambientCapabilities,omitempty"`
	RunAsUser          *int64       `json:"runAsUser,omitempty"`
	RunAsUserName      string       `json:"runAsUserName,omitempty"`
	RunAsGroup         *int64       `json:"runAsGroup,omitempty"`
	SupplementalGroups []int64      `json:"supplementalGroups,omitempty"`
	GroupsPolicy       GroupsPolicy `json:"groupsPolicy,omitempty"`
	ReadOnlyRootfs     bool         `json:"readOnlyRootfs,omitempty"`
	NoNewPrivileges    bool         `json:"noNewPrivileges,omitempty"`
	MaskedPaths        []string     `json:"maskedPaths,omitempty"`
	ReadOnlyPaths      []string     `json:"readOnlyPaths,omitempty"`
	Seccomp            SeccompKind  `json:"seccomp,omitempty"`
	SeccompPath        string       `json:"seccompPath,omitempty"` // with SeccompLocalhost
	AppArmor           ProfileKind  `json:"appArmor,omitempty"`
	AppArmorProfile    string       `json:"appArmorProfile,omitempty"` // with localhost
	SELinux            *SELinux     `json:"selinux,omitempty"`
	Namespaces         Namespaces   `json:"namespaces"`
}

// ImageConfig is the part of an image's OCI config that shapes a process.
// Every string in it is hostile input.
type ImageConfig struct {
	ID         string            `json:"id"`
	User       string            `json:"user,omitempty"`
	Env        []string          `json:"env,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	StopSignal string            `json:"stopSignal,omitempty"`
	Volumes    []string          `json:"volumes,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}
