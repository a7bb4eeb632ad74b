package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/cmd/ocid/internal/config"
	"github.com/ocid-io/ocid/cmd/ocid/internal/daemon"
	"github.com/ocid-io/ocid/cmd/ocid/internal/generatecmd"
	"github.com/ocid-io/ocid/cmd/ocid/internal/imagecmd"
	"github.com/ocid-io/ocid/pull"
	"github.com/ocid-io/ocid/store/layered"
)

// globals are the flags that every command takes.
type globals struct {
	file, root, runRoot, level, format string
	extra                              []config.Flag // of the command itself
	cmd                                *cobra.Command
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:           "ocid",
		Short:         "Run containers in production",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	g.cmd = root
	f := root.PersistentFlags()
	f.StringVar(&g.file, "config", config.DefaultFile, "configuration file")
	f.StringVar(&g.root, "root", "", "durable state (default /var/lib/ocid)")
	f.StringVar(&g.runRoot, "run-root", "", "state of this boot, on tmpfs (default /run/ocid)")
	f.StringVar(&g.level, "log-level", "", "debug, info, warn or error (default info)")
	f.StringVar(&g.format, "log-format", "", "text or json (default text)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.AddCommand(versionCommand(), serveCommand(g), configCommand(g), doctorCommand(g), docsCommand(), generatecmd.Command())
	root.AddCommand(imagecmd.Commands(func() (*layered.Store, *pull.Puller, error) {
		c, err := g.load()
		if err != nil {
			return nil, nil, err
		}
		return daemon.OpenImages(c.Config, logger(c.Config, new(slog.LevelVar)))
	})...)
	wrapArgs(root)
	return root
}

// wrapArgs turns every command's complaint about its arguments into a usage error.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// load reads the configuration files and lays the flags over them.
func (g *globals) load() (*config.Loaded, error) {
	return config.Load(g.file, g.cmd.PersistentFlags().Changed("config"), append([]config.Flag{
		{Key: "root", Name: "root", Value: g.root},
		{Key: "run_root", Name: "run-root", Value: g.runRoot},
		{Key: "log_level", Name: "log-level", Value: g.level},
		{Key: "log_format", Name: "log-format", Value: g.format},
	}, g.extra...)...)
}

// logger writes to standard error; its level can change while it is used.
func logger(c config.Config, level *slog.LevelVar) *slog.Logger {
	// An unknown level was refused with the configuration.
	_ = level.UnmarshalText([]byte(c.LogLevel))
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}
