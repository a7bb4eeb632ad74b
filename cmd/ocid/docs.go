package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/observe"
)

// docsCommand writes the pages that are generated from the code.
func docsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "docs man|reference DIR", Short: "Write man pages, or the reference pages of docs/", Hidden: true,
		Args: cobra.ExactArgs(2), ValidArgs: []string{"man", "reference"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[1], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			switch args[0] {
			case "man":
				return doc.GenManTree(root, &doc.GenManHeader{Title: "OCID", Section: "1", Source: "ocid", Manual: "ocid manual"}, args[1])
			case "reference":
				return writeReference(root, args[1])
			}
			return &usageError{errors.New("docs writes man or reference, and was asked for " + args[0])}
		},
	}
}

func writeReference(root *cobra.Command, dir string) error {
	pages, err := reference(root)
	if err != nil {
		return err
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// reference renders the pages of docs/reference.
func reference(root *cobra.Command) (map[string]string, error) {
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	var b bytes.Buffer
	b.WriteString("# Command reference\n\nMade from the code by `make docs`; do not edit.\n\n")
	if err := commands(&b, root); err != nil {
		return nil, err
	}
	metrics, err := observe.Reference()
	if err != nil {
		return nil, err
	}
	return map[string]string{"commands.md": b.String(), "config.md": config.Reference(), "metrics.md": metrics}, nil
}

// commands writes one section per command that can be run, in order of name.
func commands(b *bytes.Buffer, c *cobra.Command) error {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return nil
	}
	if c.Runnable() || !c.HasParent() {
		fmt.Fprintf(b, "## %s\n\n%s.\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
		if c.Long != "" {
			fmt.Fprintf(b, "\n%s\n", strings.TrimSpace(c.Long))
		}
		if c.Runnable() {
			fmt.Fprintf(b, "\n    %s\n", c.UseLine())
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\nExamples:\n\n%s\n", c.Example)
		}
		flags := c.NonInheritedFlags()
		c.InitDefaultHelpFlag()
		flags.SetOutput(b)
		if flags.HasAvailableFlags() {
			b.WriteString("\n```\n")
			flags.PrintDefaults()
			b.WriteString("```\n")
		}
		b.WriteString("\n")
	}
	for _, sub := range c.Commands() {
		if err := commands(b, sub); err != nil {
			return err
		}
	}
	return nil
}
