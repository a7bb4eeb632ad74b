package network

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ocid-io/ocid/runtime"
)

func TestPortsCollide(t *testing.T) {
	t.Parallel()
	p := func(proto, ip string) portMapping {
		return portMapping{HostPort: 80, ContainerPort: 1, Protocol: proto, HostIP: ip}
	}
	for _, c := range []struct {
		a, b portMapping
		want bool
	}{
		{p("tcp", ""), p("tcp", ""), true},
		{p("tcp", ""), p("udp", ""), false},
		{p("tcp", ""), p("tcp", "10.0.0.1"), true},
		{p("tcp", "10.0.0.1"), p("tcp", "10.0.0.1"), true},
		{p("tcp", "10.0.0.1"), p("tcp", "10.0.0.2"), false},
		{p("tcp", "0.0.0.0"), p("tcp", "10.0.0.2"), true},
		{p("tcp", "0.0.0.0"), p("tcp", "::"), false},
		{p("tcp", "::"), p("tcp", "fd00::1"), true},
		{p("tcp", "::ffff:10.0.0.1"), p("tcp", "10.0.0.1"), true},
		{portMapping{HostPort: 81, Protocol: "tcp"}, p("tcp", ""), false},
	} {
		if c.a.collides(c.b) != c.want || c.b.collides(c.a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
}

func TestHostPortsAreTakenOnce(t *testing.T) {
	b := newBed(t, 30*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(`,{"type":"portmap","capabilities":{"portMappings":true}}`))
	cfg := pod
	cfg.PortMappings = []runtime.PortMapping{
		{Protocol: "tcp", ContainerPort: 80, HostPort: 18081},
		{Protocol: "udp", ContainerPort: 80, HostPort: 18081},
	}
	netA, netB := pin(t, nil)+"/net", pin(t, nil)+"/net"
	podB := runtime.PodID(strings.Repeat("b", 64))
	if _, err := b.Add(t.Context(), podA, cfg, netA); err != nil {
		t.Fatal(err)
	}
	before := len(b.leases(t))
	refused := func(why string) {
		t.Helper()
		_, err := b.Add(t.Context(), podB, cfg, netB)
		if !errors.Is(err, runtime.ErrState) || !strings.Contains(err.Error(), "18081/tcp") || !strings.Contains(err.Error(), string(podA)) {
			t.Errorf("%s: %v", why, err)
		}
		if now := len(b.leases(t)); now != before {
			t.Errorf("%s: %d addresses, had %d", why, now, before)
		}
	}
	refused("a second pod")
	b.open(t, 30*time.Second)
	refused("a second pod after a restart")
	if err := b.Del(t.Context(), podA, cfg, netA); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Add(t.Context(), podB, cfg, netB); err != nil {
		t.Errorf("after the first pod is gone: %v", err)
	}
	if err := b.Del(t.Context(), podB, cfg, netB); err != nil {
		t.Fatal(err)
	}
	cfg.PortMappings = append(cfg.PortMappings, cfg.PortMappings[0])
	if _, err := b.Add(t.Context(), podA, cfg, netA); !errors.Is(err, runtime.ErrInvalid) {
		t.Errorf("one pod asks twice: %v", err)
	}
	b.clean(t)
	if err := b.Check(t.Context(), podA); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("check of what is not attached: %v", err)
	}
}

func TestCheckSeesDamage(t *testing.T) {
	b := newBed(t, 30*time.Second)
	b.write(t, b.conf+"/10-x.conflist", b.bridge(""))
	dir := pin(t, nil)
	if _, err := b.Add(t.Context(), podA, pod, dir+"/net"); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context(), podA); err != nil {
		t.Errorf("check: %v", err)
	}
	inside(t, dir, "ip", "link", "del", "eth0")
	if err := b.Check(t.Context(), podA); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("the interface is gone, and check says %v", err)
	}
	if err := b.Del(t.Context(), podA, pod, dir+"/net"); err != nil {
		t.Fatal(err)
	}
	b.clean(t)
}
