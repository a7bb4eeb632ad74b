// Package lifecycle carries pods and containers through their lives: it is the
// one place that knows in which order the ledger, the network, the root file
// systems, the monitor and the OCI runtime are used, and in which reverse order
// they are taken down.
//
// Invariants:
//   - an intent is in the ledger before its effect is in the world;
//   - operations on one pod name or container name are joined, never rejected:
//     a retry while the first runs waits for it, a retry after it gets its result;
//   - an operation whose caller gave up goes on to its end;
//   - no lock is held across a runtime call, CNI or a disk flush.
package lifecycle

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

// Ledger owns all records. Get and List answer from memory with copies that
// the caller may keep; Put writes to disk atomically, then to memory.
type Ledger interface {
	PodRecords
	ContainerRecords
	RecordChanges
	RecordViews
	// ContainersOf lists a pod's containers.
	ContainersOf(id runtime.PodID) []runtime.Container
}

// PodRecords is the ledger's half for pods.
type PodRecords interface {
	PutPod(p runtime.Pod) error
	Pod(id runtime.PodID) (runtime.Pod, error) // ErrNotFound
	Pods() []runtime.Pod
	DeletePod(id runtime.PodID) error // idempotent
	PodByName(n runtime.PodName) (runtime.Pod, bool)
}

// ContainerRecords is the ledger's half for containers.
type ContainerRecords interface {
	PutContainer(c runtime.Container) error
	Container(id runtime.ContainerID) (runtime.Container, error) // ErrNotFound
	Containers() []runtime.Container
	DeleteContainer(id runtime.ContainerID) error // idempotent
	ContainerByName(pod runtime.PodID, n runtime.ContainerName) (runtime.Container, bool)
}

// RecordChanges changes what a record says, and nothing else of it: what others
// have recorded since the caller last looked stays, and a record that is gone
// is ErrNotFound. f must not use the ledger; its error changes nothing.
type RecordChanges interface {
	ChangePod(id runtime.PodID, f func(p *runtime.Pod) error) (runtime.Pod, error)
	ChangeContainer(id runtime.ContainerID, f func(c *runtime.Container) error) (runtime.Container, error)
}

// errAsItIs is how a change says that there is nothing to change.
var errAsItIs = errors.New("the record is to stay as it is")

// RecordViews answers from memory without copies.
type RecordViews interface {
	ContainerViewing
	// Views are the ledger's own records, which nobody may change; states
	// answer without a copy, "" for what there is not.
	PodViews() []*runtime.Pod
	PodState(id runtime.PodID) runtime.PodState
}

// ContainerViewing is RecordViews' half for containers.
type ContainerViewing interface {
	ContainerView(id runtime.ContainerID) (*runtime.Container, error) // ErrNotFound
	ContainerViews() []*runtime.Container
	ContainerViewsOf(id runtime.PodID) []*runtime.Container
	ContainerState(id runtime.ContainerID) runtime.ContainerState
}

// Images resolves images and prepares root file systems; an adapter over store.
type Images interface {
	// Resolve finds an image by name or id and returns what shapes a process.
	Resolve(ctx context.Context, ref string) (runtime.ImageConfig, error)
	// Prepare mounts a root file system; idempotent by req.ID.
	Prepare(ctx context.Context, req RootFSRequest) (path string, err error)
	// Release unmounts and deletes it; idempotent.
	Release(ctx context.Context, id string) error
	// Prepared lists the ids of all root file systems that exist.
	Prepared(ctx context.Context) ([]string, error)
}

// RootFSRequest asks for an image's tree.
type RootFSRequest struct {
	ID       string // the container's, or one that VolumeIDs gives
	ImageID  string
	ReadOnly bool // the tree as it is, without a writable layer
	// User shifts the owners of all files into a user namespace; nil: as they are.
	User *runtime.UserNamespace
	// Label is the SELinux label that all files are seen with; "" is their own.
	Label string
}

// Namespaces makes and removes pinned namespaces.
type Namespaces interface {
	// Pin creates the namespaces and bind-mounts them as Dir/NAME, with loopback
	// up, hostname and sysctls set. Idempotent; undone by Unpin.
	Pin(ctx context.Context, req PinRequest) error
	// Unpin unmounts and removes everything under dir. Idempotent.
	Unpin(dir string) error
}

// PinRequest says which namespaces a pod is to have.
type PinRequest struct {
	Dir      string
	Want     []string // of "net", "ipc", "uts" and "user"
	Hostname string
	Sysctls  map[string]string
	// User has the mappings of the user namespace that owns the others; with "user".
	User *runtime.UserNamespace
	// Holder is a process that is in all of them already; 0: they are made.
	Holder int
}

// Network attaches pods to their networks.
type Network interface {
	// Ready reports nil or why pods cannot be attached now.
	Ready() error
	// Add attaches the pod's pinned network namespace and returns addresses.
	Add(ctx context.Context, id runtime.PodID, cfg runtime.PodConfig, netns string) (ips []string, err error)
	// Del detaches. Idempotent, and works when netns is gone.
	Del(ctx context.Context, id runtime.PodID, cfg runtime.PodConfig, netns string) error
	// GC releases every attachment that is not in keep.
	GC(ctx context.Context, keep []runtime.PodID) error
}

// Dialer connects to a port within a pod.
type Dialer interface {
	// Dial connects to the port of the loopback addresses of the network
	// namespace pinned at netns, or of the host's if that is empty.
	Dial(ctx context.Context, netns string, port uint16) (net.Conn, error)
}

