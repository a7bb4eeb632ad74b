package streaming

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/ocid-io/ocid/runtime"
	"github.com/ocid-io/ocid/test/streamclient"
)

// fake is a container whose processes are functions.
type fake struct {
	exec    func(ctx context.Context, cmd []string, s runtime.Streams) (int32, error)
	attach  func(ctx context.Context, s runtime.Streams) error
	forward func(ctx context.Context, port uint16, s io.ReadWriteCloser) error
}

func (f fake) Exec(ctx context.Context, _ runtime.ContainerID, cmd []string, s runtime.Streams) (int32, error) {
	return f.exec(ctx, cmd, s)
}

func (f fake) Attach(ctx context.Context, _ runtime.ContainerID, s runtime.Streams) error {
	return f.attach(ctx, s)
}

func (f fake) PortForward(ctx context.Context, _ runtime.PodID, port uint16, s io.ReadWriteCloser) error {
	return f.forward(ctx, port, s)
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	if o.IdleTimeout == 0 {
		o.IdleTimeout = time.Minute
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t *testing.T) func(string, error) string {
	return func(u string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
}

// echo says what it was asked, copies its input, and ends with 3.
func echo(_ context.Context, cmd []string, s runtime.Streams) (int32, error) {
	fmt.Fprintf(s.Stdout, "%q tty=%v;", cmd, s.TTY)
	if s.TTY {
		z := <-s.Resize
		fmt.Fprintf(s.Stdout, "%dx%d;", z.Width, z.Height)
	}
	if s.Stdin != nil {
		_, _ = io.Copy(s.Stdout, s.Stdin)
	}
	if s.Stderr != nil {
		_, _ = io.WriteString(s.Stderr, "err")
	}
	return 3, nil
}

func TestExecSPDY(t *testing.T) {
	s := start(t, Options{Backend: fake{exec: echo}})
	if !strings.HasPrefix(s.Base(), "http://127.0.0.1:") {
		t.Errorf("listens on %s", s.Base())
	}
	w := Want{Stdin: true, Stdout: true, Stderr: true}
	c, err := streamclient.Open(must(t)(s.ExecURL("c", []string{"a", "b"}, w)), streamclient.Want{Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c.Stdin, "in")
	_ = c.Stdin.Close() // the half-close
	r, err := c.Wait()
	if err != nil || r.Code != 3 || r.Failure != "" {
		t.Errorf("%+v %v", r, err)
	}
	out, _ := io.ReadAll(c.Stdout)
	errs, _ := io.ReadAll(c.Stderr)
	if string(out) != `["a" "b"] tty=false;in` || string(errs) != "err" {
		t.Errorf("%q %q", out, errs)
	}
}

func TestExecSPDYTerminal(t *testing.T) {
	s := start(t, Options{Backend: fake{exec: echo}})
	c, err := streamclient.Open(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true, TTY: true})), streamclient.Want{Stdout: true, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Resize(80, 24); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(c.Stdout)
	if string(out) != `["a"] tty=true;80x24;` {
		t.Errorf("%q", out)
	}
}

func TestExecWebSocket(t *testing.T) {
	s := start(t, Options{Backend: fake{exec: echo}})
	for _, p := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
		half := p[:2] == "v5"
		c, err := streamclient.OpenWebSocket(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdin: half, Stdout: true, Stderr: true})), p)
		if err != nil {
			t.Fatal(err)
		}
		want := `["a"] tty=false;`
		if half {
			if err := errors.Join(c.Send(remotecommand.StreamStdIn, []byte("in")), c.CloseStdin()); err != nil {
				t.Error(err)
			}
			want += "in"
		}
		out, errs, r, err := c.All()
		if out != want || errs != "err" || r.Code != 3 || err != nil {
			t.Errorf("%s: %q %q %+v %v", p, out, errs, r, err)
		}
		c.Conn.Close()
	}
	c, err := streamclient.OpenWebSocket(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true, TTY: true})), "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Conn.Close()
	if err := c.Resize(80, 24); err != nil {
		t.Fatal(err)
	}
	if out, _, _, err := c.All(); out != `["a"] tty=true;80x24;` || err != nil {
		t.Errorf("%q %v", out, err)
	}
	if _, err := streamclient.OpenWebSocket(must(t)(s.ExecURL("c", nil, Want{Stdout: true})), "v9.channel.k8s.io"); err == nil {
		t.Error("an unknown subprotocol was taken")
	}
}

