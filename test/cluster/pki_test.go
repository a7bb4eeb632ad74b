package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is a certificate authority in a directory.
type pki struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	return p, p.issue("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
}

// client issues a certificate for a user in a group.
func (p *pki) client(name, user, group string) error {
	return p.issue(name, &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: []string{group}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// server issues a certificate for addresses.
func (p *pki) server(name string, ips ...net.IP) error {
	return p.issue(name, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: ips,
	})
}

// issue writes NAME.crt and NAME.key; the first is the authority itself.
func (p *pki) issue(name string, c *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	p.next++
	c.SerialNumber = big.NewInt(p.next)
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if p.cert == nil {
		p.cert, p.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.cert, &key.PublicKey, p.key)
	if err != nil {
		return err
	}
	if c == p.cert {
		if p.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	return os.WriteFile(p.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600)
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// kubeconfig writes how a client with an issued certificate reaches the server.
func (p *pki) kubeconfig(name, server string) (string, error) {
	named := func(key string, value map[string]any) []any {
		return []any{map[string]any{"name": "test", key: value}}
	}
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": named("cluster", map[string]any{"server": server, "certificate-authority": p.file("ca.crt")}),
		"users":    named("user", map[string]any{"client-certificate": p.file(name + ".crt"), "client-key": p.file(name + ".key")}),
		"contexts": named("context", map[string]any{"cluster": "test", "user": "test"}),
	})
	if err != nil {
		return "", err
	}
	return p.file(name + ".kubeconfig"), os.WriteFile(p.file(name+".kubeconfig"), b, 0o600)
}
