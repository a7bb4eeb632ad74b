// Command demo shows a pod's whole life on a private ocid: a registry on
// loopback, a pull, a pod on a bridge, a web server, an exec, a log, and at the
// end the proof that nothing is left. Every step prints the time it took.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/test/harness"
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: needs root, for namespaces and mounts")
		os.Exit(1)
	}
	if err := harness.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	ctx       context.Context
	e         *harness.Env
	pod       *runtimeapi.PodSandboxConfig
	podID, id string
	before    harness.Snapshot
}

// step runs f, and prints what it did and how long that took.
func (d *demo) step(name string, f func() (string, error)) error {
	start := time.Now()
	note, err := f()
	took := time.Since(start)
	if err != nil {
		tail := ""
		if d.e != nil {
			tail = "\nthe end of the daemon's log:\n" + d.e.LogTail(20)
		}
		return fmt.Errorf("%s: %w%s", name, err, tail)
	}
	fmt.Printf("%9.1f ms  %-44s %s\n", float64(took.Microseconds())/1000, name, note)
	return nil
}

func run() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	d := &demo{ctx: ctx}
	defer func() {
		if d.e != nil {
			err = errors.Join(err, d.e.Close())
		}
	}()
	for _, s := range []struct {
		name string
		f    func() (string, error)
	}{
		{"prepare images, registry and network", d.prepare},
		{"start ocid serve under a temporary root", d.serve},
		{"pull the image from the registry", d.pull},
		{"let one pod come and go (makes the bridge)", d.warm},
		{"run a pod on the bridge network", d.run},
		{"create the web server's container", d.create},
		{"start it", d.start},
		{"fetch its page from the host", d.fetch},
		{"exec into it", d.exec},
		{"read its log", d.log},
		{"stop and remove the container", d.removeContainer},
		{"stop and remove the pod", d.removePod},
		{"look for what is left", d.look},
		{"stop the daemon and remove its root", d.finish},
	} {
		if err := d.step(s.name, s.f); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) prepare() (note string, err error) {
	if d.e, err = harness.New(d.ctx, harness.Options{Progress: os.Stderr}); err != nil {
		return "", err
	}
	return d.e.Registry.Addr(), nil
}

func (d *demo) serve() (string, error) { return d.e.Socket, d.e.Start(d.ctx) }

func (d *demo) pull() (string, error) {
	for _, i := range []string{harness.Nginx, harness.Busybox} {
		if _, err := d.e.Pull(d.ctx, i); err != nil {
			return "", err
		}
	}
	return harness.Nginx, nil
}

func (d *demo) warm() (string, error) {
	id, _, err := d.e.Up(d.ctx, d.e.Pod("first", false), "", harness.Container("nginx", harness.Nginx))
	if err != nil {
		return "", err
	}
	if err := d.e.Down(d.ctx, id); err != nil {
		return "", err
	}
	if err := os.RemoveAll(filepath.Join(d.e.Dir, "logs")); err != nil {
		return "", err
	}
	d.before, err = d.e.Snapshot()
	return "", err
}

func (d *demo) run() (note string, err error) {
	d.pod = d.e.Pod("web", false)
	if d.podID, err = d.e.RunPod(d.ctx, d.pod, ""); err != nil {
		return "", err
	}
	return d.e.PodIP(d.ctx, d.podID)
}

func (d *demo) create() (note string, err error) {
	c := harness.Container("nginx", harness.Nginx)
	d.id, err = d.e.CreateContainer(d.ctx, d.podID, d.pod, c)
	return d.id[:min(12, len(d.id))], err
}

func (d *demo) start() (string, error) { return "", d.e.StartContainer(d.ctx, d.id) }

func (d *demo) fetch() (string, error) {
	ip, err := d.e.PodIP(d.ctx, d.podID)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ip+"/", nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			defer resp.Body.Close()
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			if !strings.Contains(string(body), "Welcome to nginx") {
				return "", fmt.Errorf("the page reads %q", body)
			}
			return resp.Status, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(5 * time.Millisecond): // until the server listens
		}
	}
}

func (d *demo) exec() (string, error) {
	r, err := d.e.Exec(d.ctx, d.id, "sh", "-c", "echo pid 1 is $(cat /proc/1/comm)")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(r.Stdout)), nil
}

func (d *demo) log() (string, error) {
	b, err := os.ReadFile(filepath.Join(d.pod.LogDirectory, "nginx.log"))
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, "GET /") {
			return strings.TrimSpace(l), nil
		}
	}
	return "", fmt.Errorf("the request is not in the log:\n%s", b)
}

func (d *demo) removeContainer() (string, error) {
	if err := d.e.StopContainer(d.ctx, d.id, 10); err != nil {
		return "", err
	}
	return "", d.e.RemoveContainer(d.ctx, d.id)
}

func (d *demo) removePod() (string, error) { return "", d.e.Down(d.ctx, d.podID) }

func (d *demo) look() (string, error) {
	left, err := d.e.Leaks(d.before)
	if err != nil {
		return "", err
	}
	if len(left) > 0 {
		return "", fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return "no mount, cgroup, link, address, rule, process or file", nil
}

func (d *demo) finish() (string, error) {
	e := d.e
	d.e = nil
	return "", e.Close()
}
