package pull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"

	"github.com/ocid-io/ocid/internal/atomicfile"
)

// Bounds of what is read for a signature, in bytes.
const (
	maxKeyRing   = 1 << 20
	maxSignature = 4 << 20
)

// maxSignatures bounds the signatures of one image in a lookaside directory.
const maxSignatures = 128

// SignRequest asks for a simple signature of an image as a registry has it.
type SignRequest struct {
	Request
	// Identity is the name that is signed; "" is the reference's.
	Identity string
	// Key is an OpenPGP secret key ring, armored or not, with one usable key.
	Key []byte
	// Passphrase opens the key; nil if it needs none.
	Passphrase []byte
}

// Signature is a detached signature of an image.
type Signature struct {
	Image    string        // the name that the image has in its registry
	Identity string        // the name that is signed
	Digest   digest.Digest // of the manifest or list that is signed
	Data     []byte        // the signed OpenPGP message
	Key      string        // fingerprint of the key, upper-case hexadecimal
}

// payload is what a simple signature signs
// (containers/image, docs/containers-signature.5.md).
type payload struct {
	Critical struct {
		Type  string `json:"type"`
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
	} `json:"critical"`
	Optional struct {
		Creator   string `json:"creator"`
		Timestamp int64  `json:"timestamp"`
	} `json:"optional"`
}

// Sign signs what the registry has under the reference: the list, if it is one,
// and the platform's own manifest, each with a signature of its own, since
// clients ask for either. Nothing is written anywhere.
func (p *Puller) Sign(ctx context.Context, req SignRequest) ([]Signature, error) {
	entity, err := signingKey(req.Key, req.Passphrase)
	if err != nil {
		return nil, err
	}
	r, name, done, err := p.openOne(ctx, req.Request)
	if err != nil {
		return nil, err
	}
	defer done()
	identity := name
	if req.Identity != "" {
		if identity, err = reference.ParseNormalizedNamed(req.Identity); err != nil {
			return nil, fmt.Errorf("identity %q: %w: %w", req.Identity, ErrInvalid, err)
		}
	}
	if reference.IsNameOnly(identity) {
		identity = reference.TagNameOnly(identity)
	}
	digests := []digest.Digest{r.digest}
	if r.instance != nil {
		digests = append(digests, *r.instance)
	}
	var out []Signature
	for _, d := range digests {
		s, err := sign(entity, identity.String(), d, p.opts.UserAgent)
		if err != nil {
			return nil, err
		}
		s.Image = name.String()
		out = append(out, s)
	}
	return out, nil
}

func sign(entity *openpgp.Entity, identity string, d digest.Digest, creator string) (Signature, error) {
	var pl payload
	pl.Critical.Type = "atomic container signature"
	pl.Critical.Image.Digest = d
	pl.Critical.Identity.Reference = identity
	pl.Optional.Creator, pl.Optional.Timestamp = creator, time.Now().Unix()
	text, err := json.Marshal(pl)
	if err != nil {
		return Signature{}, err
	}
	var message bytes.Buffer
	w, err := openpgp.Sign(&message, entity, nil, nil)
	if err == nil {
		_, err = w.Write(text)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return Signature{}, fmt.Errorf("sign: %w", err)
	}
	return Signature{
		Identity: identity, Digest: d, Data: message.Bytes(),
		Key: fmt.Sprintf("%X", entity.PrimaryKey.Fingerprint),
	}, nil
}

// signingKey finds the one key of the ring that can sign.
func signingKey(ring, passphrase []byte) (*openpgp.Entity, error) {
	list, err := keyRing(ring)
	if err != nil {
		return nil, err
	}
	var found []*openpgp.Entity
	for _, e := range list {
		if e.PrivateKey == nil {
			continue
		}
		if passphrase != nil {
			if err := e.DecryptPrivateKeys(passphrase); err != nil {
				return nil, fmt.Errorf("open the key: %w: %w", ErrInvalid, err)
			}
		}
		if k, ok := e.SigningKey(time.Now()); ok && k.PrivateKey != nil {
			if k.PrivateKey.Encrypted {
				return nil, fmt.Errorf("key %X needs its passphrase: %w", e.PrimaryKey.Fingerprint, ErrInvalid)
			}
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the key ring has %d keys that can sign; give one with exactly one: %w", len(found), ErrInvalid)
	}
	return found[0], nil
}

func keyRing(b []byte) (openpgp.EntityList, error) {
	if len(b) > maxKeyRing {
		return nil, fmt.Errorf("a key ring of more than %d bytes: %w", maxKeyRing, ErrInvalid)
	}
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		read = openpgp.ReadArmoredKeyRing
	}
	list, err := read(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("key ring: %w: %w", ErrInvalid, err)
	}
	return list, nil
}

// Save puts a signature into a lookaside directory, beside those that are
// there: DIR/NAMESPACE/NAME@sha256=HEX/signature-N, without the registry's
// host, as registries.d expects it. It returns the file's path.
func (s Signature) Save(dir string) (string, error) {
	named, err := reference.ParseNormalizedNamed(s.Image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: %w", s.Image, ErrInvalid, err)
	}
	at := filepath.Join(dir, fmt.Sprintf("%s@%s=%s", reference.Path(named), s.Digest.Algorithm(), s.Digest.Encoded()))
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	for n := 1; n <= maxSignatures; n++ {
		path := filepath.Join(at, fmt.Sprintf("signature-%d", n))
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return path, atomicfile.WriteSync(path, s.Data, 0o644)
		} else if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%s has %d signatures already: %w", at, maxSignatures, ErrInvalid)
}

// VerifyRequest asks who signed an image.
type VerifyRequest struct {
	Request
	Identity   string // name that must be signed; "" is the reference's
	Keys       []byte // OpenPGP public key ring
	Signatures [][]byte
}

