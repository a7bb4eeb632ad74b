package imagecmd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/pull"
)

func (open Open) signCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "sign IMAGE", Short: "Sign an image with an OpenPGP key",
		Long: "Sign an image that a registry has, with a simple signature that is kept apart from\n" +
			"the image: in a lookaside directory, which any web server can serve and registries.d\n" +
			"names, or in a file. Several keys may sign one image. Of a list, the list and this\n" +
			"machine's image in it are signed. gpg --export-secret-keys makes a key file.",
		Args: args(cobra.ExactArgs(1)),
	}
	remote.add(cmd)
	key := cmd.Flags().String("key", "", "secret key `file`, armored or not, with one key that can sign")
	phrase := cmd.Flags().String("passphrase-file", "", "`file` whose first line opens the key")
	identity := cmd.Flags().String("identity", "", "`name` to sign; default: IMAGE")
	lookaside := cmd.Flags().String("lookaside", "", "`directory` to add the signatures to")
	file := cmd.Flags().String("file", "", "`file` to write the signature to")
	format := output(cmd)
	cmd.MarkFlagsOneRequired("lookaside", "file")
	cmd.MarkFlagsMutuallyExclusive("lookaside", "file")
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		req := pull.SignRequest{Identity: *identity}
		if req.Request, err = remote.request(strings.TrimPrefix(a[0], "docker://")); err != nil {
			return err
		}
		if *key == "" {
			return usageError{errors.New("--key names the secret key to sign with")}
		}
		if req.Key, err = os.ReadFile(*key); err != nil {
			return err
		}
		if *phrase != "" {
			b, err := os.ReadFile(*phrase)
			if err != nil {
				return err
			}
			line, _, _ := strings.Cut(string(b), "\n")
			req.Passphrase = []byte(strings.TrimSuffix(line, "\r"))
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		sigs, err := p.Sign(cmd.Context(), req)
		if err != nil {
			return err
		}
		var rows []map[string]string
		for i, sig := range sigs {
			path := *file
			if *lookaside != "" {
				path, err = sig.Save(*lookaside)
			} else {
				if i > 0 {
					path += fmt.Sprintf(".%d", i+1)
				}
				err = os.WriteFile(path, sig.Data, 0o644)
			}
			if err != nil {
				return err
			}
			rows = append(rows, map[string]string{"identity": sig.Identity, "digest": sig.Digest.String(), "key": sig.Key, "path": path})
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		for _, r := range rows {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s by %s: %s\n", r["identity"], r["digest"], r["key"], r["path"])
		}
		return nil
	}
	return cmd
}

func (open Open) verifyCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "verify IMAGE", Short: "Verify who signed an image",
		Long: "Verify the signatures of an image that a registry has: those that registries.d leads\n" +
			"to, or those in --signature. At least one must be by a key of --key.",
		Args: args(cobra.ExactArgs(1)),
	}
	remote.add(cmd)
	key := cmd.Flags().String("key", "", "public key `file`, armored or not")
	identity := cmd.Flags().String("identity", "", "`name` that must be signed; default: IMAGE")
	files := cmd.Flags().StringArray("signature", nil, "signature `file`; may be given several times")
	format := output(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		req := pull.VerifyRequest{Identity: *identity}
		if req.Request, err = remote.request(strings.TrimPrefix(a[0], "docker://")); err != nil {
			return err
		}
		if *key == "" {
			return usageError{errors.New("--key names the public keys to believe")}
		}
		if req.Keys, err = os.ReadFile(*key); err != nil {
			return err
		}
		for _, f := range *files {
			b, err := pull.ReadSignature(f)
			if err != nil {
				return err
			}
			req.Signatures = append(req.Signatures, b)
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		good, bad, err := p.Verify(cmd.Context(), req)
		for _, b := range bad {
			fmt.Fprintf(cmd.ErrOrStderr(), "not accepted: %v\n", b)
		}
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), good)
		}
		for _, g := range good {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s signed by %s\n", g.Identity, g.Digest, g.Key)
		}
		return nil
	}
	return cmd
}

func (open Open) policyCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Explain the signature policy", Args: args(cobra.NoArgs)}
	cmd.AddCommand(
		open.policyAsk("show IMAGE", "Show which rule of the policy applies to an image; no registry is asked",
			func(cmd *cobra.Command, p *pull.Puller, req pull.Request, ns string) (*pull.PolicyDecision, error) {
				return p.ShowPolicy(req, ns)
			}),
		open.policyAsk("check IMAGE", "Check whether the policy lets an image in, and why not",
			func(cmd *cobra.Command, p *pull.Puller, req pull.Request, ns string) (*pull.PolicyDecision, error) {
				return p.CheckPolicy(cmd.Context(), req, ns)
			}))
	return cmd
}

type policyQuestion func(*cobra.Command, *pull.Puller, pull.Request, string) (*pull.PolicyDecision, error)

func (open Open) policyAsk(use, short string, ask policyQuestion) *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{Use: use, Short: short, Args: args(cobra.ExactArgs(1))}
	remote.add(cmd)
	ns := cmd.Flags().String("namespace", "", "Kubernetes `namespace` whose policy is asked")
	format := output(cmd)
	check := strings.HasPrefix(use, "check")
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		req, err := remote.request(strings.TrimPrefix(a[0], "docker://"))
		if err != nil {
			return err
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		d, err := ask(cmd, p, req, *ns)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			if err := printJSON(out, d); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(out, "%s\nrule: %s\n%s\n", d.Reference, d.Scope, d.Requirements)
		}
		if check && !d.Allowed {
			return fmt.Errorf("%w: %s: %s", pull.ErrDenied, d.Reference, d.Reason)
		}
		if check && !asJSON {
			fmt.Fprintln(out, "allowed:", d.Digest)
		}
		return nil
	}
	return cmd
}
