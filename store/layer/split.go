package layer

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc64"
	"io"

	"github.com/vbatts/tar-split/tar/storage"
)

// splitter makes the tar-split record: the raw bytes between files, and each
// file's name, size and checksum (CRC-64 ISO, big endian).
type splitter struct {
	w      *bufio.Writer
	packer storage.Packer
	table  *crc64.Table
}

// newSplitter returns nil, which records nothing, for a nil writer.
func newSplitter(w io.Writer) *splitter {
	if w == nil {
		return nil
	}
	b := bufio.NewWriterSize(w, 128<<10)
	return &splitter{w: b, packer: storage.NewJSONPacker(b), table: crc64.MakeTable(crc64.ISO)}
}

// segment records raw bytes.
func (s *splitter) segment(b []byte) error {
	if s == nil || len(b) == 0 {
		return nil
	}
	return s.add(storage.Entry{Type: storage.SegmentType, Payload: b})
}

// file copies a file's content to w and records it. Every entry of the tar is
// recorded, those without content as well.
func (s *splitter) file(name string, size int64, body io.Reader, w io.Writer, buf []byte) error {
	var sum uint64
	for left := size; left > 0; {
		n, err := io.ReadFull(body, buf[:min(int64(len(buf)), left)])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if s != nil {
			sum = crc64.Update(sum, s.table, buf[:n])
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	if s == nil {
		return nil
	}
	e := storage.Entry{Type: storage.FileType, Size: size}
	e.SetName(name)
	if size > 0 {
		e.Payload = []byte{
			byte(sum >> 56), byte(sum >> 48), byte(sum >> 40), byte(sum >> 32),
			byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum),
		}
	}
	return s.add(e)
}

func (s *splitter) add(e storage.Entry) error {
	_, err := s.packer.AddEntry(e)
	if errors.Is(err, storage.ErrDuplicatePath) {
		return fmt.Errorf("%w: two entries of the name %q", ErrMalformed, shorten(e.GetName()))
	}
	return err
}

func (s *splitter) flush() error {
	if s == nil {
		return nil
	}
	return s.w.Flush()
}
