package main

import (
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestOnlyListedPropertiesReachSystemd(t *testing.T) {
	s := &specs.Spec{Annotations: map[string]string{
		"org.systemd.property.TimeoutStopSec": "10",
		"org.systemd.property.ExecStartPost":  "'/bin/sh'",
		"org.systemd.property.DeviceAllow":    "[('/dev/sda','rwm')]",
		"io.kubernetes.pod.name":              "x",
	}}
	keepProperties(s)
	if len(s.Annotations) != 2 || s.Annotations["org.systemd.property.TimeoutStopSec"] == "" || s.Annotations["io.kubernetes.pod.name"] == "" {
		t.Errorf("kept %v", s.Annotations)
	}
}

func TestScopesAreCollected(t *testing.T) {
	c := &cgroups.Cgroup{Systemd: true}
	collect(c)
	collect(c)
	if len(c.SystemdProps) != 1 || c.SystemdProps[0].Name != "CollectMode" {
		t.Errorf("properties %v", c.SystemdProps)
	}
	c = &cgroups.Cgroup{}
	collect(c)
	if len(c.SystemdProps) != 0 {
		t.Errorf("properties without systemd: %v", c.SystemdProps)
	}
}
