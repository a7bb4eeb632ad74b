package imagecmd

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ocid-io/ocid/pull"
)

// remoteFlags are the flags of commands that talk to a registry.
type remoteFlags struct {
	creds, platform string
	insecure        bool
}

func (f *remoteFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.creds, "creds", "", "`user:password` for the registry; default: the auth files")
	cmd.Flags().StringVar(&f.platform, "platform", "", "`os/arch[/variant]` to choose; default: this machine's")
	cmd.Flags().BoolVar(&f.insecure, "insecure", false, "allow plain HTTP and unverified TLS")
}

func (f *remoteFlags) request(ref string) (pull.Request, error) {
	req := pull.Request{Reference: ref, ShortNames: true, Insecure: f.insecure}
	if f.creds != "" {
		user, password, ok := strings.Cut(f.creds, ":")
		if !ok || user == "" {
			return req, usageError{fmt.Errorf("--creds: want user:password")}
		}
		req.Auth = &pull.Auth{Username: user, Password: password}
	}
	if f.platform != "" {
		parts := strings.Split(f.platform, "/")
		if len(parts) < 2 || len(parts) > 3 {
			return req, usageError{fmt.Errorf("--platform %q: want os/arch[/variant]", f.platform)}
		}
		req.Platform.OS, req.Platform.Arch = parts[0], parts[1]
		if len(parts) == 3 {
			req.Platform.Variant = parts[2]
		}
	}
	return req, nil
}

func (open Open) pullCmd() *cobra.Command {
	var remote remoteFlags
	cmd := &cobra.Command{Use: "pull IMAGE...", Short: "Pull images", Args: args(cobra.MinimumNArgs(1))}
	remote.add(cmd)
	quiet := cmd.Flags().BoolP("quiet", "q", false, "no progress")
	format := output(cmd)
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		asJSON, err := format()
		if err != nil {
			return err
		}
		var reqs []pull.Request
		for _, ref := range a {
			req, err := remote.request(ref)
			if err != nil {
				return err
			}
			reqs = append(reqs, req)
		}
		s, p, err := open()
		if err != nil {
			return err
		}
		defer s.Close()
		for _, req := range reqs {
			end := func() {}
			if !*quiet {
				pr := &printer{w: cmd.ErrOrStderr(), name: req.Reference, overwrite: isTerminal(cmd.ErrOrStderr())}
				req.Progress, end = pr.show, pr.end
			}
			res, err := p.Pull(cmd.Context(), req)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), map[string]string{"id": res.ImageID, "digest": res.Digest.String(), "reference": res.Reference})
			} else {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), res.ImageID)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// printer shows progress: one line that changes on a terminal, else a line per
// phase and one every few seconds.
type printer struct {
	w         io.Writer
	name      string
	overwrite bool

	phase pull.Phase
	last  time.Time
	open  bool // the line on the terminal has no end yet
}

func (p *printer) show(pr pull.Progress) {
	line := fmt.Sprintf("%s: %s", p.name, pr.Phase)
	if pr.Total > 0 {
		line += fmt.Sprintf(", %s of %s, layer %d of %d", size(pr.Bytes), size(pr.Total), pr.LayersDone, pr.Layers)
	}
	if p.overwrite {
		fmt.Fprintf(p.w, "\r\033[K%s", line)
		p.open = true
		return
	}
	if pr.Phase == p.phase && time.Since(p.last) < 5*time.Second {
		return
	}
	p.phase, p.last = pr.Phase, time.Now()
	fmt.Fprintln(p.w, line)
}

func (p *printer) end() {
	if p.open {
		fmt.Fprintln(p.w)
		p.open = false
	}
}
