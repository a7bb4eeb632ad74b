package spec

import (
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations that ocid writes on every container.
const (
	AnnotationContainerID      = "io.ocid.container-id"
	AnnotationContainerName    = "io.ocid.container-name"
	AnnotationContainerAttempt = "io.ocid.container-attempt"
	AnnotationPodID            = "io.ocid.pod-id"
	AnnotationPodName          = "io.ocid.pod-name"
	AnnotationPodNamespace     = "io.ocid.pod-namespace"
	AnnotationPodUID           = "io.ocid.pod-uid"
	AnnotationImage            = "io.ocid.image"
)

// clientAnnotations are the prefixes of the client's annotations that reach
// the OCI runtime: the kubelet's own bookkeeping, which no runtime interprets.
// It is an allow list because runtimes turn some keys into systemd properties
// (org.systemd.property.*), hypervisor settings (io.katacontainers.*) or
// behaviour of their own (run.oci.*), and new ones appear without notice.
var clientAnnotations = []string{"io.kubernetes.container.", "io.kubernetes.pod."}

func stepAnnotations(in *Input, s *specs.Spec) error {
	out := map[string]string{}
	for k, v := range in.Container.Annotations {
		for _, p := range clientAnnotations {
			if strings.HasPrefix(k, p) {
				out[k] = v
			}
		}
	}
	pod := &in.Pod.Config.Name
	for k, v := range map[string]string{
		AnnotationContainerID:   string(in.ContainerID),
		AnnotationContainerName: in.Container.Name.Name,
		AnnotationPodID:         string(in.Pod.ID),
		AnnotationPodName:       pod.Name,
		AnnotationPodNamespace:  pod.Namespace,
		AnnotationPodUID:        pod.UID,
		AnnotationImage:         in.Container.Image,
	} {
		if v != "" {
			out[k] = v
		}
	}
	if in.ContainerID != "" {
		out[AnnotationContainerAttempt] = strconv.FormatUint(uint64(in.Container.Name.Attempt), 10)
	}
	if len(out) > 0 {
		s.Annotations = out
	}
	return nil
}
