package runtimesvc

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/runtime"
)

// podSecurity translates what applies to the pod's own processes.
func (c *check) podSecurity(in *cri.LinuxSandboxSecurityContext, host Host) runtime.Security {
	const at = "linux.security_context."
	out := runtime.Security{
		Privileged:         in.GetPrivileged(),
		RunAsUser:          c.id(at+"run_as_user", in.GetRunAsUser()),
		RunAsGroup:         c.id(at+"run_as_group", in.GetRunAsGroup()),
		SupplementalGroups: c.groups(at+"supplemental_groups", in.GetSupplementalGroups()),
		GroupsPolicy:       c.groupsPolicy(at+"supplemental_groups_policy", in.GetSupplementalGroupsPolicy()),
		ReadOnlyRootfs:     in.GetReadonlyRootfs(),
		SELinux:            c.selinux(at+"selinux_options", in.GetSelinuxOptions()),
	}
	if out.RunAsGroup != nil && out.RunAsUser == nil {
		c.fail(at+"run_as_group", "needs run_as_user")
	}
	out.Seccomp, out.SeccompPath = c.seccomp(at+"seccomp", in.GetSeccomp(), in.GetSeccompProfilePath()) //nolint:staticcheck // deprecated, but still sent
	out.AppArmor, out.AppArmorProfile = c.appArmor(at+"apparmor", in.GetApparmor(), "", host)
	return out
}

// containerSecurity translates what confines a container's processes.
func (c *check) containerSecurity(in *cri.LinuxContainerSecurityContext, f containerFacts) runtime.Security {
	const at = "linux.security_context."
	out := runtime.Security{
		Privileged:         in.GetPrivileged(),
		AddCapabilities:    c.capabilities(at+"capabilities.add_capabilities", in.GetCapabilities().GetAddCapabilities()),
		DropCapabilities:   c.capabilities(at+"capabilities.drop_capabilities", in.GetCapabilities().GetDropCapabilities()),
		AmbientCaps:        c.capabilities(at+"capabilities.add_ambient_capabilities", in.GetCapabilities().GetAddAmbientCapabilities()),
		RunAsUser:          c.id(at+"run_as_user", in.GetRunAsUser()),
		RunAsUserName:      in.GetRunAsUsername(),
		RunAsGroup:         c.id(at+"run_as_group", in.GetRunAsGroup()),
		SupplementalGroups: c.groups(at+"supplemental_groups", in.GetSupplementalGroups()),
		GroupsPolicy:       c.groupsPolicy(at+"supplemental_groups_policy", in.GetSupplementalGroupsPolicy()),
		ReadOnlyRootfs:     in.GetReadonlyRootfs(),
		NoNewPrivileges:    in.GetNoNewPrivs(),
		MaskedPaths:        c.paths(at+"masked_paths", in.GetMaskedPaths()),
		ReadOnlyPaths:      c.paths(at+"readonly_paths", in.GetReadonlyPaths()),
		SELinux:            c.selinux(at+"selinux_options", in.GetSelinuxOptions()),
		Namespaces:         c.containerNamespaces(in.GetNamespaceOptions(), f),
	}
	if n := out.RunAsUserName; n != "" {
		if out.RunAsUser != nil {
			c.fail(at+"run_as_username", "cannot go with run_as_user")
		}
		if len(n) > maxName || hasControl(n) || strings.ContainsAny(n, ":/ ") {
			c.fail(at+"run_as_username", "%q is no user name", n)
		}
	}
	if out.RunAsGroup != nil && out.RunAsUser == nil && out.RunAsUserName == "" {
		c.fail(at+"run_as_group", "needs run_as_user or run_as_username")
	}
	out.Seccomp, out.SeccompPath = c.seccomp(at+"seccomp", in.GetSeccomp(), in.GetSeccompProfilePath())              //nolint:staticcheck // deprecated, but still sent
	out.AppArmor, out.AppArmorProfile = c.appArmor(at+"apparmor", in.GetApparmor(), in.GetApparmorProfile(), f.host) //nolint:staticcheck // deprecated, but still sent
	if out.Privileged {
		if !f.pod.Config.Privileged {
			c.fail(at+"privileged", "the pod was not declared privileged, so its containers cannot be")
		}
		// CRI: privileged takes all of these away.
		out.MaskedPaths, out.ReadOnlyPaths = nil, nil
		out.Seccomp, out.SeccompPath = runtime.SeccompUnconfined, ""
		out.AppArmor, out.AppArmorProfile = runtime.SeccompUnconfined, ""
	}
	return out
}

func (c *check) id(field string, in *cri.Int64Value) *int64 {
	if in == nil {
		return nil
	}
	c.between(field, in.GetValue(), 0, maxID)
	return ptr(in.GetValue())
}

func (c *check) groups(field string, in []int64) []int64 {
	if !c.count(field, len(in), maxEntries) {
		return nil
	}
	for i, g := range in {
		c.between(index(field, i), g, 0, maxID)
	}
	return in
}

