package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// inputs are the programs that the images are made of.
type inputs struct {
	busybox    string // static, every applet
	pause      string
	nonewprivs string
	nginx      string            // the binary
	nginxLibs  map[string]string // path in the image -> file
}

// aptConfig is a private apt state, so that neither the host's sources nor
// its package database matter or change.
const aptSources = `Types: deb deb-src
URIs: %s
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`

func prepareInputs(ctx context.Context, work string, progress io.Writer) (inputs, error) {
	in := inputs{
		busybox:    filepath.Join(work, "busybox"),
		pause:      filepath.Join(work, "pause"),
		nonewprivs: filepath.Join(work, "nonewprivs"),
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return in, err
	}
	for name, out := range map[string]string{"pause": in.pause, "nonewprivs": in.nonewprivs} {
		if err := compile(ctx, name, out); err != nil {
			return in, err
		}
	}
	a := apt{dir: filepath.Join(work, "apt"), progress: progress}
	if err := a.update(ctx); err != nil {
		return in, err
	}
	if err := a.busybox(ctx, in.busybox); err != nil {
		return in, fmt.Errorf("build busybox: %w", err)
	}
	if err := a.nginx(ctx, &in); err != nil {
		return in, fmt.Errorf("fetch nginx: %w", err)
	}
	return in, nil
}

func compile(ctx context.Context, name, out string) error {
	src, err := csrc.ReadFile("csrc/" + name + ".c")
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "gcc", "-static", "-Os", "-s", "-x", "c", "-", "-o", out)
	c.Stdin = strings.NewReader(string(src))
	if b, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc %s: %w\n%s", name, err, b)
	}
	return nil
}

type apt struct {
	dir      string
	progress io.Writer
}

func (a apt) args(rest ...string) []string {
	return append([]string{
		"-q",
		"-o", "Dir::Etc::sourcelist=" + a.dir + "/ocid.sources",
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::State=" + a.dir + "/state",
		"-o", "Dir::State::status=" + a.dir + "/status",
		"-o", "Dir::Cache=" + a.dir + "/cache",
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Retries=3",
	}, rest...)
}

func (a apt) run(ctx context.Context, dir string, args ...string) error {
	return run(ctx, dir, "apt-get", a.args(args...)...)
}

func run(ctx context.Context, dir, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "MAKEFLAGS=", "LC_ALL=C")
	if b, err := c.CombinedOutput(); err != nil {
		if len(b) > 4000 {
			b = b[len(b)-4000:]
		}
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, b)
	}
	return nil
}

func (a apt) update(ctx context.Context) error {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	mirror := os.Getenv("OCID_DEBIAN_MIRROR")
	if mirror == "" {
		mirror = "http://deb.debian.org/debian"
	}
	src := fmt.Sprintf(aptSources, mirror)
	if err := os.WriteFile(filepath.Join(a.dir, "ocid.sources"), []byte(src), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644); err != nil {
		return err
	}
	fmt.Fprintln(a.progress, "images: reading the package lists of", mirror)
	return a.run(ctx, a.dir, "update")
}

// busybox builds Debian's source with its default configuration, static.
// Debian's own busybox-static will not do: its shell runs applets that are not
// in PATH, and it lacks some.
func (a apt) busybox(ctx context.Context, out string) error {
	fmt.Fprintln(a.progress, "images: building busybox from Debian's source (about a minute)")
	src := filepath.Join(a.dir, "src")
	if err := os.RemoveAll(src); err != nil {
		return err
	}
	if err := os.MkdirAll(src, 0o755); err != nil {
		return err
	}
	if err := a.run(ctx, src, "source", "--download-only", "busybox"); err != nil {
		return err
	}
	tars, err := filepath.Glob(filepath.Join(src, "busybox_*.orig.tar.bz2"))
	if err != nil || len(tars) != 1 {
		return errors.Join(fmt.Errorf("want one orig tar in %s, found %v", src, tars), err)
	}
	if err := run(ctx, src, "tar", "--strip-components=1", "-xjf", tars[0]); err != nil {
		return err
	}
	if err := run(ctx, src, "make", "defconfig"); err != nil {
		return err
	}
	if err := editConfig(filepath.Join(src, ".config")); err != nil {
		return err
	}
	if err := run(ctx, src, "sh", "-c", "yes '' | make oldconfig"); err != nil {
		return err
	}
	if err := run(ctx, src, "make", "-j"+strconv.Itoa(runtime.NumCPU()), "busybox"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(src, "busybox"), out); err != nil {
		return err
	}
	return os.RemoveAll(src)
}

// editConfig makes the build static and leaves tc out, which does not compile
// against newer kernel headers.
func editConfig(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		switch l {
		case "# CONFIG_STATIC is not set":
			lines[i] = "CONFIG_STATIC=y"
		case "CONFIG_TC=y", "CONFIG_FEATURE_TC_INGRESS=y":
			lines[i] = "# " + strings.TrimSuffix(l, "=y") + " is not set"
		}
	}
	return os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644)
}

// nginx takes the binary and the libraries it needs out of Debian's packages;
// nothing is installed on the host.
func (a apt) nginx(ctx context.Context, in *inputs) error {
	fmt.Fprintln(a.progress, "images: unpacking Debian's nginx")
	debs := filepath.Join(a.dir, "debs")
	tree := filepath.Join(a.dir, "tree")
	for _, d := range []string{debs, tree} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := a.run(ctx, debs, "download", "nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := run(ctx, debs, "dpkg", "-x", f, tree); err != nil {
			return err
		}
	}
	in.nginx = filepath.Join(tree, "usr/sbin/nginx")
	in.nginxLibs = map[string]string{}
	for _, lib := range []string{"libcrypt.so.1", "libpcre2-8.so.0", "libssl.so.3", "libcrypto.so.3", "libz.so.1", "libc.so.6", "libnss_files.so.2"} {
		f, err := findLib(tree, lib)
		if err != nil {
			return err
		}
		in.nginxLibs["lib/x86_64-linux-gnu/"+lib] = f
	}
	f, err := findLib(tree, "ld-linux-x86-64.so.2")
	if err != nil {
		return err
	}
	in.nginxLibs["lib64/ld-linux-x86-64.so.2"] = f
	return nil
}

func findLib(tree, name string) (string, error) {
	for _, d := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"} {
		p := filepath.Join(tree, d, name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("library %s is not in Debian's packages under %s", name, tree)
}
