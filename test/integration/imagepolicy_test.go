package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

// TestImagePolicies: signature policies of namespaces, and pinned images.
func TestImagePolicies(t *testing.T) {
	const image = "gcr.io/k8s-staging-cri-tools/test-image-2:latest"
	var dir string
	e, ctx := own(t, harness.Options{Prelude: func(e *harness.Env) error {
		dir = filepath.Join(e.Dir, "policies")
		for name, data := range map[string]string{
			filepath.Join(dir, "locked.json"):             `{"default":[{"type":"reject"}]}`,
			filepath.Join(dir, "damaged.json"):            `{"default":[`,
			filepath.Join(dir, "open.json"):               `{"default":[{"type":"insecureAcceptAnything"}]}`,
			filepath.Join(e.Config+".d", "policies.toml"): fmt.Sprintf("[image]\npolicy_dir = %q\npinned = [\"registry.k8s.io/e2e-test-images/*\"]\n", dir),
		} {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
				return err
			}
		}
		return nil
	}})
	pull := func(namespace string) error {
		_, err := e.Image.PullImage(ctx, &runtimeapi.PullImageRequest{
			Image:         &runtimeapi.ImageSpec{Image: image},
			SandboxConfig: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: namespace}},
		})
		return err
	}
	refused := func(when string) {
		for _, ns := range []string{"locked", "damaged"} {
			err := pull(ns)
			if s, _ := status.FromError(err); s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "SignatureValidationFailed") {
				t.Errorf("%s, namespace %s: %v", when, ns, err)
			}
		}
		if err := pull("../open"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: a namespace that climbs: %v", when, err)
		}
	}
	refused("before the image is here")
	for _, ns := range []string{"open", "without", ""} {
		check(t, pull(ns))
	}
	refused("when the image is here")
	check(t, os.Rename(dir, dir+".away"))
	if err := pull("open"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the directory of policies is gone: %v", err)
	}

	pinned := must[string](t)(e.Pull(ctx, harness.Busybox))
	for _, i := range must[*runtimeapi.ListImagesResponse](t)(e.Image.ListImages(ctx, &runtimeapi.ListImagesRequest{})).Images {
		if i.Pinned != (i.Id == pinned) {
			t.Errorf("image %v is pinned: %t", i.RepoTags, i.Pinned)
		}
	}
	spec := &runtimeapi.ImageSpec{Image: pinned}
	st := must[*runtimeapi.ImageStatusResponse](t)(e.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec}))
	if !st.Image.GetPinned() {
		t.Error("the status does not say that the image is pinned")
	}
	must[*runtimeapi.RemoveImageResponse](t)(e.Image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}))
	if st := must[*runtimeapi.ImageStatusResponse](t)(e.Image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})); st.Image != nil {
		t.Error("pinning is advice, and the client's removal was not obeyed")
	}
}
