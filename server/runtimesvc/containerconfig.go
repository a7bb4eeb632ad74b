package runtimesvc

import (
	"path/filepath"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// containerFacts is what a container's configuration is judged by.
type containerFacts struct {
	pod     runtime.Pod
	handler runtime.HandlerInfo
	host    Host
	// target finds the container whose PID namespace is to be joined.
	target func(id string) (runtime.Container, error)
}

// containerConfig translates all but the image's id, or says all that is wrong.
func containerConfig(in *cri.ContainerConfig, f containerFacts) (runtime.ContainerConfig, error) {
	c := &check{}
	out := runtime.ContainerConfig{
		Name: runtime.ContainerName{
			Name:    c.name("metadata.name", in.GetMetadata().GetName(), true),
			Attempt: in.GetMetadata().GetAttempt(),
		},
		Image:       c.image(in.GetImage(), f.pod.Config.Handler),
		Command:     c.texts("command", in.GetCommand()),
		Args:        c.texts("args", in.GetArgs()),
		Env:         c.env(in.GetEnvs()),
		Labels:      c.stringMap("labels", in.GetLabels()),
		Annotations: c.stringMap("annotations", in.GetAnnotations()),
		LogPath:     c.logPath(f.pod.Config.LogDirectory, in.GetLogPath()),
		Stdin:       in.GetStdin(),
		StdinOnce:   in.GetStdinOnce(),
		TTY:         in.GetTty(),
		StopSignal:  c.signal("stop_signal", in.GetStopSignal()),
	}
	if in.GetWorkingDir() != "" {
		out.WorkingDir = c.abs("working_dir", in.GetWorkingDir())
	}
	if c.count("mounts", len(in.GetMounts()), maxEntries) {
		for i, m := range in.GetMounts() {
			out.Mounts = append(out.Mounts, c.mount(index("mounts", i), m, f))
		}
	}
	if c.count("devices", len(in.GetDevices()), maxEntries) {
		for i, d := range in.GetDevices() {
			out.Devices = append(out.Devices, c.device(index("devices", i), d))
		}
	}
	if c.count("CDI_devices", len(in.GetCDIDevices()), maxEntries) {
		for i, d := range in.GetCDIDevices() {
			out.CDIDevices = append(out.CDIDevices, c.word(index("CDI_devices", i), d.GetName()))
		}
	}
	if in.GetWindows() != nil {
		c.fail("windows", "Windows containers are not supported")
	}
	linux := in.GetLinux()
	res := linux.GetResources()
	if res == nil {
		res = &cri.LinuxContainerResources{}
	}
	out.Resources = c.resources("linux.resources", res, f.host)
	if out.Resources.OOMScoreAdj == nil {
		// Unspecified is 0, not what the daemon, itself protected, would hand down.
		out.Resources.OOMScoreAdj = new(int)
	}
	out.Security = c.containerSecurity(linux.GetSecurityContext(), f)
	return out, c.err()
}

// image checks what names the image and returns it as the user wrote it.
func (c *check) image(in *cri.ImageSpec, handler string) string {
	if in.GetImage() == "" {
		c.fail("image.image", "must not be empty")
	}
	c.text("image.image", in.GetImage())
	c.text("image.user_specified_image", in.GetUserSpecifiedImage())
	c.stringMap("image.annotations", in.GetAnnotations())
	if h := in.GetRuntimeHandler(); h != "" && h != handler {
		c.fail("image.runtime_handler", "%q is not the pod's handler %q", h, handler)
	}
	if s := in.GetUserSpecifiedImage(); s != "" {
		return s
	}
	return in.GetImage()
}

func (c *check) env(in []*cri.KeyValue) []runtime.EnvVar {
	if !c.count("envs", len(in), maxEntries) {
		return nil
	}
	var out []runtime.EnvVar
	for i, kv := range in {
		if k := kv.GetKey(); k == "" || strings.ContainsAny(k, "=\x00") {
			c.fail(index("envs", i)+".key", "%q must not be empty or hold = or NUL", k)
		}
		if strings.IndexByte(string(kv.GetValue()), 0) >= 0 {
			c.fail(index("envs", i)+".value", "holds a NUL byte")
		}
		out = append(out, runtime.EnvVar{Key: kv.GetKey(), Value: kv.GetValue()})
	}
	return out
}

// logPath joins the pod's log directory and the container's path, which must stay in it.
func (c *check) logPath(dir, path string) string {
	if path == "" {
		return ""
	}
	if dir == "" {
		c.fail("log_path", "the pod has no log_directory to put %q in", path)
		return ""
	}
	if !filepath.IsLocal(path) || strings.IndexByte(path, 0) >= 0 || filepath.Clean(path) == "." {
		c.fail("log_path", "%q must be a path inside the pod's log_directory", path)
		return ""
	}
	joined := filepath.Join(dir, path)
	if len(joined) > maxPath {
		c.fail("log_path", "is longer than %d bytes", maxPath)
	}
	return joined
}

func (c *check) mount(field string, in *cri.Mount, f containerFacts) runtime.Mount {
	handler := f.handler
	out := runtime.Mount{
		ContainerPath:     c.abs(field+".container_path", in.GetContainerPath()),
		ReadOnly:          in.GetReadonly(),
		RecursiveReadOnly: in.GetRecursiveReadOnly(),
		SELinuxRelabel:    in.GetSelinuxRelabel(),
	}
	if out.ContainerPath == "/" {
		c.fail(field+".container_path", "cannot be the root")
	}
	switch {
	case in.GetImage() != nil:
		c.imageMount(field, in, f, &out)
	case in.GetImageSubPath() != "":
		c.fail(field+".image_sub_path", "goes with an image only")
	default:
		out.HostPath = c.abs(field+".host_path", in.GetHostPath())
	}
	switch in.GetPropagation() {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		out.Propagation = runtime.PropagationPrivate
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Propagation = runtime.PropagationHostToContain
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.Propagation = runtime.PropagationBidirectional
	default:
		c.fail(field+".propagation", "unknown mode %d", in.GetPropagation())
	}
	if out.RecursiveReadOnly {
		switch {
		case !out.ReadOnly || out.Propagation != runtime.PropagationPrivate:
			c.fail(field+".recursive_read_only", "needs readonly and private propagation")
		case !handler.RecursiveReadOnly:
			c.fail(field+".recursive_read_only", "runtime handler %q cannot do it on this machine", handler.Name)
		}
	}
	out.UIDMappings = c.mappings(field+".uidMappings", in.GetUidMappings())
	out.GIDMappings = c.mappings(field+".gidMappings", in.GetGidMappings())
	switch given := len(in.GetUidMappings()) > 0; {
	case given != (len(in.GetGidMappings()) > 0):
		c.fail(field+".uidMappings", "go with gidMappings only, and those with them")
	case given && !handler.UserNamespaces:
		c.fail(field+".uidMappings", "runtime handler %q has no id-mapped mounts on this machine", handler.Name)
	}
	out.Options = c.mountOptions(field+".mount_options", in.GetMountOptions())
	return out
}

// imageMount fills in a mount of an image, which is read-only whatever the
// request says.
func (c *check) imageMount(field string, in *cri.Mount, f containerFacts, out *runtime.Mount) {
	out.Image = in.GetImage().GetImage()
	if out.Image == "" {
		c.fail(field+".image.image", "must not be empty")
	}
	c.text(field+".image.image", out.Image)
	if h := in.GetImage().GetRuntimeHandler(); h != "" && h != f.pod.Config.Handler {
		c.fail(field+".image.runtime_handler", "%q is not the pod's handler %q", h, f.pod.Config.Handler)
	}
	if in.GetHostPath() != "" {
		c.fail(field+".host_path", "cannot go with an image")
	}
	if in.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE {
		c.fail(field+".propagation", "of an image must be private")
	}
	if s := in.GetImageSubPath(); s != "" {
		if !filepath.IsLocal(s) || strings.IndexByte(s, 0) >= 0 || len(s) > maxPath {
			c.fail(field+".image_sub_path", "%.200q must be a path inside the image", s)
		}
		out.ImageSubPath = s
	}
	out.ReadOnly = true
	if len(in.GetUidMappings()) > 0 {
		if u := f.pod.Config.Namespaces.User; u == nil ||
			!slices.Equal(u.UIDs, c.mappings(field+".uidMappings", in.GetUidMappings())) ||
			!slices.Equal(u.GIDs, c.mappings(field+".gidMappings", in.GetGidMappings())) {
			c.fail(field+".uidMappings", "of an image must be the pod's")
		}
	}
}

// mountOptions lets through what takes rights away from the container; what
// gives some is not for a client to say.
func (c *check) mountOptions(field string, in []string) []string {
	for i, o := range in {
		if !slices.Contains(runtime.MountOptions, o) {
			c.fail(index(field, i), "%.80q is none of %s", o, strings.Join(runtime.MountOptions, ", "))
		} else if slices.Contains(in[:i], o) {
			c.fail(index(field, i), "%q is there twice", o)
		}
	}
	return in
}

func (c *check) device(field string, in *cri.Device) runtime.Device {
	out := runtime.Device{
		HostPath:      c.abs(field+".host_path", in.GetHostPath()),
		ContainerPath: in.GetContainerPath(),
		Permissions:   in.GetPermissions(),
	}
	if out.ContainerPath == "" {
		out.ContainerPath = out.HostPath
	} else {
		out.ContainerPath = c.abs(field+".container_path", out.ContainerPath)
	}
	seen := ""
	for _, r := range out.Permissions {
		if !strings.ContainsRune("rwm", r) || strings.ContainsRune(seen, r) {
			c.fail(field+".permissions", "%q must be made of r, w and m, each at most once", out.Permissions)
			break
		}
		seen += string(r)
	}
	if out.Permissions == "" {
		out.Permissions = "rwm"
	}
	return out
}

// containerNamespaces follows the pod. A namespace mode of POD means the
// pod's, whatever that is; the host's can be had only by a pod that has it.
func (c *check) containerNamespaces(in *cri.NamespaceOption, f containerFacts) runtime.Namespaces {
	const at = "linux.security_context.namespace_options."
	out := f.pod.Config.Namespaces
	out.Target, out.User = "", nil
	if in == nil {
		return out
	}
	c.follow(at+"network", in.GetNetwork(), out.Network)
	c.follow(at+"ipc", in.GetIpc(), out.IPC)
	if u := in.GetUsernsOptions(); u != nil && !sameUser(c.userNamespace(at+"userns_options", u), f.pod.Config.Namespaces.User) {
		c.fail(at+"userns_options", "must be the pod's")
	}
	switch in.GetPid() {
	case cri.NamespaceMode_CONTAINER:
		out.PID = runtime.NamespaceContainer
	case cri.NamespaceMode_TARGET:
		out.PID = runtime.NamespaceTarget
		out.Target = c.target(at+"target_id", in.GetTargetId(), f)
		return out
	default:
		c.follow(at+"pid", in.GetPid(), out.PID)
	}
	if in.GetTargetId() != "" {
		c.fail(at+"target_id", "goes with pid mode TARGET only")
	}
	return out
}

func sameUser(a, b *runtime.UserNamespace) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.UIDs, b.UIDs) && slices.Equal(a.GIDs, b.GIDs)
}

func (c *check) follow(field string, m cri.NamespaceMode, pod runtime.NamespaceMode) {
	if c.podMode(field, m) == runtime.NamespaceNode && pod != runtime.NamespaceNode {
		c.fail(field, "the pod does not have the host's namespace, so its containers cannot")
	}
}

func (c *check) target(field, id string, f containerFacts) runtime.ContainerID {
	if !isID(id) {
		c.fail(field, "%q is no container id", id)
		return ""
	}
	t, err := f.target(id)
	switch {
	case err != nil:
		c.fail(field, "%v", err)
	case t.PodID != f.pod.ID:
		c.fail(field, "container %s is in another pod", id)
	}
	return t.ID
}