// Verified is one signature that holds.
type Verified struct {
	Identity string
	Digest   digest.Digest
	Key      string // fingerprint
}

// Verify checks signatures of what the registry has under the reference: those
// given, or those that registries.d leads to. It returns the ones that hold for
// a key of the ring, and the reasons against the others; ErrDenied if none does.
func (p *Puller) Verify(ctx context.Context, req VerifyRequest) (good []Verified, bad []error, err error) {
	mech, keys, err := signature.NewEphemeralGPGSigningMechanism(req.Keys)
	if err != nil {
		return nil, nil, fmt.Errorf("key ring: %w: %w", ErrInvalid, err)
	}
	defer func() { _ = mech.Close() }()
	if len(keys) == 0 {
		return nil, nil, fmt.Errorf("the key ring is empty: %w", ErrInvalid)
	}
	r, name, done, err := p.openOne(ctx, req.Request)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	identity := name.String()
	if req.Identity != "" {
		identity = req.Identity
	}
	for _, inst := range r.instances() {
		un := image.UnparsedInstance(r.src, inst)
		man, _, err := un.Manifest(ctx)
		if err != nil {
			return nil, nil, explain(err, "")
		}
		sigs := req.Signatures
		if sigs == nil {
			if sigs, err = un.Signatures(ctx); err != nil {
				return nil, nil, explain(err, "")
			}
		}
		for _, s := range sigs {
			v, key, err := signature.VerifyImageManifestSignatureUsingKeyIdentityList(s, man, identity, mech, keys)
			if err != nil {
				bad = append(bad, err)
				continue
			}
			good = append(good, Verified{Identity: v.DockerReference, Digest: v.DockerManifestDigest, Key: key})
		}
	}
	if len(good) == 0 {
		return nil, bad, fmt.Errorf("%w: no signature of %s by one of the given keys", ErrDenied, identity)
	}
	return good, bad, nil
}

func (r *remote) instances() []*digest.Digest {
	out := []*digest.Digest{nil}
	if r.instance != nil {
		out = append(out, r.instance)
	}
	return out
}

// openOne opens what one full reference names; done closes it.
func (p *Puller) openOne(ctx context.Context, req Request) (*remote, reference.Named, func(), error) {
	names, err := p.candidates(req)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(names) != 1 {
		return nil, nil, nil, fmt.Errorf("reference %q can stand for %d images: write it whole: %w", req.Reference, len(names), ErrInvalid)
	}
	sys := p.systemContext(req)
	if err := credentials(sys, req.Auth, names[0]); err != nil {
		return nil, nil, nil, err
	}
	r, err := openRemote(ctx, sys, names[0])
	if err != nil {
		return nil, nil, nil, explain(err, "")
	}
	return r, names[0], func() { _ = r.src.Close() }, nil
}

// ReadSignature reads a signature from a file, bounded.
func ReadSignature(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSignature+1))
	if err == nil && len(b) > maxSignature {
		err = fmt.Errorf("%s: more than %d bytes: %w", path, maxSignature, ErrInvalid)
	}
	return b, err
}

// PolicyDecision is what the signature policy says of an image, and why.
type PolicyDecision struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest,omitempty"`
	// Scope of policy.json that applies, "docker: host/name" or "default".
	Scope        string          `json:"scope"`
	Requirements json.RawMessage `json:"requirements"`
	Allowed      bool            `json:"allowed"`
	Reason       string          `json:"reason,omitempty"` // why not
}

// CheckPolicy asks the policy of a namespace, or the machine's for "", about an
// image as its registry has it. A refusal is no error.
func (p *Puller) CheckPolicy(ctx context.Context, req Request, namespace string) (*PolicyDecision, error) {
	d, policy, err := p.applicable(req, namespace)
	if err != nil {
		return nil, err
	}
	r, _, done, err := p.openOne(ctx, req)
	if err != nil {
		return nil, err
	}
	defer done()
	d.Digest = r.digest
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return nil, err
	}
	defer func() { _ = pc.Destroy() }()
	if err := r.allowed(ctx, pc); err != nil {
		d.Reason = strings.TrimPrefix(err.Error(), ErrDenied.Error()+": ")
		return d, nil //nolint:nilerr // that is the answer
	}
	d.Allowed = true
	return d, nil
}

// ShowPolicy tells which rule applies to a reference; no registry is asked.
func (p *Puller) ShowPolicy(req Request, namespace string) (*PolicyDecision, error) {
	d, _, err := p.applicable(req, namespace)
	return d, err
}

// applicable finds the most specific scope (containers-policy.json(5)).
func (p *Puller) applicable(req Request, namespace string) (*PolicyDecision, *signature.Policy, error) {
	ref, sys, err := p.remoteRef(req)
	if err != nil {
		return nil, nil, err
	}
	policy, err := p.NamespacePolicy(namespace)
	if err != nil {
		return nil, nil, err
	}
	if policy == nil {
		if policy, err = p.machinePolicy(sys); err != nil {
			return nil, nil, fmt.Errorf("signature policy: %w", err)
		}
	}
	d := &PolicyDecision{Reference: ref.DockerReference().String(), Scope: "default"}
	reqs := policy.Default
	if scopes, ok := policy.Transports[ref.Transport().Name()]; ok {
		for _, s := range append(append([]string{ref.PolicyConfigurationIdentity()}, ref.PolicyConfigurationNamespaces()...), "") {
			if found, ok := scopes[s]; ok {
				d.Scope, reqs = strings.TrimSuffix(ref.Transport().Name()+": "+s, ": "), found
				break
			}
		}
	}
	d.Requirements, err = json.Marshal(reqs)
	return d, policy, err
}