func (c *check) groupsPolicy(field string, in cri.SupplementalGroupsPolicy) runtime.GroupsPolicy {
	switch in {
	case cri.SupplementalGroupsPolicy_Merge:
		return runtime.GroupsMerge
	case cri.SupplementalGroupsPolicy_Strict:
		return runtime.GroupsStrict
	default:
		c.fail(field, "unknown policy %d", in)
		return ""
	}
}

// capabilities returns names in upper case and without CAP_, all of them
// known: a name nobody knows would be dropped in silence further down.
func (c *check) capabilities(field string, in []string) []string {
	if !c.count(field, len(in), 256) {
		return nil
	}
	var out []string
	for i, name := range in {
		n := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if n != "ALL" && !slices.Contains(knownCaps, n) {
			c.fail(index(field, i), "unknown capability %q", name)
		}
		out = append(out, n)
	}
	return out
}

var knownCaps = func() []string {
	var out []string
	for _, k := range capability.ListKnown() {
		out = append(out, strings.ToUpper(k.String()))
	}
	return out
}()

func (c *check) selinux(field string, in *cri.SELinuxOption) *runtime.SELinux {
	if in.GetUser()+in.GetRole()+in.GetType()+in.GetLevel() == "" {
		return nil
	}
	for name, v := range map[string]string{"user": in.GetUser(), "role": in.GetRole(), "type": in.GetType()} {
		if len(v) > maxName || hasControl(v) || strings.ContainsAny(v, ": ") {
			c.fail(field+"."+name, "%q cannot be part of a label", v)
		}
	}
	if v := in.GetLevel(); len(v) > maxName || hasControl(v) || strings.Contains(v, " ") {
		c.fail(field+".level", "%q cannot be part of a label", v)
	}
	return &runtime.SELinux{User: in.GetUser(), Role: in.GetRole(), Type: in.GetType(), Level: in.GetLevel()}
}

// profile reads a profile given as a message, as one of the deprecated
// strings, or as both when they say the same. The zero kind is "not given".
func (c *check) profile(field string, in *cri.SecurityProfile, old string) (kind runtime.ProfileKind, ref string) {
	oldKind, oldRef := c.oldProfile(field, old)
	if in == nil {
		return oldKind, oldRef
	}
	switch in.GetProfileType() {
	case cri.SecurityProfile_RuntimeDefault:
		kind = runtime.SeccompDefault
	case cri.SecurityProfile_Unconfined:
		kind = runtime.SeccompUnconfined
	case cri.SecurityProfile_Localhost:
		kind, ref = runtime.SeccompLocalhost, in.GetLocalhostRef()
	default:
		c.fail(field+".profile_type", "unknown type %d", in.GetProfileType())
	}
	if kind != runtime.SeccompLocalhost && in.GetLocalhostRef() != "" {
		c.fail(field+".localhost_ref", "goes with profile type Localhost only")
	}
	if old != "" && (oldKind != kind || oldRef != ref) {
		c.fail(field, "contradicts the deprecated %q", old)
	}
	return kind, ref
}

func (c *check) oldProfile(field, s string) (runtime.ProfileKind, string) {
	switch s {
	case "":
		return "", ""
	case "runtime/default":
		return runtime.SeccompDefault, ""
	case "unconfined":
		return runtime.SeccompUnconfined, ""
	}
	if ref, ok := strings.CutPrefix(s, "localhost/"); ok {
		return runtime.SeccompLocalhost, ref
	}
	c.fail(field, "%q is none of runtime/default, unconfined, localhost/...", s)
	return "", ""
}

func (c *check) seccomp(field string, in *cri.SecurityProfile, old string) (runtime.SeccompKind, string) {
	kind, path := c.profile(field, in, old)
	switch kind {
	case "":
		return runtime.SeccompUnconfined, ""
	case runtime.SeccompLocalhost:
		if !filepath.IsAbs(path) {
			c.fail(field+".localhost_ref", "%q must be the absolute path of a profile", path)
			return kind, path
		}
		return kind, c.abs(field+".localhost_ref", path)
	}
	return kind, ""
}

// appArmor: where the kernel has none, the default profile has nothing to
// apply, as in other runtimes, but a profile named by the user must not be
// left out in silence.
func (c *check) appArmor(field string, in *cri.SecurityProfile, old string, host Host) (runtime.ProfileKind, string) {
	if in != nil {
		// Clients that fill both mean the message; what the string says may be
		// another profile.
		old = ""
	}
	kind, name := c.profile(field, in, old)
	switch {
	case kind == runtime.SeccompLocalhost:
		// The message's name too comes with the prefix from some clients.
		name = strings.TrimPrefix(name, "localhost/")
		name = c.word(field+".localhost_ref", name)
		if !host.AppArmor {
			c.fail(field, "profile %q cannot be applied: AppArmor is not enabled on this machine", name)
		}
	case kind == runtime.SeccompDefault && !host.AppArmor:
		return "", ""
	}
	return kind, name
}
