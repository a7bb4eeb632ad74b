// Package runtimesvc is the CRI v1 RuntimeService. It translates: requests
// into the types of package runtime, records into CRI messages, and nothing
// else. CRI types stop here.
//
// Invariants:
//   - every field of a pod's and a container's configuration is honoured, or
//     refused with an error that names it; the table in fields_test.go says which;
//   - lists and statuses come from memory and make no slow call per item;
//   - stopping and removing what does not exist is success;
//   - a pod or container that is still being created, or is being removed for
//     good, is not listed.
package runtimesvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// Pods runs pods and knows them. Run, Stop and Remove are idempotent; Run
// joins an operation on the same name. Pod finds by id or unambiguous prefix.
type Pods interface {
	RunPod(ctx context.Context, cfg runtime.PodConfig) (runtime.PodID, error)
	StopPod(ctx context.Context, id runtime.PodID) error
	RemovePod(ctx context.Context, id runtime.PodID) error
	Pod(id string) (runtime.Pod, error)
	PodViews() []*runtime.Pod
}

// Containers carries containers through their lives, with the same promises.
type Containers interface {
	CreateContainer(ctx context.Context, pod runtime.PodID, cfg runtime.ContainerConfig) (runtime.ContainerID, error)
	StartContainer(ctx context.Context, id runtime.ContainerID) error
	StopContainer(ctx context.Context, id runtime.ContainerID, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id runtime.ContainerID) error
}

// Records answers from memory. Container finds by id or unambiguous prefix.
// Views, here and in Pods, are shared: nobody may change what they return.
type Records interface {
	Container(id string) (runtime.Container, error)
	ContainerViews() []*runtime.Container
	// ContainerViewsOf costs what one pod has, however many others there are.
	ContainerViewsOf(pod runtime.PodID) []*runtime.Container
}

// Events tells of changes: it calls each for every event in order, and ready
// once when none can be missed any more. A caller that is too slow gets
// runtime.ErrLost.
type Events interface {
	Events(ctx context.Context, ready func() error, each func(*runtime.Event) error) error
}

// Tuning changes running containers.
type Tuning interface {
	ReopenLog(ctx context.Context, id runtime.ContainerID) error
	UpdateResources(ctx context.Context, id runtime.ContainerID, r runtime.Resources) error
	// UpdatePodResources notes what the pod's containers may use together and
	// what the pod costs beside them; nil leaves what is known.
	UpdatePodResources(ctx context.Context, id runtime.PodID, resources, overhead *runtime.Resources) error
}

// Execs runs a command to its end. A timeout of 0 is none; one that runs out
// is runtime.ErrTimeout. The writers are not used after the return.
type Execs interface {
	ExecSync(ctx context.Context, id runtime.ContainerID, cmd []string, timeout time.Duration, stdout, stderr io.Writer) (exitCode int32, err error)
}

// Usages reads what containers and pods use.
type Usages interface {
	ContainerUsage(ctx context.Context, id runtime.ContainerID) (runtime.Usage, error)
	PodUsage(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error)
	// ContainerDetail and PodDetail read Usage.Detail too.
	ContainerDetail(ctx context.Context, id runtime.ContainerID) (runtime.Usage, error)
	PodDetail(ctx context.Context, id runtime.PodID) (runtime.PodUsage, error)
}

// Node is what is true of the runtime as a whole.
type Node interface {
	// RuntimeReady and NetworkReady report nil or why pods cannot be run now.
	RuntimeReady() error
	NetworkReady() error
	Handlers() []runtime.HandlerInfo
	UpdateRuntimeConfig(podCIDR string) error
	CgroupDriver() string
}

// NetworkChecker may be implemented by a Node to have a pod's attachment looked
// at by the network's plugins, for a verbose status.
type NetworkChecker interface {
	CheckNetwork(ctx context.Context, id runtime.PodID) error
}

// ImageResolver finds the id of an image that is here.
type ImageResolver interface {
	Resolve(ctx context.Context, ref string) (id string, err error)
}

