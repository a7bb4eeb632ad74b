package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

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
			conf, err := g.load()
			if err != nil {
				return err
			}
			if listen != "" {
				conf.Server.Listen = listen
				if err := conf.Complete(); err != nil {
					return &usageError{err}
				}
			}
			return daemon.Serve(cmd.Context(), conf, g.logger(conf))
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "socket, unix:///path (default ocid.sock under the run root)")
	return c
}

func configCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show and check the configuration", Args: cobra.NoArgs}
	c.AddCommand(&cobra.Command{
		Use: "show", Short: "Print the effective configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := g.load()
			if err != nil {
				return err
			}
			return toml.NewEncoder(cmd.OutOrStdout()).Encode(conf)
		},
	}, &cobra.Command{
		Use: "check", Short: "Validate the configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := g.load(); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
			return err
		},
	}, &cobra.Command{
		Use: "default", Short: "Print the default configuration file with its documentation", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Sample())
			return err
		},
	})
	return c
}

// docsCommand writes the pages that are generated from the commands themselves.
func docsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs man|markdown DIR", Short: "Write man pages or the command reference", Hidden: true,
		Args: cobra.ExactArgs(2), ValidArgs: []string{"man", "markdown"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[1], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			switch args[0] {
			case "man":
				return doc.GenManTree(root, &doc.GenManHeader{Title: "OCID", Section: "1", Source: "ocid", Manual: "ocid manual"}, args[1])
			case "markdown":
				return doc.GenMarkdownTree(root, args[1])
			}
			return &usageError{errors.New("docs writes man or markdown, and was asked for " + args[0])}
		},
	}
}