func TestFailure(t *testing.T) {
	s := start(t, Options{Backend: fake{
		exec:   func(context.Context, []string, runtime.Streams) (int32, error) { return 0, errors.New("no such luck") },
		attach: func(context.Context, runtime.Streams) error { return errors.New("no such luck") },
	}})
	for _, u := range []string{must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true})), must(t)(s.AttachURL("c", Want{Stdout: true}))} {
		c, err := streamclient.Open(u, streamclient.Want{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := c.Wait(); err != nil || !strings.Contains(r.Failure, "no such luck") {
			t.Errorf("%+v %v", r, err)
		}
		c.Close()
	}
	c, err := streamclient.OpenWebSocket(must(t)(s.AttachURL("c", Want{Stdout: true})), "v5.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Conn.Close()
	if _, _, r, err := c.All(); err != nil || !strings.Contains(r.Failure, "no such luck") {
		t.Errorf("%+v %v", r, err)
	}
}

// TestGone: the context ends with the client, even one whose input is stuck.
func TestGone(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := start(t, Options{Backend: fake{exec: func(ctx context.Context, _ []string, _ runtime.Streams) (int32, error) {
		close(begun)
		select {
		case <-ctx.Done():
			ended <- context.Cause(ctx)
		case <-time.After(20 * time.Second):
			ended <- errors.New("the context did not end")
		}
		return 0, ctx.Err()
	}}})
	for name, stuff := range map[string]bool{"idle": false, "stuck": true} {
		begun = make(chan struct{})
		c, err := streamclient.Open(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdin: true, Stdout: true})), streamclient.Want{Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		<-begun
		if stuff {
			// More frames than are queued and read ahead, and less bytes than
			// a socket holds.
			for range 2000 {
				if _, err := c.Stdin.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Raw.Close()
		if err := <-ended; !errors.Is(err, errGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNeverReading: a stream that has failed ends, whatever its client does.
func TestNeverReading(t *testing.T) {
	ended := make(chan struct{})
	s := start(t, Options{Backend: fake{attach: func(ctx context.Context, st runtime.Streams) error {
		context.AfterFunc(ctx, func() { close(ended) })
		filled := make(chan struct{})
		go func() {
			for chunk := make([]byte, 1<<20); ; {
				sent := make(chan struct{})
				go func() { _, _ = st.Stdout.Write(chunk); close(sent) }()
				select {
				case <-sent:
				case <-time.After(300 * time.Millisecond):
					close(filled)
					return
				}
			}
		}()
		<-filled
		return errors.New("detached")
	}}})
	c, err := streamclient.Open(must(t)(s.AttachURL("c", Want{Stdout: true})), streamclient.Want{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case <-ended:
	case <-time.After(lastWords + 20*time.Second):
		t.Error("the stream does not end")
	}
}

func TestPortForward(t *testing.T) {
	s := start(t, Options{Backend: fake{forward: func(_ context.Context, port uint16, st io.ReadWriteCloser) error {
		if port == 81 {
			return errors.New("connection refused: nothing listens")
		}
		b, err := io.ReadAll(st) // until the half-close
		if err == nil {
			_, err = st.Write(bytes.ToUpper(b))
		}
		return err
	}}})
	f, err := streamclient.OpenForward(must(t)(s.PortForwardURL("p", nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, want := range []struct {
		port        int
		data, error string
	}{{80, "HELLO", ""}, {81, "", "nothing listens"}, {80, "HELLO", ""}} {
		data, errs, err := f.Dial(want.port)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(data, "hello")
		_ = data.Close()
		got, _ := io.ReadAll(data)
		words, _ := io.ReadAll(errs)
		if string(got) != want.data || !strings.Contains(string(words), want.error) || want.error == "" && len(words) > 0 {
			t.Errorf("port %d: %q %q", want.port, got, words)
		}
	}
	if _, _, err := f.Dial(0); err == nil {
		t.Error("port 0 was taken")
	}
}

func TestPortForwardGone(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan struct{})
	s := start(t, Options{Backend: fake{forward: func(ctx context.Context, _ uint16, _ io.ReadWriteCloser) error {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil
	}}})
	f, err := streamclient.OpenForward(must(t)(s.PortForwardURL("p", nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Dial(80); err != nil {
		t.Fatal(err)
	}
	<-begun
	f.Raw.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the context did not end")
	}
}

func TestTokens(t *testing.T) {
	s := start(t, Options{Backend: fake{exec: echo}})
	get := func(u string) int {
		r, err := http.Get(u) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	u := must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true}))
	if code := get(strings.Replace(u, "/exec/", "/attach/", 1)); code != http.StatusNotFound {
		t.Errorf("as an attach: %d", code)
	}
	if code := get(u); code != http.StatusNotFound {
		t.Errorf("a second time: %d", code)
	}
	if code := get(s.Base() + "/exec/"); code != http.StatusNotFound {
		t.Errorf("without a token: %d", code)
	}
	if code := get(must(t)(s.ExecURL("c", nil, Want{Stdout: true}))); code != http.StatusBadRequest {
		t.Errorf("without an upgrade: %d", code)
	}
	tk := &tokens{of: map[string]*request{}}
	for range maxRequests {
		if _, err := tk.put(&request{kind: "exec"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tk.put(&request{kind: "exec"}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too many: %v", err)
	}
	for k, r := range tk.of {
		r.expires = time.Now().Add(-time.Second)
		if tk.take(k, "exec") != nil {
			t.Error("an old token works")
		}
		break
	}
	for _, r := range tk.of {
		r.expires = time.Now().Add(-time.Second)
	}
	for range 2 { // one fits beside those that are too old
		if _, err := tk.put(&request{kind: "exec"}); err != nil {
			t.Error(err)
		}
	}
	if len(tk.of) != 2 {
		t.Errorf("%d are kept", len(tk.of))
	}
}

func TestReachable(t *testing.T) {
	for ip, want := range map[string]string{"0.0.0.0": "127.0.0.1:5", "::": "[::1]:5", "10.0.0.1": "10.0.0.1:5", "fd00::1": "[fd00::1]:5"} {
		if got := reachable(&net.TCPAddr{IP: net.ParseIP(ip), Port: 5}); got != want {
			t.Errorf("%s: %s", ip, got)
		}
	}
}

// certificate writes a self-signed pair for 127.0.0.1 and returns its serial.
func certificate(t *testing.T, cert, key string, serial int64) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb})
	if err := errors.Join(os.WriteFile(cert, certPEM, 0o600), os.WriteFile(key, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	f := TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	if _, err := New(Options{TLS: f}); err == nil {
		t.Fatal("files that are not there were taken")
	}
	certificate(t, f.Cert, f.Key, 1)
	client := certificate(t, f.ClientCA, filepath.Join(dir, "client-key"), 7)
	s := start(t, Options{Backend: fake{exec: echo}, TLS: f})
	serial := func() int64 {
		t.Helper()
		var got int64
		cfg := &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{client}, //nolint:gosec // looked at below
			VerifyConnection: func(cs tls.ConnectionState) error {
				got = cs.PeerCertificates[0].SerialNumber.Int64()
				return nil
			},
		}
		c, err := streamclient.Open(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true})), streamclient.Want{Stdout: true, Config: cfg})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if r, err := c.Wait(); err != nil || r.Code != 3 {
			t.Errorf("%+v %v", r, err)
		}
		return got
	}
	if n := serial(); n != 1 {
		t.Errorf("certificate %d", n)
	}
	certificate(t, f.Cert, f.Key, 123456789) // another size, whatever the clock
	if n := serial(); n != 123456789 {
		t.Errorf("after the change: certificate %d", n)
	}
	if err := os.WriteFile(f.Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 123456789 {
		t.Errorf("with a broken key: certificate %d", n)
	}
	bare := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // a test
	if _, err := streamclient.Open(must(t)(s.ExecURL("c", nil, Want{Stdout: true})), streamclient.Want{Stdout: true, Config: bare}); err == nil {
		t.Error("a client without a certificate was served")
	}
}

// TestStop: open streams end with the server.
func TestStop(t *testing.T) {
	ended := make(chan struct{})
	s, err := New(Options{IdleTimeout: time.Minute, Backend: fake{exec: func(ctx context.Context, _ []string, _ runtime.Streams) (int32, error) {
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	c, err := streamclient.Open(must(t)(s.ExecURL("c", []string{"a"}, Want{Stdout: true})), streamclient.Want{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	<-ended
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(c.Stdout); err != nil {
		t.Error(err)
	}
}
