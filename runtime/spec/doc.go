// Package spec turns a resolved container request into an OCI runtime spec.
//
// Build is pure: the same Input gives the same spec, byte for byte once it is
// marshalled, and no file, clock or environment is read. What has to be read
// from the machine is read by the other functions here (ResolveUser, Devices,
// HostDevices) before, and handed over in the Input.
//
// Build is a table of named steps applied in order. A step looks at the Input
// and at what earlier steps wrote, and writes its own part of the spec only.
// The steps write the plain specs-go structs: the Generator of runtime-tools
// starts from defaults that would all have to be removed again (its own
// seccomp profile, rlimits, environment and mounts), costs a linear search for
// each item added, and offers nothing for idmapped mounts or byte checks.
//
// Invariants:
//   - everything in Image is hostile: no label or annotation of an image ever
//     reaches the spec;
//   - nothing is granted that the Input does not name: devices are denied by
//     default, capabilities are cut to DaemonCaps, oom_score_adj to MinOOMScore;
//   - a request that cannot work is refused with runtime.ErrInvalid and a
//     message that names the field, never silently changed.
package spec
