package runtime

// CheckpointOptions are what a client may choose for the checkpoint and the
// restore of a pod.
type CheckpointOptions struct {
	// TCPEstablished makes connections part of the state. They come back only
	// where the pod has the same address.
	TCPEstablished bool `json:"tcpEstablished,omitempty"`
}

// RestoreRequest is a pod to be made from a checkpoint.
type RestoreRequest struct {
	Path       string // the checkpoint's directory; it is only read
	Config     PodConfig
	Containers []ContainerConfig
	Options    CheckpointOptions
}

// Restored names one container that was made from a checkpoint.
type Restored struct {
	Name string
	ID   ContainerID
}
