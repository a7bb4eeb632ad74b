package server

import (
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/internal/stages"
)

// maxSubject bounds what a client can write into the log as a name.
const maxSubject = 256

// subject tells what a request or response is about, with the keys that every
// line of the log uses: pod, container and image, and the pod's name where the
// client gives it.
func subject(message any) []stages.Attr {
	var out []stages.Attr
	add := func(key, value string) {
		if value != "" {
			out = append(out, stages.Attr{Key: key, Value: strings.ToValidUTF8(value[:min(len(value), maxSubject)], "")})
		}
	}
	if m, ok := message.(interface{ GetPodSandboxId() string }); ok {
		add("pod", m.GetPodSandboxId())
	}
	if m, ok := message.(interface{ GetContainerId() string }); ok {
		add("container", m.GetContainerId())
	}
	switch m := message.(type) {
	case *cri.RunPodSandboxRequest:
		add("namespace", m.GetConfig().GetMetadata().GetNamespace())
		add("name", m.GetConfig().GetMetadata().GetName())
	case *cri.CreateContainerRequest:
		add("name", m.GetConfig().GetMetadata().GetName())
		add("image", m.GetConfig().GetImage().GetImage())
	case interface{ GetImage() *cri.ImageSpec }:
		add("image", m.GetImage().GetImage())
	}
	return out
}
