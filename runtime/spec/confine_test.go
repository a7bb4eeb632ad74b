package spec

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ocid-io/ocid/runtime"
)

func TestAppArmorKinds(t *testing.T) {
	for _, c := range []struct {
		sec  runtime.Security
		want string
	}{
		{runtime.Security{}, "ocid-default"}, // Kubernetes: what names none runs under the default
		{runtime.Security{AppArmor: runtime.SeccompDefault}, "ocid-default"},
		{runtime.Security{AppArmor: runtime.SeccompUnconfined}, ""},
		{runtime.Security{AppArmor: runtime.SeccompLocalhost, AppArmorProfile: "web"}, "web"},
		{runtime.Security{AppArmor: runtime.SeccompLocalhost, AppArmorProfile: "web", Privileged: true}, ""},
		{runtime.Security{Privileged: true}, ""},
	} {
		s := &specs.Spec{Process: &specs.Process{}}
		in := Input{Container: runtime.ContainerConfig{Security: c.sec}, AppArmorDefault: "ocid-default"}
		if err := stepAppArmor(&in, s); err != nil || s.Process.ApparmorProfile != c.want {
			t.Errorf("%+v: %q %v, want %q", c.sec, s.Process.ApparmorProfile, err, c.want)
		}
	}
}

func TestSELinuxLabels(t *testing.T) {
	const level = "s0:c1,c2"
	for name, c := range map[string]struct {
		pod, ctr       *runtime.SELinux
		privileged     bool
		process, mount string
	}{
		"nothing asked":   {process: "system_u:system_r:container_t:s0:c1,c2", mount: "system_u:object_r:container_file_t:s0:c1,c2"},
		"privileged":      {privileged: true, process: "system_u:system_r:spc_t:s0:c1,c2", mount: "system_u:object_r:container_file_t:s0:c1,c2"},
		"type by the pod": {pod: &runtime.SELinux{Type: "web_t"}, process: "system_u:system_r:web_t:s0:c1,c2", mount: "system_u:object_r:container_file_t:s0:c1,c2"},
		"level by the container": {
			pod: &runtime.SELinux{Level: "s0:c7"}, ctr: &runtime.SELinux{Level: "s0:c8", User: "u", Role: "r"},
			process: "u:r:container_t:s0:c8", mount: "system_u:object_r:container_file_t:s0:c8",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{
				SELinux: true, Pod: runtime.Pod{SELinuxLevel: level, Config: runtime.PodConfig{Security: runtime.Security{SELinux: c.pod}}},
				Container: runtime.ContainerConfig{Security: runtime.Security{SELinux: c.ctr, Privileged: c.privileged}},
			}
			s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
			if err := stepSELinux(&in, s); err != nil || s.Process.SelinuxLabel != c.process || s.Linux.MountLabel != c.mount {
				t.Errorf("%v: %q %q", err, s.Process.SelinuxLabel, s.Linux.MountLabel)
			}
			in.SELinux = false
			s = &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
			if err := stepSELinux(&in, s); err != nil || s.Process.SelinuxLabel != "" {
				t.Errorf("without SELinux: %v %q", err, s.Process.SelinuxLabel)
			}
		})
	}
}
