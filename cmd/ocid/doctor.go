package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/cmd/ocid/internal/doctor"
)

func doctorCommand(g *globals) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "doctor", Short: "Examine this machine for what ocid needs", Args: cobra.NoArgs,
		Long: "Examine kernel, cgroups, network, runtime handlers, mounts, permissions and files:\n" +
			"what is missing, what that costs, and how to mend it. Nothing is changed, and no\n" +
			"daemon is needed. The exit code is 1 if something keeps pods from running.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := g.load()
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			found := doctor.Examine(cmd.Context(), doctor.Machine{Config: conf.Config, BinDir: filepath.Dir(self), Dir: "/"})
			switch output {
			case "table":
				err = printFindings(cmd.OutOrStdout(), found)
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(found)
			default:
				return &usageError{errors.New("-o takes table or json, and was given " + output)}
			}
			if err == nil && doctor.Failed(found) {
				err = errors.New("pods cannot run as they should on this machine: see what failed")
			}
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return c
}

// printFindings prints a line per check; what is missing has its cost and its
// cure below it.
func printFindings(w io.Writer, found []doctor.Finding) error {
	n := map[doctor.Status]int{}
	area := ""
	for _, f := range found {
		n[f.Status]++
		if f.Area != area {
			area = f.Area
			fmt.Fprintf(w, "%s\n", area)
		}
		fmt.Fprintf(w, "  %-4s  %s: %s\n", f.Status, f.Check, f.Found)
		if f.Status != doctor.OK {
			fmt.Fprintf(w, "        costs: %s\n        mend:  %s\n", f.Cost, f.Mend)
		}
	}
	_, err := fmt.Fprintf(w, "%d ok, %d warnings, %d failed\n", n[doctor.OK], n[doctor.Warn], n[doctor.Fail])
	return err
}
