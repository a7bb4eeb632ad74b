package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/ocid-io/ocid/runtime"
)

// maxRecord bounds a record on disk. A gRPC request is at most 16 MiB.
const maxRecord = 32 << 20

func encode(rec any) ([]byte, error) {
	data, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("%w: the record has %d bytes, the most is %d", runtime.ErrInvalid, len(data), maxRecord)
	}
	return data, nil
}

func decodePod(data []byte, id string) (*runtime.Pod, error) {
	var p runtime.Pod
	if err := decode(data, &p); err != nil {
		return nil, err
	}
	if string(p.ID) != id {
		return nil, fmt.Errorf("the record is of pod %.80q, the file name says otherwise", p.ID)
	}
	return &p, checkPod(&p)
}

func decodeContainer(data []byte, id string) (*runtime.Container, error) {
	var c runtime.Container
	if err := decode(data, &c); err != nil {
		return nil, err
	}
	if string(c.ID) != id {
		return nil, fmt.Errorf("the record is of container %.80q, the file name says otherwise", c.ID)
	}
	return &c, checkContainer(&c)
}

// decode looks at the version first: what follows it may mean something else
// in another version.
func decode(data []byte, rec any) error {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("decode record: %w", err)
	}
	if v.Version != runtime.RecordVersion {
		return fmt.Errorf("the record has version %d, this program knows %d", v.Version, runtime.RecordVersion)
	}
	if err := json.Unmarshal(data, rec); err != nil {
		return fmt.Errorf("decode record: %w", err)
	}
	return nil
}

var podStates = []runtime.PodState{
	runtime.PodCreating, runtime.PodReady, runtime.PodNotReady, runtime.PodRemoving,
}

var containerStates = []runtime.ContainerState{
	runtime.ContainerCreating, runtime.ContainerCreated, runtime.ContainerRunning,
	runtime.ContainerExited, runtime.ContainerRemoving,
}

func checkPod(p *runtime.Pod) error {
	switch {
	case p.Version != runtime.RecordVersion:
		return fmt.Errorf("version %d is not %d", p.Version, runtime.RecordVersion)
	case !validID(string(p.ID)):
		return errors.New("the id is not 64 hexadecimal characters")
	case !slices.Contains(podStates, p.State):
		return fmt.Errorf("unknown state %.80q", p.State)
	}
	return nil
}

func checkContainer(c *runtime.Container) error {
	switch {
	case c.Version != runtime.RecordVersion:
		return fmt.Errorf("version %d is not %d", c.Version, runtime.RecordVersion)
	case !validID(string(c.ID)):
		return errors.New("the id is not 64 hexadecimal characters")
	case !validID(string(c.PodID)):
		return errors.New("the pod's id is not 64 hexadecimal characters")
	case !slices.Contains(containerStates, c.State):
		return fmt.Errorf("unknown state %.80q", c.State)
	}
	return nil
}

// validID also keeps ids path-safe, as they become file names.
func validID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
