package runtime

// EventType says what happened to a container or to a pod.
type EventType int

// Events, in the order of a life. A pod is created and started at once.
const (
	EventCreated EventType = iota + 1
	EventStarted
	EventStopped
	EventDeleted
)

// String names the event.
func (t EventType) String() string {
	switch t {
	case EventCreated:
		return "created"
	case EventStarted:
		return "started"
	case EventStopped:
		return "stopped"
	case EventDeleted:
		return "deleted"
	}
	return "unknown"
}

// Event is a change that a client can see. It belongs to all who read it, so
// that nobody may change it or what it points to.
type Event struct {
	Type EventType
	ID   string // of the container or, for the pod's own events, of the pod
	At   int64  // when it was recorded; grows from event to event
	Pod  Pod    // as it was at that time
	// Containers are those that the pod has at that time; one that is deleted
	// is no longer among them.
	Containers []*Container
}
