package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// streamBuffer is the unit in which the stream is decompressed and hashed. It
// fits into the second-level cache.
const streamBuffer = 256 << 10

// stream hands out what it reads from src, hashed and counted.
type stream struct {
	src  io.Reader
	buf  []byte
	r, w int
	err  error
	sum  hash.Hash
	n    int64
	max  int64
}

func newStream(src io.Reader, limit int64) *stream {
	return &stream{src: src, buf: make([]byte, streamBuffer), sum: sha256.New(), max: limit}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.r == s.w {
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
		if s.r == s.w {
			return 0, s.err
		}
	}
	n := copy(p, s.buf[s.r:s.w])
	s.r += n
	return n, nil
}

// fill reads until the buffer is full or the source ends: many small reads of
// a decompressor become one update of the hash.
func (s *stream) fill() {
	s.r, s.w = 0, 0
	for s.w < len(s.buf) && s.err == nil {
		var n int
		n, s.err = s.src.Read(s.buf[s.w:])
		s.w += n
	}
	s.n += int64(s.w)
	if s.n > s.max {
		s.err = fmt.Errorf("more than %d bytes unpacked: %w", s.max, ErrTooLarge)
		s.w = 0
		return
	}
	s.sum.Write(s.buf[:s.w])
}

func (s *stream) digest() digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(s.sum.Sum(nil)))
}
