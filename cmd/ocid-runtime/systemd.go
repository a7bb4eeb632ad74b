package main

import (
	"slices"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// propertyPrefix begins an annotation that the library hands to systemd as a
// property of the container's scope.
const propertyPrefix = "org.systemd.property."

// properties may be set by annotation. Others can run programs, open devices or
// lift limits in systemd's name, so an annotation never reaches them.
var properties = []string{"CollectMode", "TimeoutStopSec", "TimeoutStopUSec"}

// keepProperties drops the annotations that would set any other property.
func keepProperties(s *specs.Spec) {
	for k := range s.Annotations {
		if name, ok := strings.CutPrefix(k, propertyPrefix); ok && !slices.Contains(properties, name) {
			delete(s.Annotations, k)
		}
	}
}

// collect makes systemd forget the scope once it is empty, even if it failed:
// nobody else does where the container is deleted without this program.
func collect(c *cgroups.Cgroup) {
	if c == nil || !c.Systemd {
		return
	}
	for _, p := range c.SystemdProps {
		if p.Name == "CollectMode" {
			return
		}
	}
	c.SystemdProps = append(c.SystemdProps, systemd.Property{Name: "CollectMode", Value: dbus.MakeVariant("inactive-or-failed")})
}
