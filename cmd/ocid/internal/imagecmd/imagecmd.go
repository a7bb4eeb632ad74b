// Package imagecmd holds the commands about images: pull, images, rmi, tag, copy,
// tags, delete, inspect, mount and unmount. They work on the store itself, with no daemon
// running and beside one.
package imagecmd

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store"
	"github.com/ocid-io/ocid/store/layered"
)

// Open opens what the commands work on, when one runs.
type Open func() (*layered.Store, *pull.Puller, error)

// Commands returns all image commands.
func Commands(open func() (*layered.Store, *pull.Puller, error)) []*cobra.Command {
	o := Open(open)
	return []*cobra.Command{
		o.pullCmd(), o.imagesCmd(), o.rmiCmd(), o.tagCmd(), o.inspectCmd(), o.copyCmd(), o.tagsCmd(), o.deleteCmd(), o.signCmd(), o.verifyCmd(), o.policyCmd(), o.mountCmd(), o.unmountCmd(),
	}
}

// usageError marks a mistake in how a command was called: exit code 2.
type usageError struct{ error }

// ExitCode makes usage errors known to the caller of the commands.
func (usageError) ExitCode() int { return 2 }

func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// output adds the -o flag and returns how to read it.
func output(cmd *cobra.Command) func() (asJSON bool, err error) {
	format := cmd.Flags().StringP("output", "o", "table", "output `format`: table or json")
	return func() (bool, error) {
		switch *format {
		case "table":
			return false, nil
		case "json":
			return true, nil
		}
		return false, usageError{fmt.Errorf("output format %q: want table or json", *format)}
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// imageJSON is the form of an image in JSON output.
type imageJSON struct {
	ID      string    `json:"id"`
	Tags    []string  `json:"tags"`
	Digests []string  `json:"digests"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created,omitzero"`
}

func (open Open) imagesCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "images [IMAGE]", Short: "List images", Args: args(cobra.MaximumNArgs(1))}
	quiet := cmd.Flags().BoolP("quiet", "q", false, "print ids only")
	format := output(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		s, _, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		var list []*store.Image
		if len(a) == 1 {
			img, err := s.Image(cmd.Context(), a[0])
			if err != nil {
				return err
			}
			list = append(list, img)
		} else if list, err = s.Images(cmd.Context()); err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		switch {
		case *quiet:
			for _, img := range list {
				fmt.Fprintln(out, img.ID)
			}
			return nil
		case asJSON:
			rows := make([]imageJSON, 0, len(list))
			for _, img := range list {
				rows = append(rows, imageJSON{ID: img.ID, Tags: img.Tags, Digests: img.Digests, Size: img.Size, Created: img.Created})
			}
			return printJSON(out, rows)
		}
		return imageTable(out, list)
	}
	return cmd
}

func imageTable(out io.Writer, list []*store.Image) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tCREATED\tSIZE")
	for _, img := range list {
		names := img.Tags
		if len(names) == 0 {
			names = img.Digests
		}
		if len(names) == 0 {
			names = []string{"<none>"}
		}
		created := "-"
		if !img.Created.IsZero() {
			created = img.Created.UTC().Format("2006-01-02 15:04")
		}
		for _, n := range names {
			fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\n", n, strings.TrimPrefix(img.ID, "sha256:"), created, size(img.Size))
		}
	}
	return w.Flush()
}

// size writes bytes for people.
func size(n int64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	for len(units) > 1 && f >= 1000 {
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.3g %s", f, units[0])
}

func (open Open) rmiCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove names of images, and images with their last name",
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			s, _, err := open()
			if err != nil {
				return err
			}
			defer s.Close()
			for _, ref := range a {
				if err := s.Remove(cmd.Context(), ref); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), ref)
			}
			return nil
		},
	}
}

func (open Open) tagCmd() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image one more name",
		Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			s, _, err := open()
			if err != nil {
				return err
			}
			defer s.Close()
			return s.Tag(cmd.Context(), a[0], a[1])
		},
	}
}

func (open Open) mountCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "mount IMAGE", Short: "Mount an image read-only and print where", Args: args(cobra.ExactArgs(1))}
	format := output(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		s, _, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		img, err := s.Image(cmd.Context(), a[0])
		if err != nil {
			return err
		}
		fs, err := s.Prepare(cmd.Context(), store.RootFSRequest{ID: mountID(img.ID), ImageID: img.ID, ReadOnly: true})
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]string{"id": img.ID, "path": fs.Path})
		}
		fmt.Fprintln(cmd.OutOrStdout(), fs.Path)
		return nil
	}
	return cmd
}

// mountID is the root file system of an image mounted by hand; one for all who
// mount it.
func mountID(imageID string) string {
	return layered.MountPrefix + fmt.Sprintf("%.40s", strings.TrimPrefix(imageID, "sha256:"))
}

func (open Open) unmountCmd() *cobra.Command {
	return &cobra.Command{
		Use: "unmount IMAGE", Aliases: []string{"umount"}, Short: "Undo mount",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			s, _, err := open()
			if err != nil {
				return err
			}
			defer s.Close()
			img, err := s.Image(cmd.Context(), a[0])
			if err != nil {
				return err
			}
			return s.Release(cmd.Context(), mountID(img.ID))
		},
	}
}

// isTerminal says whether progress may overwrite its line.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}
