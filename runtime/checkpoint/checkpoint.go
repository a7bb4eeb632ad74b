// Package checkpoint is the format of checkpoints: it writes the archive of a
// container and reads one back. It knows nothing of pods, monitors or OCI
// runtimes, and starts no process.
//
// An archive is a tar of:
//
//	config.dump       what was checkpointed: Config, as JSON
//	spec.dump         the OCI spec that it ran with
//	status            its state, for readers of archives
//	checkpoint/       criu's image files
//	rootfs-diff.tar   files that were added to, or changed in, the root file system
//	deleted.files     paths that were removed from it: a JSON list
//	dump.log, stats-dump, container.log
//
// A pod's checkpoint is a directory with one archive for each container,
// NAME.tar, and pod.options and pod.dump beside them.
//
// Reading takes every byte for hostile. Invariants:
//   - what is read is bounded: members, bytes, path lengths, JSON documents;
//   - a member that is not in the table above, is a link or a device, is sparse
//     or comes twice, is refused, and so is the archive;
//   - no path leaves its root, none leads through a symbolic link or a mount;
//   - of an archive, only processes and files are ever put to use: its spec and
//     its configuration are compared with what the client asks for, and with
//     nothing else done.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Names of members and files.
const (
	ConfigFile    = "config.dump"
	SpecFile      = "spec.dump"
	StatusFile    = "status"
	ImagesDir     = "checkpoint"
	DiffFile      = "rootfs-diff.tar"
	DeletedFile   = "deleted.files"
	DumpLog       = "dump.log"
	StatsFile     = "stats-dump"
	ContainerLog  = "container.log"
	PodFile       = "pod.dump"
	PodOptions    = "pod.options"
	Descriptors   = "descriptors.json"
	ArchiveSuffix = ".tar"
)

var (
	// ErrHostile: the archive holds what no checkpoint of ours would.
	ErrHostile = errors.New("refused checkpoint data")
	// ErrUnsupported: what is to be captured cannot be put into an archive.
	ErrUnsupported = errors.New("cannot be checkpointed")
)

func hostile(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrHostile}, a...)...)
}

// Version of the format; readers refuse a later one.
const Version = 1

// Config says what was checkpointed.
type Config struct {
	Version         int       `json:"version"`
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`     // id
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`  // id, as clients see it
	RootfsImageName string    `json:"rootfsImageName,omitempty"` // as the user wrote it
	Runtime         string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	TTY             bool      `json:"tty,omitempty"`
	Stdin           bool      `json:"stdin,omitempty"`
	TCPEstablished  bool      `json:"tcpEstablished,omitempty"`
}

// Status is the state of a container as readers of archives expect it.
type Status struct {
	CreatedAt  int64
	StartedAt  int64
	FinishedAt int64
	ExitCode   int32
	Pid        uint32 //nolint:revive,staticcheck // the name is the format's
	Reason     string
	Message    string
}

// Pod says what a pod's checkpoint holds.
type Pod struct {
	Version        int       `json:"version"`
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	Namespace      string    `json:"namespace"`
	Handler        string    `json:"handler"`
	CheckpointedAt time.Time `json:"checkpointedTime"`
	Architecture   string    `json:"architecture"`
	TCPEstablished bool      `json:"tcpEstablished,omitempty"`
	// SharedPID: the processes had the pod's PID namespace.
	SharedPID  bool           `json:"sharedPID,omitempty"`
	Containers []PodContainer `json:"containers"`
}

// PodContainer is one container of a pod's checkpoint; its archive is File.
type PodContainer struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	File string `json:"file"`
}

// Options is the summary of a pod's checkpoint that other tools read.
type Options struct {
	Version    int               `json:"version"`
	Containers map[string]string `json:"containers"`
}

// Limits bound what is read of an archive.
type Limits struct {
	Bytes     int64 // of all members together
	Images    int   // files of criu
	DiffBytes int64 // of all files in the root file system's difference
	DiffFiles int
	Document  int64 // of one JSON document
}

// DefaultLimits are far above what a pod on a node has, and low enough that a
// hostile archive fills neither memory nor, alone, the disk of a node.
func DefaultLimits() Limits {
	return Limits{Bytes: 256 << 30, Images: 64 << 10, DiffBytes: 64 << 30, DiffFiles: 256 << 10, Document: 8 << 20}
}

const (
	maxPath  = 4095
	maxDepth = 256
)

func decode(name string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return hostile("%s: %v", name, err)
	}
	return nil
}
