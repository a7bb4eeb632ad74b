package runtime

import "io"

// TerminalSize is a terminal's, in characters.
type TerminalSize struct {
	Width  uint16
	Height uint16
}

// Streams are a client's ends of a process's files; nil is one that the client
// does not want. With a terminal, Stderr is not used.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	TTY    bool
	Resize <-chan TerminalSize // nil: never; may be closed
}
