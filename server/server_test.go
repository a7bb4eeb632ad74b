package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ocid-io/ocid/internal/stages"
	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/store"
)

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{runtime.ErrNotFound, codes.NotFound},
		{runtime.ErrInvalid, codes.InvalidArgument},
		{runtime.ErrState, codes.FailedPrecondition},
		{runtime.ErrTimeout, codes.DeadlineExceeded},
		{runtime.ErrUnavailable, codes.Unavailable},
		{store.ErrNotFound, codes.NotFound},
		{store.ErrInUse, codes.FailedPrecondition},
		{store.ErrReadOnly, codes.FailedPrecondition},
		{store.ErrInvalid, codes.InvalidArgument},
		{store.ErrDamaged, codes.DataLoss},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{&os.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}, codes.ResourceExhausted},
		{unix.EDQUOT, codes.ResourceExhausted},
		{unix.EMFILE, codes.ResourceExhausted},
		{unix.ENFILE, codes.ResourceExhausted},
		{unix.ENOMEM, codes.ResourceExhausted},
		{errors.New("other"), codes.Unknown},
		{status.Error(codes.Aborted, "as it is"), codes.Aborted},
		{fmt.Errorf("%w: %w", runtime.ErrInvalid, context.Canceled), codes.InvalidArgument},
	} {
		for _, err := range []error{tc.err, fmt.Errorf("outer: %w", tc.err)} {
			if tc.err == nil && err != nil {
				continue
			}
			got := Status(err)
			if status.Code(got) != tc.want {
				t.Errorf("%v: got %s, want %s", err, status.Code(got), tc.want)
			}
			if err != nil && !errors.Is(tc.err, err) && !strings.Contains(got.Error(), "outer: ") {
				t.Errorf("%v: the context was lost: %v", err, got)
			}
		}
	}
	for _, row := range table {
		if got := status.Code(Status(row.err)); got != row.code {
			t.Errorf("row %v: got %s, want %s: an earlier row hides it", row.err, got, row.code)
		}
	}
}

// fake panics, fails, waits or answers.
type fake struct {
	cri.UnimplementedRuntimeServiceServer
	entered chan struct{}
	release chan struct{}
}

func (f *fake) Version(ctx context.Context, req *cri.VersionRequest) (*cri.VersionResponse, error) {
	switch req.Version {
	case "panic":
		panic("boom")
	case "fail":
		return nil, fmt.Errorf("look: %w", runtime.ErrNotFound)
	case "wait":
		close(f.entered)
		select {
		case <-f.release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	stages.Start(ctx, "answering")()
	return &cri.VersionResponse{Version: "ok"}, nil
}

func start(t *testing.T, f *fake, o Options) (cri.RuntimeServiceClient, context.CancelFunc, chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	o.Listeners = []net.Listener{l}
	s := New(o)
	cri.RegisterRuntimeServiceServer(s, f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = conn.Close() })
	return cri.NewRuntimeServiceClient(conn), cancel, done
}

func TestCalls(t *testing.T) {
	var log bytes.Buffer
	rec := stages.New()
	c, cancel, done := start(t, &fake{}, Options{
		Log: slog.New(slog.NewTextHandler(&log, nil)), Stages: rec,
	})
	ctx := t.Context()
	if _, err := c.Version(ctx, &cri.VersionRequest{Version: "panic"}); status.Code(err) != codes.Internal {
		t.Errorf("a panic answered %v", err)
	}
	if _, err := c.Version(ctx, &cri.VersionRequest{Version: "fail"}); status.Code(err) != codes.NotFound {
		t.Errorf("a failure answered %v", err)
	}
	if _, err := c.Version(ctx, &cri.VersionRequest{}); err != nil {
		t.Errorf("the server did not survive: %v", err)
	}
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: "abc"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown call answered %v", err)
	}
	if _, err := c.Exec(ctx, &cri.ExecRequest{}); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "Exec") {
		t.Errorf("an unknown call answered %v", err)
	}
	big := &cri.VersionRequest{Version: strings.Repeat("x", MaxMessage+1)}
	if _, err := c.Version(ctx, big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message too large answered %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := rec.Snapshot()["Version"]; got.Count != 3 || got.Stages["answering"].Count != 1 {
		t.Errorf("stages: %+v", got)
	}
	if s := log.String(); !strings.Contains(s, "method=StopPodSandbox") || !strings.Contains(s, "pod=abc code=Unimplemented") {
		t.Errorf("the log does not say which pod:\n%s", s)
	}
	if s := log.String(); !strings.Contains(s, "boom") || !strings.Contains(s, "server_test.go") {
		t.Errorf("the panic is not in the log with its stack:\n%s", s)
	}
}

