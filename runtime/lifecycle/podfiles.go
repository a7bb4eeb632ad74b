package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ocid-io/ocid/runtime"
)

// maxHostFile bounds what is copied of the host's hosts and resolv.conf, bytes.
const maxHostFile = 1 << 20

// giveTo makes the root of a user namespace the owner of path; nil leaves it.
func giveTo(path string, u *runtime.UserNamespace) error {
	if u == nil {
		return nil
	}
	uid, okUID := hostID(u.UIDs, 0)
	gid, okGID := hostID(u.GIDs, 0)
	if !okUID || !okGID {
		return fmt.Errorf("%w: the user namespace maps no root", runtime.ErrInvalid)
	}
	return os.Lchown(path, uid, gid)
}

func hostID(maps []runtime.IDMapping, id uint32) (int, bool) {
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Length {
			return int(m.HostID + (id - m.ContainerID)), true
		}
	}
	return 0, false
}

// podFiles writes the hosts, hostname and resolv.conf that containers see.
func (m *Manager) podFiles(p runtime.Pod) error {
	if err := m.writePodFiles(p); err != nil {
		return err
	}
	for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
		if err := giveTo(filepath.Join(m.podDir(p.ID), f), p.Config.Namespaces.User); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) writePodFiles(p runtime.Pod) error {
	dir := m.podDir(p.ID)
	host := p.Config.Hostname
	onHost := p.Config.Namespaces.Network == runtime.NamespaceNode
	if host == "" && onHost {
		host, _ = os.Hostname()
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(host+"\n"), 0o644); err != nil {
		return err
	}
	hosts := hostsFile(host, p.IPs)
	if onHost {
		b, err := readBounded("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		hosts = b
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), hosts, 0o644); err != nil {
		return err
	}
	resolv, err := resolvConf(p.Config.DNS)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644)
}

func hostsFile(host string, ips []string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, ip := range ips {
		if host != "" {
			fmt.Fprintf(&b, "%s\t%s\n", ip, host)
		}
	}
	return b.Bytes()
}

// resolvConf renders resolv.conf(5); nil copies the host's.
func resolvConf(d *runtime.DNS) ([]byte, error) {
	if d == nil {
		b, err := readBounded("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b bytes.Buffer
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, s := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.Bytes(), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxHostFile))
}
