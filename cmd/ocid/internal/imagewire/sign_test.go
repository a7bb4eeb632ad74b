package imagewire_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/ocid-io/ocid/pull"
)

// signer is a key in both its halves.
type signer struct{ secret, public []byte }

func newSigner(t *testing.T, name string) signer {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", name+"@example.com", nil)
	must(t, err)
	var s, p bytes.Buffer
	must(t, e.SerializePrivate(&s, nil))
	must(t, e.Serialize(&p))
	return signer{s.Bytes(), p.Bytes()}
}

// signedNode is a node whose policy believes one key, and whose lookaside is dir.
func signedNode(t *testing.T, u *upstream, believed signer, dir string) *node {
	t.Helper()
	conf := t.TempDir()
	key := filepath.Join(conf, "key.gpg")
	must(t, os.WriteFile(key, believed.public, 0o600))
	must(t, os.WriteFile(filepath.Join(conf, "all.yaml"), fmt.Appendf(nil, "default-docker:\n  lookaside: file://%s\n", dir), 0o600))
	policy := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"signedBy","keyType":"GPGKeys","keyPath":%q}]}}}`, u.host, key)
	return newNode(t, setup{conf: insecure(u.host), policy: policy, edit: func(o *pull.Options) { o.RegistriesDir = conf }})
}

func TestSignedImages(t *testing.T) {
	u := plain(t)
	acme, other := newSigner(t, "acme"), newSigner(t, "other")
	dir := t.TempDir()
	n := signedNode(t, u, acme, dir)
	ref := u.push(t, "team/app:v1", small(t, "1"))
	if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); !errors.Is(err, pull.ErrDenied) {
		t.Fatalf("an image without a signature: %v", err)
	}
	put := func(by signer, identity string) {
		t.Helper()
		sigs, err := n.Sign(t.Context(), pull.SignRequest{Request: pull.Request{Reference: ref}, Key: by.secret, Identity: identity})
		must(t, err)
		for _, s := range sigs {
			_, err := s.Save(dir)
			must(t, err)
		}
	}
	put(other, "")
	put(acme, "example.com/another:v1")
	d, err := n.CheckPolicy(t.Context(), pull.Request{Reference: ref}, "")
	must(t, err)
	if d.Allowed || d.Scope != "docker: "+u.host || d.Reason == "" {
		t.Errorf("signed by a stranger, and under another name: %+v", d)
	}
	if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); !errors.Is(err, pull.ErrDenied) {
		t.Fatalf("an image signed by others: %v", err)
	}
	put(acme, "")
	n.get(t, ref)
	good, bad, err := n.Verify(t.Context(), pull.VerifyRequest{Request: pull.Request{Reference: ref}, Keys: acme.public})
	must(t, err)
	if len(good) != 1 || len(bad) != 2 || good[0].Identity != ref {
		t.Errorf("verified %v, refused %v", good, bad)
	}
	// What was pushed over a signed name is not signed.
	u.push(t, "team/app:v1", small(t, "2"))
	if _, err := n.Pull(t.Context(), pull.Request{Reference: ref}); !errors.Is(err, pull.ErrDenied) {
		t.Fatalf("another image under a signed name: %v", err)
	}
	if d, err := n.ShowPolicy(pull.Request{Reference: "example.com/x"}, ""); err != nil || d.Scope != "default" || !strings.Contains(string(d.Requirements), "reject") {
		t.Errorf("the default rule: %+v %v", d, err)
	}
}

// TestSignedList: of a list, the list and the platform's image are signed.
func TestSignedList(t *testing.T) {
	u := plain(t)
	acme := newSigner(t, "acme")
	dir := t.TempDir()
	n := signedNode(t, u, acme, dir)
	list := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: small(t, "1"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	ref := u.push(t, "multi:v1", list)
	sigs, err := n.Sign(t.Context(), pull.SignRequest{Request: pull.Request{Reference: ref, Platform: pull.Platform{OS: "linux", Arch: "amd64"}}, Key: acme.secret})
	must(t, err)
	if len(sigs) != 2 {
		t.Fatalf("%d signatures", len(sigs))
	}
	for _, s := range sigs {
		_, err := s.Save(dir)
		must(t, err)
	}
	_, err = n.Pull(t.Context(), pull.Request{Reference: ref, Platform: pull.Platform{OS: "linux", Arch: "amd64"}})
	must(t, err)
}

func TestSignRefuses(t *testing.T) {
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	ref := pull.Request{Reference: u.push(t, "app:v1", small(t, "1"))}
	acme := newSigner(t, "acme")
	for name, req := range map[string]pull.SignRequest{
		"public key":  {Request: ref, Key: acme.public},
		"no key":      {Request: ref},
		"rubbish":     {Request: ref, Key: []byte("-----BEGIN rubbish")},
		"bad name":    {Request: ref, Key: acme.secret, Identity: "UPPER CASE"},
		"two secrets": {Request: ref, Key: append(bytes.Clone(acme.secret), newSigner(t, "b").secret...)},
	} {
		if _, err := n.Sign(t.Context(), req); !errors.Is(err, pull.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := n.Verify(t.Context(), pull.VerifyRequest{Request: ref, Keys: acme.public}); !errors.Is(err, pull.ErrDenied) {
		t.Errorf("no signature at all: %v", err)
	}
}

// TestSignaturesMeetOthers: gpg and skopeo read what ocid signs, and ocid what
// skopeo signs.
func TestSignaturesMeetOthers(t *testing.T) {
	for _, tool := range []string{"gpg", "skopeo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs Debian's " + tool)
		}
	}
	u := plain(t)
	n := newNode(t, setup{conf: insecure(u.host)})
	ref := u.push(t, "app:v1", small(t, "1"))
	acme := newSigner(t, "acme")
	home := t.TempDir()
	must(t, os.Chmod(home, 0o700))
	run := func(in []byte, name string, args ...string) string {
		t.Helper()
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "GNUPGHOME="+home)
		c.Stdin = bytes.NewReader(in)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() {
		c := exec.Command("gpgconf", "--kill", "all")
		c.Env = append(os.Environ(), "GNUPGHOME="+home)
		_ = c.Run()
	})
	run(acme.secret, "gpg", "--batch", "--import")
	sigs, err := n.Sign(t.Context(), pull.SignRequest{Request: pull.Request{Reference: ref}, Key: acme.secret})
	must(t, err)
	sig := filepath.Join(home, "sig")
	must(t, os.WriteFile(sig, sigs[0].Data, 0o600))
	if text := run(nil, "gpg", "--batch", "--decrypt", sig); !strings.Contains(text, "Good signature") || !strings.Contains(text, sigs[0].Digest.String()) {
		t.Errorf("gpg says\n%s", text)
	}
	in, err := n.Inspect(t.Context(), pull.Request{Reference: ref})
	must(t, err)
	man := filepath.Join(home, "manifest.json")
	must(t, os.WriteFile(man, in.Manifest, 0o600))
	run(nil, "skopeo", "standalone-verify", man, ref, sigs[0].Key, sig)
	theirs := filepath.Join(home, "theirs")
	run(nil, "skopeo", "standalone-sign", man, ref, sigs[0].Key, "--output", theirs)
	b, err := pull.ReadSignature(theirs)
	must(t, err)
	good, bad, err := n.Verify(t.Context(), pull.VerifyRequest{Request: pull.Request{Reference: ref}, Keys: acme.public, Signatures: [][]byte{b}})
	if err != nil || len(good) != 1 {
		t.Errorf("skopeo's signature: %v %v %v", good, bad, err)
	}
}
