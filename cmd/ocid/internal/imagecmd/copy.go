package imagecmd

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/pull"
)

func (open Open) copyCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "copy SOURCE TARGET", Short: "Copy an image between registries, archives, directories and stores",
		Long: "Copy an image. SOURCE and TARGET are docker://IMAGE, oci:DIR:TAG, oci-archive:FILE,\n" +
			"docker-archive:FILE:IMAGE, dir:DIR, containers-storage:IMAGE (the store of podman and\n" +
			"buildah) or ocid:IMAGE (ocid's own). Digests are kept where the target can hold the\n" +
			"manifest's form; the signature policy is asked about the source.",
		Args: args(cobra.ExactArgs(2)),
	}
	remote.add(cmd)
	all := cmd.Flags().Bool("all", false, "copy every platform of a list")
	strip := cmd.Flags().Bool("remove-signatures", false, "copy no signatures")
	toCreds := cmd.Flags().String("dest-creds", "", "`user:password` for the target's registry; default: the auth files")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "no progress")
	format := output(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		from, err := remote.request(a[0])
		if err != nil {
			return err
		}
		to, err := (&remoteFlags{creds: *toCreds}).request(a[1])
		if err != nil {
			return err
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		req := pull.CopyRequest{
			Source: a[0], Target: a[1], All: *all, RemoveSignatures: *strip, Platform: from.Platform,
			Insecure: from.Insecure, SourceAuth: from.Auth, TargetAuth: to.Auth,
		}
		end := func() {}
		if !*quiet {
			pr := &printer{w: cmd.ErrOrStderr(), name: a[0], overwrite: isTerminal(cmd.ErrOrStderr())}
			req.Progress, end = pr.show, pr.end
		}
		dgst, err := p.Copy(cmd.Context(), req)
		end()
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]string{"digest": dgst.String()})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), dgst)
		return err
	}
	return cmd
}

func (open Open) tagsCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "tags REPOSITORY", Short: "List the tags that a registry has for a repository",
		Args: args(cobra.ExactArgs(1)),
	}
	remote.add(cmd)
	format := output(cmd)
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
		tags, err := p.Tags(cmd.Context(), req)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"repository": a[0], "tags": tags})
		}
		for _, t := range tags {
			fmt.Fprintln(cmd.OutOrStdout(), t)
		}
		return nil
	}
	return cmd
}

func (open Open) deleteCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "delete IMAGE", Short: "Remove an image from its registry",
		Args: args(cobra.ExactArgs(1)),
	}
	remote.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		req, err := remote.request(strings.TrimPrefix(a[0], "docker://"))
		if err != nil {
			return err
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		return p.Delete(cmd.Context(), req)
	}
	return cmd
}