func TestSubject(t *testing.T) {
	long := strings.Repeat("x", 2*maxSubject)
	for want, message := range map[string]any{
		"[{pod p}]":                         &cri.StopPodSandboxRequest{PodSandboxId: "p"},
		"[{pod q}]":                         &cri.RunPodSandboxResponse{PodSandboxId: "q"},
		"[{container c}]":                   &cri.ExecSyncRequest{ContainerId: "c"},
		"[{image i}]":                       &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "i"}},
		"[{pod p} {name n} {image i}]":      &cri.CreateContainerRequest{PodSandboxId: "p", Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "n"}, Image: &cri.ImageSpec{Image: "i"}}},
		"[{namespace ns} {name n}]":         &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Namespace: "ns", Name: "n"}}},
		"[{pod " + long[:maxSubject] + "}]": &cri.StopPodSandboxRequest{PodSandboxId: long},
		"[]":                                &cri.RunPodSandboxRequest{},
	} {
		if got := fmt.Sprint(subject(message)); got != want {
			t.Errorf("%T: got %s, want %s", message, got, want)
		}
	}
	if subject(nil) != nil {
		t.Error("nothing is about something")
	}
}

func TestGracefulStop(t *testing.T) {
	f := &fake{entered: make(chan struct{}), release: make(chan struct{})}
	c, cancel, done := start(t, f, Options{})
	result := make(chan error, 1)
	go func() {
		_, err := c.Version(context.WithoutCancel(t.Context()), &cri.VersionRequest{Version: "wait"})
		result <- err
	}()
	<-f.entered
	cancel()
	close(f.release)
	if err := <-result; err != nil {
		t.Errorf("the call in flight was cut off: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestForcedStop(t *testing.T) {
	f := &fake{entered: make(chan struct{}), release: make(chan struct{})}
	c, cancel, done := start(t, f, Options{StopTime: time.Millisecond})
	go func() { _, _ = c.Version(context.WithoutCancel(t.Context()), &cri.VersionRequest{Version: "wait"}) }()
	<-f.entered
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeNothing(t *testing.T) {
	if err := New(Options{}).Serve(t.Context()); err == nil {
		t.Fatal("served without a listener")
	}
}

func TestListenTakesOverStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)

	// It is served, though without our lock.
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("took a served socket: %v", err)
	}
	_ = stale.Close()
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one got the socket: %v", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("dial: %v", err)
	} else {
		_ = c.Close()
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	_ = l.Close()
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 || left[0].Name() != "s.lock" {
		t.Errorf("left behind: %v", left)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{
		"", "relative", "tcp://127.0.0.1:1", "unix://relative", dir + "/../x", file,
		filepath.Join(dir, strings.Repeat("x", 120)),
	} {
		if l, err := Listen(address); err == nil {
			_ = l.Close()
			t.Errorf("%q was taken", address)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("a file was overwritten")
	}
}

func TestQuiet(t *testing.T) {
	for name, want := range map[string]bool{
		"ListPodSandbox": true, "ContainerStatus": true, "Status": true, "ListContainerStats": true,
		"PodSandboxStats": true, "RunPodSandbox": false, "PullImage": false,
	} {
		if quiet(name) != want {
			t.Errorf("%s", name)
		}
	}
}