// ImageReferrer may be implemented by an ImageResolver to tell the
// "name@digest" under which an image is to be shown; "" shows its id.
type ImageReferrer interface {
	Reference(ctx context.Context, id string) string
}

// Host tells what the machine can do.
type Host struct {
	AppArmor bool // the kernel has it and it is on
	CgroupV2 bool // unified hierarchy only
	Hugetlb  bool // huge pages can be limited
}

// Options is what a Service is made of. Interfaces are required.
type Options struct {
	Pods       Pods
	Containers Containers
	Records    Records
	Events     Events
	Tuning     Tuning
	Execs      Execs
	Streamable Streamable
	StreamURLs StreamURLs
	Usages     Usages
	Snapshots  Snapshots
	Node       Node
	Images     ImageResolver
	Host       Host
	Version    string // of ocid
	Log        *slog.Logger
	// ToStatus turns errors into gRPC statuses; nil leaves them to the server.
	ToStatus func(error) error
	// Info adds entries to Status(verbose), each shown as JSON; may be nil.
	Info func() map[string]any
}

// Service implements cri.RuntimeServiceServer. What it does not have answers
// Unimplemented with the method's name.
type Service struct {
	cri.UnimplementedRuntimeServiceServer
	o     Options
	log   *slog.Logger
	rates rates
}

// New returns a Service.
func New(o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ToStatus == nil {
		o.ToStatus = func(err error) error { return err }
	}
	return &Service{o: o, log: o.Log, rates: rates{last: map[string]sample{}}}
}

// Version answers with the versions of the API and of ocid.
func (s *Service) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API; has never been another
		RuntimeName:       "ocid",
		RuntimeVersion:    s.o.Version,
		RuntimeApiVersion: "v1",
	}, nil
}

// Status tells whether pods can be run, and on which network.
func (s *Service) Status(_ context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	ready := &cri.RuntimeCondition{Type: cri.RuntimeReady, Status: true}
	if err := s.o.Node.RuntimeReady(); err != nil {
		ready.Status = false
		ready.Reason = "RuntimeNotReady"
		ready.Message = err.Error()
	}
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.o.Node.NetworkReady(); err != nil {
		network.Status = false
		network.Reason = "NetworkPluginNotReady"
		network.Message = err.Error()
	}
	resp := &cri.StatusResponse{
		Status:   &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{ready, network}},
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for _, h := range s.o.Node.Handlers() {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{
			Name: h.Name,
			Features: &cri.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.RecursiveReadOnly,
				UserNamespaces:          h.UserNamespaces,
			},
		})
	}
	if req.GetVerbose() {
		info := map[string]any{"version": s.o.Version, "cgroupDriver": s.o.Node.CgroupDriver()}
		if s.o.Info != nil {
			for k, v := range s.o.Info() {
				info[k] = v
			}
		}
		resp.Info = s.verbose(info)
	}
	return resp, nil
}

// verbose renders each value as JSON, as CRI asks of "info".
func (s *Service) verbose(info map[string]any) map[string]string {
	out := make(map[string]string, len(info))
	for k, v := range info {
		b, err := json.Marshal(v)
		if err != nil {
			s.log.Warn("cannot show verbose information", "key", k, "error", err)
			continue
		}
		out[k] = string(b)
	}
	return out
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Service) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.o.Node.CgroupDriver() == "systemd" {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod address ranges.
func (s *Service) UpdateRuntimeConfig(_ context.Context, req *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	ranges := strings.Split(cidr, ",")
	if len(ranges) > 16 {
		return nil, s.err(fmt.Errorf("%w: pod_cidr: %d ranges", runtime.ErrInvalid, len(ranges)))
	}
	for _, r := range ranges {
		if _, err := netip.ParsePrefix(r); err != nil {
			return nil, s.err(fmt.Errorf("%w: pod_cidr: %w", runtime.ErrInvalid, err))
		}
	}
	if err := s.o.Node.UpdateRuntimeConfig(cidr); err != nil {
		return nil, s.err(err)
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}

func (s *Service) err(err error) error { return s.o.ToStatus(err) }
