package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/ocid-io/ocid/runtime"
)

// subprotocols are those that remotecommand speaks over WebSocket, and whether
// their frames are binary. v5 adds the half-close of stdin to v4.
var subprotocols = map[string]bool{
	"": true, "channel.k8s.io": true, "base64.channel.k8s.io": false,
	"v4.channel.k8s.io": true, "v4.base64.channel.k8s.io": false,
	"v5.channel.k8s.io": true,
}

// webSocket serves a process's streams as the channels of a WebSocket, v5 too,
// which the library does not have on this side.
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request, req *request, run func(runtime.Streams) error) {
	kinds := make([]wsstream.ChannelType, 5)
	for i, on := range []bool{req.stdin, req.stdout, req.stderr, true, true} {
		switch {
		case !on:
			kinds[i] = wsstream.IgnoreChannel
		case i == remotecommand.StreamStdIn || i == remotecommand.StreamResize:
			kinds[i] = wsstream.ReadChannel
		default:
			kinds[i] = wsstream.WriteChannel
		}
	}
	protocols := map[string]wsstream.ChannelProtocolConfig{}
	for name, binary := range subprotocols {
		protocols[name] = wsstream.ChannelProtocolConfig{Binary: binary, Channels: kinds}
	}
	c := wsstream.NewConn(protocols)
	c.SetIdleTimeout(s.o.IdleTimeout)
	chosen, ch, err := c.Open(w, r)
	if err != nil {
		s.log.Debug("WebSocket was not opened", "error", err)
		return
	}
	defer c.Close()
	// An empty frame tells the client that its streams are there.
	first := remotecommand.StreamErr
	for _, i := range []int{remotecommand.StreamStdErr, remotecommand.StreamStdOut} {
		if kinds[i] == wsstream.WriteChannel {
			first = i
		}
	}
	_, _ = ch[first].Write(nil)
	sizes := make(chan remotecommand.TerminalSize)
	go decodeSizes(r.Context(), ch[remotecommand.StreamResize], sizes)
	a := adapter{s, req, r.Context()}
	st, stop := a.streams(ch[remotecommand.StreamStdIn], ch[remotecommand.StreamStdOut], ch[remotecommand.StreamStdErr], sizes)
	defer stop()
	writeStatus(ch[remotecommand.StreamErr], req.kind, run(st), strings.HasPrefix(chosen, "v4.") || strings.HasPrefix(chosen, "v5."))
}

// maxSize bounds what a client may send for one size of its terminal: a decoder
// keeps a value until it is whole.
const maxSize = 4 << 10

// bounded is a reader that fails when more than left bytes were read.
type bounded struct {
	r    io.Reader
	left int
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("too long")
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func decodeSizes(ctx context.Context, r io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	in := &bounded{r: r}
	d := json.NewDecoder(in)
	for {
		in.left = maxSize
		var z remotecommand.TerminalSize
		if d.Decode(&z) != nil {
			// What follows is not understood and must not hold up the rest.
			_, _ = io.Copy(io.Discard, r)
			return
		}
		select {
		case to <- z:
		case <-ctx.Done():
			return
		}
	}
}

// outcome is the last message of a stream, a subset of a Kubernetes Status.
type outcome struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// writeStatus tells the client how it ended: as JSON in newer protocols, and
// as text, if it failed, in those before.
func writeStatus(w io.Writer, kind string, err error, asJSON bool) {
	o := outcome{Status: "Success"}
	var exit utilexec.ExitError
	switch {
	case errors.As(err, &exit):
		o = outcome{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with exit code %d", exit.ExitStatus()),
			Details: &details{Causes: []cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}},
		}
	case err != nil:
		o = outcome{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: kind + ": " + err.Error()}
	}
	b := []byte(o.Message)
	if asJSON {
		b, err = json.Marshal(o)
		if err != nil {
			return
		}
	}
	if len(b) > 0 {
		_, _ = w.Write(b)
	}
}
