package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/ocid-io/ocid/internal/atomicfile"
	"github.com/ocid-io/ocid/runtime"
)

const (
	ifName        = "eth0"
	recordSuffix  = ".json"
	recordVersion = 1
)

// attachment is written before the first plugin runs and removed after the
// last has undone its part.
type attachment struct {
	Version        int             `json:"version"`
	ID             runtime.PodID   `json:"id"`
	NetNS          string          `json:"netns"`
	Args           [][2]string     `json:"args"`
	CapabilityArgs map[string]any  `json:"capabilityArgs,omitempty"`
	Config         json.RawMessage `json:"config"`
}

func (a *attachment) runtimeConf(netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: string(a.ID), NetNS: netns, IfName: ifName,
		Args: a.Args, CapabilityArgs: a.CapabilityArgs,
	}
}

func (n *CNI) recordPath(id runtime.PodID) string {
	return filepath.Join(n.records, string(id)+recordSuffix)
}

func (n *CNI) writeRecord(a *attachment) error {
	data, err := json.Marshal(a)
	if err == nil {
		err = atomicfile.Write(n.recordPath(a.ID), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record network attachment: %w", err)
	}
	return nil
}

// readRecord returns nil if there is no attachment. A record that cannot be
// read stands for one made with the current configuration.
func (n *CNI) readRecord(id runtime.PodID) (*attachment, *libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(n.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read network attachment: %w", err)
	}
	var a attachment
	var list *libcni.NetworkConfigList
	if err = json.Unmarshal(data, &a); err == nil && (a.Version != recordVersion || a.ID != id) {
		err = errors.New("wrong version or id")
	}
	if err == nil {
		list, err = libcni.NetworkConfFromBytes(a.Config)
	}
	if err == nil {
		return &a, list, nil
	}
	n.log.Warn("network attachment is damaged, using the current configuration", "pod", id, "error", err)
	list, _, cerr := n.conf.current()
	if cerr != nil {
		return nil, nil, cerr
	}
	return &attachment{Version: recordVersion, ID: id, Args: [][2]string{{"IgnoreUnknown", "1"}}}, list, nil
}

func (n *CNI) removeRecord(id runtime.PodID) error {
	if err := os.Remove(n.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget network attachment: %w", err)
	}
	n.releasePorts(id)
	return nil
}

// recorded lists the pods that have attachments.
func (n *CNI) recorded() ([]runtime.PodID, error) {
	entries, err := os.ReadDir(n.records)
	if err != nil {
		return nil, err
	}
	var ids []runtime.PodID
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok && e.Type().IsRegular() {
			ids = append(ids, runtime.PodID(id))
		}
	}
	return ids, nil
}

func supports(list *libcni.NetworkConfigList, capability string) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities[capability] {
			return true
		}
	}
	return false
}

// checkArgs keeps a name from ending its argument and beginning another.
func checkArgs(args [][2]string) error {
	for _, kv := range args {
		if strings.ContainsAny(kv[1], ";=\x00\n") {
			return fmt.Errorf("%w: %s = %.200q cannot be a CNI argument", runtime.ErrInvalid, kv[0], kv[1])
		}
	}
	return nil
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// capabilityArgs are what the pod asks of plugins that have a capability for it.
func (n *CNI) capabilityArgs(list *libcni.NetworkConfigList, id runtime.PodID, cfg *runtime.PodConfig) (map[string]any, error) {
	args := map[string]any{}
	var ports []portMapping
	for _, p := range cfg.PortMappings {
		if p.HostPort > 0 {
			ports = append(ports, portMapping{p.HostPort, p.ContainerPort, strings.ToLower(p.Protocol), p.HostIP})
		}
	}
	if len(ports) > 0 {
		if !supports(list, "portMappings") {
			return nil, fmt.Errorf("%w: the pod has host ports and no plugin of network %q can map them", runtime.ErrInvalid, list.Name)
		}
		args["portMappings"] = ports
	}
	band, err := bandwidth(cfg.Annotations)
	if err != nil {
		return nil, err
	}
	if band != nil {
		if !supports(list, "bandwidth") {
			n.log.Warn("no plugin can limit bandwidth, the pod's annotation has no effect", "pod", id, "network", list.Name)
		}
		args["bandwidth"] = band
	}
	if d := cfg.DNS; d != nil {
		args["dns"] = map[string][]string{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	if cfg.CgroupParent != "" {
		args["cgroupPath"] = cfg.CgroupParent
	}
	return args, nil
}

func bandwidth(annotations map[string]string) (map[string]uint64, error) {
	var out map[string]uint64
	for _, dir := range []string{"ingress", "egress"} {
		key := "kubernetes.io/" + dir + "-bandwidth"
		text, ok := annotations[key]
		if !ok {
			continue
		}
		rate, err := parseRate(text)
		if err != nil {
			return nil, fmt.Errorf("%w: annotation %s = %.80q: %w", runtime.ErrInvalid, key, text, err)
		}
		if out == nil {
			out = map[string]uint64{}
		}
		out[dir+"Rate"], out[dir+"Burst"] = rate, math.MaxInt32
	}
	return out, nil
}

// rateUnits are the suffixes of a Kubernetes quantity that make sense for
// bits per second.
var rateUnits = []struct {
	suffix string
	factor float64
}{
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"Pi", 1 << 50},
	{"k", 1e3},
	{"M", 1e6},
	{"G", 1e9},
	{"T", 1e12},
	{"P", 1e15},
	{"", 1},
}

func parseRate(text string) (uint64, error) {
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, errors.New("not a quantity")
		}
		if v *= u.factor; v < 1e3 || v > 1e15 {
			return 0, errors.New("must be between 1k and 1P")
		}
		return uint64(v), nil
	}
	return 0, errors.New("not a quantity")
}

func hostUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }
