package pull

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/types"
)

// maxReference bounds what is parsed as a reference.
const maxReference = 4096

// candidates returns the full names that the request's reference stands for:
// one, unless registries.conf may complete a short name.
func (p *Puller) candidates(req Request) ([]reference.Named, error) {
	if len(req.Reference) > maxReference {
		return nil, fmt.Errorf("reference of %d bytes: %w", len(req.Reference), ErrInvalid)
	}
	ref, err := reference.ParseNormalizedNamed(req.Reference)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w: %w", req.Reference, ErrInvalid, err)
	}
	if !shortnames.IsShortName(req.Reference) {
		full, err := pinned(ref)
		return []reference.Named{full}, err
	}
	if !req.ShortNames {
		return nil, fmt.Errorf("reference %q has no registry; write for instance %q: %w", req.Reference, reference.TagNameOnly(ref), ErrInvalid)
	}
	mode := types.ShortNameModeDisabled
	sys := p.systemContext(req)
	sys.ShortNameMode = &mode
	resolved, err := shortnames.Resolve(sys, req.Reference)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w: %w", req.Reference, ErrInvalid, err)
	}
	var names []reference.Named
	for _, c := range resolved.PullCandidates {
		full, err := pinned(c.Value)
		if err != nil {
			return nil, err
		}
		names = append(names, full)
	}
	return names, nil
}

// pinned makes a name that can be pulled: a digest beats a tag beside it, and
// neither means latest.
func pinned(ref reference.Named) (reference.Named, error) {
	if d, ok := ref.(reference.Digested); ok {
		full, err := reference.WithDigest(reference.TrimNamed(ref), d.Digest())
		if err != nil {
			return nil, fmt.Errorf("reference %q: %w: %w", ref, ErrInvalid, err)
		}
		return full, nil
	}
	return reference.TagNameOnly(ref), nil
}

// systemContext is what the image library needs to know for a request.
func (p *Puller) systemContext(req Request) *types.SystemContext {
	sys := &types.SystemContext{
		SystemRegistriesConfPath:    p.opts.RegistriesConf,
		SystemRegistriesConfDirPath: p.opts.RegistriesConfDir,
		RegistriesDirPath:           p.opts.RegistriesDir,
		SignaturePolicyPath:         p.opts.PolicyFile,
		AuthFilePath:                p.opts.AuthFile,
		DockerPerHostCertDirPath:    p.opts.CertsDir,
		BlobInfoCacheDir:            p.opts.BlobCacheDir,
		DockerRegistryUserAgent:     p.opts.UserAgent,
		OSChoice:                    req.Platform.OS,
		ArchitectureChoice:          req.Platform.Arch,
		VariantChoice:               req.Platform.Variant,
	}
	if req.Insecure {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	return sys
}

// credentials puts the request's credentials into sys if they are for name.
func credentials(sys *types.SystemContext, auth *Auth, name reference.Named) error {
	if auth == nil || *auth == (Auth{ServerAddress: auth.ServerAddress}) {
		return nil
	}
	if host := serverHost(auth.ServerAddress); host != "" && host != reference.Domain(name) {
		return nil // given for another host: not ours to send here
	}
	if auth.RegistryToken != "" {
		sys.DockerBearerRegistryToken = auth.RegistryToken
		return nil
	}
	cfg := &types.DockerAuthConfig{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken}
	if auth.Auth != "" && cfg.Username == "" && cfg.IdentityToken == "" {
		// Some clients pad with NUL bytes.
		raw, err := base64.StdEncoding.DecodeString(auth.Auth)
		user, password, ok := strings.Cut(string(raw), ":")
		if err != nil || !ok {
			return fmt.Errorf("credentials: auth is not base64 of user:password: %w", ErrInvalid)
		}
		cfg.Username, cfg.Password = user, strings.TrimRight(password, "\x00")
	}
	sys.DockerAuthConfig = cfg
	return nil
}

// serverHost reduces what clients write as server address to a host, in the
// form that references use.
func serverHost(addr string) string {
	if addr == "" {
		return ""
	}
	if !strings.Contains(addr, "://") {
		addr = "https://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil {
		return ""
	}
	switch u.Host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return u.Host
}
