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
	root.AddCommand(versionCommand(), serveCommand(g), configCommand(g), docsCommand(), generatecmd.Command())
	root.AddCommand(imagecmd.Commands(func() (*layered.Store, *pull.Puller, error) {
		c, err := g.load()
		if err != nil {
			return nil, nil, err
		}
		return daemon.OpenImages(c, g.logger(c))
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

// load reads the configuration file, lays the flags over it and validates.
func (g *globals) load() (config.Config, error) {
	c, err := config.Load(g.file, g.cmd.PersistentFlags().Changed("config"))
	if err != nil {
		return c, err
	}
	for flag, key := range map[*string]*string{&g.root: &c.Root, &g.runRoot: &c.RunRoot, &g.level: &c.LogLevel, &g.format: &c.LogFormat} {
		if *flag != "" {
			*key = *flag
		}
	}
	return c, c.Complete()
}

func (g *globals) logger(c config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}
