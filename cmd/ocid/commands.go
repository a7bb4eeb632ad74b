package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/daemon"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ocid", daemon.Version)
			return err
		},
	}
}

func serveCommand(g *globals) *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use: "serve", Short: "Serve the Kubernetes CRI", Args: cobra.NoArgs,
		Long: "Serve the Kubernetes CRI on a unix socket. The daemon holds no container as a\nchild: stopping or killing it stops nothing, and a new one takes over.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			g.extra = []config.Flag{{Key: "server.listen", Name: "listen", Value: listen}}
			conf, err := g.load()
			if err != nil {
				return err
			}
			level := new(slog.LevelVar)
			return daemon.Serve(cmd.Context(), daemon.Options{
				Config: conf, Log: logger(conf.Config, level), Level: level, Reload: g.load,
			})
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "socket, unix:///path (default ocid.sock under the run root)")
	return c
}

func configCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show and check the configuration", Args: cobra.NoArgs}
	c.AddCommand(configShowCommand(g), configCheckCommand(g), &cobra.Command{
		Use: "default", Short: "Print the default configuration file with its documentation", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Sample())
			return err
		},
	})
	return c
}

func configShowCommand(g *globals) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "show", Short: "Print the effective configuration and where each value came from", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := g.load()
			if err != nil {
				return err
			}
			switch output {
			case "toml":
				_, err := fmt.Fprint(cmd.OutOrStdout(), conf.Show())
				return err
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(conf.Values())
			}
			return &usageError{errors.New("-o takes toml or json, and was given " + output)}
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "toml", "toml or json")
	return c
}

func configCheckCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE]", Short: "Validate the configuration, or a file that may become it", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := g.load()
			if len(args) == 1 {
				conf, err = config.Load(args[0], true)
			}
			if err != nil {
				return err
			}
			what := "no file, the defaults"
			if len(conf.Files()) > 0 {
				what = strings.Join(conf.Files(), ", ")
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the configuration is valid (%s)\n", what)
			return err
		},
	}
}
