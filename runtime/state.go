package runtime

import (
	"errors"
	"fmt"
)

// Sentinel errors of the runtime layer. Wrap them with %w; branch with errors.Is.
var (
	// ErrNotFound: no pod or container has that id.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request can never succeed as it stands.
	ErrInvalid = errors.New("invalid request")
	// ErrState: the object is in a state that does not allow the operation.
	ErrState = errors.New("wrong state")
	// ErrTimeout: a bounded wait ran out; the message says for what.
	ErrTimeout = errors.New("deadline exceeded")
	// ErrUnavailable: an outside part (CNI, a monitor) does not answer now.
	ErrUnavailable = errors.New("unavailable")
	// ErrLost: events were dropped because their reader was too slow; the reader
	// must list again.
	ErrLost = errors.New("events lost")
	// ErrImageVolume: an image cannot be mounted as a volume; the cause is
	// wrapped beside it.
	ErrImageVolume = errors.New("image volume")
)

// PodState is the state of a pod's record.
type PodState string

// Pod states. The zero value is not valid in a record.
const (
	PodCreating PodState = "creating" // intents recorded, effects under way
	PodReady    PodState = "ready"
	PodNotReady PodState = "notready" // stopped, or its namespaces are gone
	PodRemoving PodState = "removing" // being taken down for good
)

// ContainerState is the state of a container's record.
type ContainerState string

// Container states. The zero value is not valid in a record.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

var podMoves = map[PodState][]PodState{
	PodCreating: {PodReady, PodRemoving},
	PodReady:    {PodNotReady, PodRemoving},
	PodNotReady: {PodRemoving},
	PodRemoving: {},
}

var containerMoves = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated, ContainerRemoving},
	ContainerCreated:  {ContainerRunning, ContainerExited, ContainerRemoving},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
	ContainerRemoving: {},
}

// MovePod returns to, or an error that wraps ErrState and names both states.
// Moving to the state one is in is allowed and does nothing.
func MovePod(from, to PodState) (PodState, error) {
	return move("pod", podMoves, from, to)
}

// MoveContainer is MovePod for containers.
func MoveContainer(from, to ContainerState) (ContainerState, error) {
	return move("container", containerMoves, from, to)
}

func move[S ~string](what string, table map[S][]S, from, to S) (S, error) {
	if from == to {
		return to, nil
	}
	for _, s := range table[from] {
		if s == to {
			return to, nil
		}
	}
	return from, fmt.Errorf("%w: a %s cannot go from %s to %s", ErrState, what, from, to)
}
