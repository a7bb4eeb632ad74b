package pull

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"
)

// maxPolicy bounds a namespace's policy file, in bytes.
const maxPolicy = 4 << 20

// namespaceName keeps a client's namespace from naming anything but a file in
// the directory of policies.
var namespaceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$`)

// policy reads the signature policy anew for each pull: that of the namespace
// if there is one, else the machine's.
func (p *Puller) policy(sys *types.SystemContext, namespace string) (*signature.PolicyContext, error) {
	policy, err := p.NamespacePolicy(namespace)
	if err != nil {
		return nil, err
	}
	if policy == nil {
		if policy, err = p.machinePolicy(sys); err != nil {
			return nil, fmt.Errorf("signature policy: %w", err)
		}
	}
	return signature.NewPolicyContext(policy)
}

// machinePolicy reads policy.json. A machine that has none accepts everything,
// and is told so once.
func (p *Puller) machinePolicy(sys *types.SystemContext) (*signature.Policy, error) {
	policy, err := signature.DefaultPolicy(sys)
	if errors.Is(err, configfile.ErrConfigFileNotFound) && p.opts.PolicyFile == "" {
		p.warn.Do(func() {
			p.log.Warn("no policy.json found: images are accepted without signatures")
		})
		return &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	return policy, err
}

// NamespacePolicy reads NAMESPACE.json in the directory of policies; nil means
// that the namespace has none of its own. Whatever is wrong with the file or
// the directory is ErrDenied: a namespace that was given a policy never falls
// back to a weaker one.
func (p *Puller) NamespacePolicy(namespace string) (*signature.Policy, error) {
	dir := p.opts.PolicyDir
	if dir == "" || namespace == "" {
		return nil, nil //nolint:nilnil // no policy is an answer
	}
	if !namespaceName.MatchString(namespace) {
		return nil, fmt.Errorf("%w: namespace %.80q cannot have a policy", ErrInvalid, namespace)
	}
	fail := func(err error) (*signature.Policy, error) {
		return nil, fmt.Errorf("%w: the signature policy of namespace %s: %w", ErrDenied, namespace, err)
	}
	if _, err := os.Stat(dir); err != nil {
		return fail(err)
	}
	f, err := os.Open(filepath.Join(dir, namespace+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, namespace+".json")); err == nil {
			return fail(errors.New("its file is a link that leads nowhere"))
		}
		return nil, nil //nolint:nilnil // no policy is an answer
	}
	if err != nil {
		return fail(err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return fail(err)
	}
	if len(data) > maxPolicy {
		return fail(fmt.Errorf("%s has more than %d bytes", f.Name(), maxPolicy))
	}
	policy, err := signature.NewPolicyFromBytes(data)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", f.Name(), err))
	}
	return policy, nil
}