// Monitor is the connection to one pod's monitor process.
//
// All methods may be called concurrently. A monitor that cannot be reached
// answers with an error that wraps runtime.ErrUnavailable.
type Monitor interface {
	MonitorLives
	MonitorProcesses
	MonitorNamespaces
	// State lists what the monitor knows of every container it holds.
	State(ctx context.Context) ([]ContainerStatus, error)
	// Shutdown ends the monitor once it holds no container. Idempotent.
	Shutdown(ctx context.Context) error
}

// MonitorNamespaces makes namespaces that a process of the monitor's holds.
type MonitorNamespaces interface {
	// PIDNamespace starts the process that holds the pod's shared PID namespace
	// and returns its host pid. Idempotent; it lives until Shutdown.
	PIDNamespace(ctx context.Context) (pid int, err error)
	// PodNamespaces starts the same process in a user namespace of its own,
	// which owns its PID namespace and those that kinds names ("net", "ipc",
	// "uts"). PIDNamespace then answers with it.
	PodNamespaces(ctx context.Context, user runtime.UserNamespace, kinds []string) (pid int, err error)
}

// MonitorLives takes containers through their lives.
type MonitorLives interface {
	// Create runs the handler's OCI runtime "create" for the bundle; the
	// container's stdio is the monitor's. Returns the pid of its first process.
	// Idempotent by id: a second call returns the first's result.
	Create(ctx context.Context, req CreateRequest) (pid int, err error)
	// Start runs "start". Returns when the process has been told to run.
	Start(ctx context.Context, id runtime.ContainerID) error
	// Signal sends a signal to the first process, or to all processes of the container.
	Signal(ctx context.Context, id runtime.ContainerID, sig int, all bool) error
	// Wait returns when the container has exited, or ctx is done.
	Wait(ctx context.Context, id runtime.ContainerID) (Exit, error)
	// Delete runs "delete" (forced) and forgets the container. Idempotent.
	Delete(ctx context.Context, id runtime.ContainerID) error
}

// MonitorProcesses acts on a container that runs.
type MonitorProcesses interface {
	MonitorStreams
	// Exec runs a process in the container. Output goes to the writers as it
	// comes; returns when the process has exited and its output has ended or,
	// after the exit, drain has passed. On ctx end the process is killed.
	Exec(ctx context.Context, id runtime.ContainerID, req ExecRequest) (exitCode int, err error)
	// ReopenLog closes and opens the container's log file again.
	ReopenLog(ctx context.Context, id runtime.ContainerID) error
	// Update applies new limits with the runtime's "update".
	Update(ctx context.Context, id runtime.ContainerID, r specs.LinuxResources) error
}

// MonitorStreams couples clients with what runs.
type MonitorStreams interface {
	// CanStream reports nil, or ErrUnavailable from a monitor of a release that
	// has neither ExecStream nor Attach.
	CanStream() error
	// ExecStream runs a process whose files are the client's; returns when it
	// has ended and its output is with the client. On ctx end it is killed.
	ExecStream(ctx context.Context, id runtime.ContainerID, p specs.Process, s runtime.Streams) (exitCode int, err error)
	// Attach couples the client with the container's own files, until either
	// ends. A client that does not read is detached with an error.
	Attach(ctx context.Context, id runtime.ContainerID, s runtime.Streams) error
}

// CreateRequest asks a monitor for a container.
type CreateRequest struct {
	ID         runtime.ContainerID
	Bundle     string // directory with config.json
	LogPath    string // "" discards output
	TTY        bool
	Stdin      bool
	StdinOnce  bool
	CgroupPath string
}

// Exit tells how a container ended.
type Exit struct {
	Code       int32 // 128+signal when killed by one
	FinishedAt int64
	OOMKilled  bool
}

// ContainerStatus is a monitor's view of one container.
type ContainerStatus struct {
	ID      runtime.ContainerID
	PID     int
	Started bool
	Exit    *Exit // nil while it runs
}

// ExecRequest is one exec.
type ExecRequest struct {
	Process specs.Process
	Stdin   io.Reader // nil: none
	Stdout  io.Writer // nil: discarded
	Stderr  io.Writer
	Drain   time.Duration // how long to read on after the process has exited
}

// Monitors spawns and finds monitors.
type Monitors interface {
	// Spawn starts a monitor for a pod whose containers run under the named
	// handler, and returns when it answers. dir is the pod's run directory;
	// the socket is dir/monitor.sock; cgroup is the one above the pod's
	// containers. Idempotent: a live one is returned.
	Spawn(ctx context.Context, id runtime.PodID, dir, handler, cgroup string) (m Monitor, pid int, start uint64, err error)
	// Connect finds a running monitor. ErrUnavailable if it is gone.
	Connect(ctx context.Context, id runtime.PodID, dir string) (Monitor, error)
	// Orphan cleans what a monitor that died left: it kills the containers'
	// processes, deletes runtime state and cgroups, and returns the last exits
	// known from exit files in dir.
	Orphan(ctx context.Context, id runtime.PodID, dir, handler string, containers []OrphanContainer) (map[runtime.ContainerID]Exit, error)
	// Handlers lists the configured handler names; "" is the default's alias.
	Handlers() []string
	// OnLoss sets what is called, on a goroutine of its own, when the connection
	// to a monitor has ended, for whatever reason.
	OnLoss(f func(id runtime.PodID))
}

// OrphanContainer names a container that a dead monitor held.
type OrphanContainer struct {
	ID         runtime.ContainerID
	CgroupPath string
}
