package lifecycle

import (
	"context"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

// Checkpointer is a Monitor that can write and restore the state of processes.
//
// Both calls may be made while others are under way. An error that wraps
// runtime.ErrState says that this monitor, handler or machine cannot do it.
type Checkpointer interface {
	// Checkpoint freezes all containers, writes the state of their processes,
	// and returns with them frozen: the caller ends that with the Thaw, which
	// is not nil exactly when the error is. They also thaw, whatever happens to
	// the caller, when the limit has passed since the call or the caller's
	// process ends. When it fails they have been thawed.
	Checkpoint(ctx context.Context, r CheckpointRequest) (Thaw, error)
	// Restore is Monitor.Create with processes from images; the container runs
	// when it returns. Idempotent by id.
	Restore(ctx context.Context, r RestoreRequest) (pid int, err error)
}

// Thaw lets the containers of a checkpoint run. An error means that they were
// not frozen all the time, so that what was read meanwhile is of no use; they
// run in any case. Further calls do nothing.
type Thaw func() error

// CheckpointRequest asks for one consistent cut through containers of a pod.
type CheckpointRequest struct {
	Containers     []CheckpointDirs
	TCPEstablished bool
	Limit          time.Duration // from freeze to thaw
}

// CheckpointDirs are the directories, existing and empty, for one container.
type CheckpointDirs struct {
	ID     runtime.ContainerID
	Images string // criu's image files
	Work   string // its log and figures
}

// RestoreRequest asks a monitor for a container made of images.
type RestoreRequest struct {
	CreateRequest
	Images         string
	Work           string
	TCPEstablished bool
	Limit          time.Duration
}
