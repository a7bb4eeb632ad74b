// Package capbuf keeps the beginning of what a program prints.
//
// The buffer is a field and not embedded: io.Copy would find the embedded
// one's ReadFrom and fill it without bound.
package capbuf

import "bytes"

// Buffer is a writer that keeps the first Limit bytes and swallows the rest,
// so that the program is never stopped by a full pipe.
type Buffer struct {
	Limit int
	buf   bytes.Buffer
	over  bool
}

// Write never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	keep := p
	if room := b.Limit - b.buf.Len(); len(p) > room {
		b.over, keep = true, p[:room]
	}
	b.buf.Write(keep)
	return len(p), nil
}

// Bytes returns what was kept.
func (b *Buffer) Bytes() []byte { return b.buf.Bytes() }

// String returns what was kept.
func (b *Buffer) String() string { return b.buf.String() }

// Over tells whether there was more than Limit.
func (b *Buffer) Over() bool { return b.over }
