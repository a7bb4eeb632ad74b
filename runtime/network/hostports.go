package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"

	"github.com/ocid-io/ocid/runtime"
)

// hostPorts knows which pod has which port of the host. The plugins do not
// notice when two pods ask for one: rules would be added twice, and who gets the
// traffic would depend on their order.
//
// It is read from the records of attachments when the first pod asks for a
// port, so that a node whose pods use none does not pay for it.
// It is guarded by CNI.mu.
type hostPorts struct {
	loaded bool
	of     map[runtime.PodID]owner
}

type owner struct {
	name  string // namespace/name, for people
	ports []portMapping
}

// reserve gives the ports to the pod, all or none. Idempotent.
func (h *hostPorts) reserve(id runtime.PodID, name string, want []portMapping) error {
	for i, w := range want {
		for _, other := range want[:i] {
			if w.collides(other) {
				return fmt.Errorf("%w: the pod asks twice for host port %s", runtime.ErrInvalid, w)
			}
		}
		for pod, o := range h.of {
			for _, p := range o.ports {
				if pod != id && w.collides(p) {
					return fmt.Errorf("%w: host port %s is taken by pod %s (%s)", runtime.ErrState, w, o.name, pod)
				}
			}
		}
	}
	h.of[id] = owner{name, want}
	return nil
}

func (p portMapping) String() string {
	at := p.HostIP
	if at == "" {
		at = "any address"
	}
	return fmt.Sprintf("%d/%s on %s", p.HostPort, p.Protocol, at)
}

// collides tells whether both would get a packet.
func (p portMapping) collides(q portMapping) bool {
	return p.HostPort == q.HostPort && p.Protocol == q.Protocol && overlap(p.HostIP, q.HostIP)
}

// overlap: "" is every address, 0.0.0.0 and :: every one of their family.
func overlap(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return true
	}
	x, y = x.Unmap(), y.Unmap()
	if x.Is4() != y.Is4() {
		return false
	}
	return x == y || x.IsUnspecified() || y.IsUnspecified()
}

// reservePorts must precede the record of the attachment.
func (n *CNI) reservePorts(a *attachment) error {
	want, _ := a.CapabilityArgs["portMappings"].([]portMapping)
	if len(want) == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.loadPorts(); err != nil {
		return err
	}
	return n.ports.reserve(a.ID, podName(a.Args), want)
}

func (n *CNI) releasePorts(id runtime.PodID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.ports.of, id)
}

func podName(args [][2]string) string {
	var ns, name string
	for _, kv := range args {
		switch kv[0] {
		case "K8S_POD_NAMESPACE":
			ns = kv[1]
		case "K8S_POD_NAME":
			name = kv[1]
		}
	}
	return ns + "/" + name
}

// loadPorts reads all records once; must be called with mu held. A record that
// cannot be read claims nothing: taking it down is what mends it.
func (n *CNI) loadPorts() error {
	if n.ports.loaded {
		return nil
	}
	ids, err := n.recorded()
	if err != nil {
		return fmt.Errorf("read which host ports are taken: %w", err)
	}
	n.ports.of = map[runtime.PodID]owner{}
	for _, id := range ids {
		data, err := os.ReadFile(n.recordPath(id))
		if err != nil {
			continue
		}
		var a struct {
			Args           [][2]string `json:"args"`
			CapabilityArgs struct {
				PortMappings []portMapping `json:"portMappings"`
			} `json:"capabilityArgs"`
		}
		if json.Unmarshal(data, &a) == nil && len(a.CapabilityArgs.PortMappings) > 0 {
			n.ports.of[id] = owner{podName(a.Args), a.CapabilityArgs.PortMappings}
		}
	}
	n.ports.loaded = true
	return nil
}
