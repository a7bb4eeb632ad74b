package streamclient

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// WebSocket is an exec or attach over one; each frame begins with its channel.
type WebSocket struct {
	Conn *websocket.Conn
}

// OpenWebSocket opens a URL with a subprotocol, such as v5.channel.k8s.io.
func OpenWebSocket(address, protocol string) (*WebSocket, error) {
	cfg, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://localhost")
	if err != nil {
		return nil, err
	}
	cfg.Protocol = []string{protocol}
	c, err := websocket.DialConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &WebSocket{Conn: c}, nil
}

// Send writes to a channel.
func (w *WebSocket) Send(channel byte, data []byte) error {
	return websocket.Message.Send(w.Conn, append([]byte{channel}, data...))
}

// CloseStdin ends the input; v5 has it.
func (w *WebSocket) CloseStdin() error {
	return w.Send(remotecommand.StreamClose, []byte{remotecommand.StreamStdIn})
}

// Resize sets the terminal's size.
func (w *WebSocket) Resize(width, height uint16) error {
	b, err := json.Marshal(remotecommand.TerminalSize{Width: width, Height: height})
	if err != nil {
		return err
	}
	return w.Send(remotecommand.StreamResize, b)
}

// Receive returns the next frame.
func (w *WebSocket) Receive() (channel byte, data []byte, err error) {
	var b []byte
	if err := websocket.Message.Receive(w.Conn, &b); err != nil {
		return 0, nil, err
	}
	if len(b) == 0 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return b[0], b[1:], nil
}

// All collects output until the end.
func (w *WebSocket) All() (stdout, stderr string, r Result, err error) {
	var out [4]bytes.Buffer
	for {
		ch, data, err := w.Receive()
		if err != nil {
			break
		}
		if int(ch) >= len(out) {
			return "", "", r, fmt.Errorf("a frame of channel %d", ch)
		}
		out[ch].Write(data)
	}
	r, err = parse(out[remotecommand.StreamErr].Bytes())
	return out[1].String(), out[2].String(), r, err
}
