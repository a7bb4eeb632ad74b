package imagecmd

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/pull"
)

func (open Open) inspectCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{
		Use: "inspect IMAGE", Short: "Show what the registry has under a name, without pulling it",
		Args: args(cobra.ExactArgs(1)),
	}
	remote.add(cmd)
	raw := cmd.Flags().Bool("raw", false, "print the manifest or list as served")
	config := cmd.Flags().Bool("config", false, "print the image's config as stored")
	format := output(cmd)
	cmd.MarkFlagsMutuallyExclusive("raw", "config")
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		req, err := remote.request(a[0])
		if err != nil {
			return err
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		in, err := p.Inspect(cmd.Context(), req)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		switch {
		case *raw:
			_, err = out.Write(in.Manifest)
			return err
		case *config:
			_, err = out.Write(in.Config)
			return err
		}
		return printInspection(out, in, asJSON)
	}
	return cmd
}

// inspection is the form of inspect's JSON output.
type inspection struct {
	Reference string        `json:"reference"`
	Digest    string        `json:"digest"`
	MediaType string        `json:"mediaType"`
	ImageID   string        `json:"imageID"`
	Config    ocispec.Image `json:"config"`
}

func printInspection(out io.Writer, in *pull.Inspection, asJSON bool) error {
	v := inspection{Reference: in.Reference, Digest: in.Digest.String(), MediaType: in.MediaType, ImageID: in.ImageID}
	if err := json.Unmarshal(in.Config, &v.Config); err != nil {
		return fmt.Errorf("image config: %w", err)
	}
	if asJSON {
		return printJSON(out, v)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	c := v.Config
	for _, row := range [][2]string{
		{"Reference", v.Reference},
		{"Digest", v.Digest},
		{"Media type", v.MediaType},
		{"Image id", v.ImageID},
		{"Platform", c.OS + "/" + c.Architecture},
		{"Entrypoint", fmt.Sprintf("%q", c.Config.Entrypoint)},
		{"Command", fmt.Sprintf("%q", c.Config.Cmd)},
		{"User", c.Config.User},
		{"Layers", fmt.Sprint(len(c.RootFS.DiffIDs))},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
	return w.Flush()
}
