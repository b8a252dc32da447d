package manifest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// sequenceCodecs are Hadoop's codecs by the last part of their classes.
var sequenceCodecs = map[string]string{
	"DefaultCodec": "deflate", "DeflateCodec": "deflate", "GzipCodec": "gzip", "BZip2Codec": "bzip2", "ZStandardCodec": "zstd", "SnappyCodec": "snappy", "Lz4Codec": "lz4",
}

// sequenceFile reads a SequenceFile of version 6, whose values are BytesWritable or Text; see the
// serializer of that name for its bytes.
type sequenceFile struct {
	in     *bufio.Reader
	text   bool // the values are Text
	codec  string
	blocks bool
	each   func(h uint64) error
	buffer []byte
}

func sequenceLines(in *bufio.Reader, each func(h uint64) error) error {
	s := &sequenceFile{in: in, each: each}
	if err := s.header(); err != nil {
		return fmt.Errorf("read SequenceFile: %w", unexpected(err))
	}
	for {
		more, err := s.next()
		if err != nil {
			return fmt.Errorf("read SequenceFile: %w", unexpected(err))
		}
		if !more {
			return nil
		}
	}
}

// unexpected says of an end within a record that it is one.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (s *sequenceFile) header() error {
	magic := make([]byte, 4)
	if _, err := io.ReadFull(s.in, magic); err != nil {
		return err
	}
	if magic[3] != 6 {
		return fmt.Errorf("version %d is unknown; want 6", magic[3])
	}
	if _, err := s.string(); err != nil { // the class of keys
		return err
	}
	value, err := s.string()
	if err != nil {
		return err
	}
	switch {
	case strings.HasSuffix(value, ".Text"):
		s.text = true
	case !strings.HasSuffix(value, ".BytesWritable"):
		return fmt.Errorf("values of class %s are unknown; want BytesWritable or Text", value)
	}
	flags := make([]byte, 2)
	if _, err := io.ReadFull(s.in, flags); err != nil {
		return err
	}
	s.blocks = flags[1] != 0
	if flags[0] != 0 {
		class, err := s.string()
		if err != nil {
			return err
		}
		if s.codec = sequenceCodecs[class[strings.LastIndexByte(class, '.')+1:]]; s.codec == "" {
			return fmt.Errorf("codec %s is unknown", class)
		}
	}
	entries, err := s.int32()
	if err != nil {
		return err
	}
	for range 2 * int64(max(entries, 0)) {
		if _, err := s.string(); err != nil {
			return err
		}
	}
	_, err = s.in.Discard(16)
	return err
}

// next reads a record or a block of them. It returns false at the end of the file.
func (s *sequenceFile) next() (bool, error) {
	if _, err := s.in.Peek(1); errors.Is(err, io.EOF) {
		return false, nil
	}
	size, err := s.int32()
	if err != nil {
		return false, err
	}
	if size == -1 {
		if _, err := s.in.Discard(16); err != nil {
			return false, err
		}
		if !s.blocks {
			return true, nil
		}
		return true, s.block()
	}
	if s.blocks {
		return false, fmt.Errorf("a block does not begin with a sync marker")
	}
	key, err := s.int32()
	if err != nil {
		return false, err
	}
	if size < 0 || key < 0 || key > size {
		return false, fmt.Errorf("a record of %d bytes has a key of %d", size, key)
	}
	if _, err := s.in.Discard(int(key)); err != nil {
		return false, err
	}
	value, err := s.take(int(size - key))
	if err != nil {
		return false, err
	}
	if s.codec != "" {
		if value, err = unpack(value, s.codec); err != nil {
			return false, err
		}
	}
	if value, _, err = s.writable(value); err != nil {
		return false, err
	}
	return true, bodyLines(value, s.each)
}

// block reads the block behind a sync marker.
func (s *sequenceFile) block() error {
	records, err := readVInt(s.in)
	if err != nil {
		return err
	}
	var values []byte
	for column := range 4 { // lengths of keys, keys, lengths of values, values
		size, err := readVInt(s.in)
		if err != nil {
			return err
		}
		if size < 0 || size > maxBodyBytes {
			return fmt.Errorf("a block has a column of %d bytes", size)
		}
		if column < 3 {
			if _, err := s.in.Discard(int(size)); err != nil {
				return err
			}
			continue
		}
		packed, err := s.take(int(size))
		if err != nil {
			return err
		}
		if values, err = unpack(packed, s.codec); err != nil {
			return err
		}
	}
	for range records {
		var value []byte
		if value, values, err = s.writable(values); err != nil {
			return err
		}
		if err := bodyLines(value, s.each); err != nil {
			return err
		}
	}
	return nil
}

// writable returns the first value of b, without its length, and what is behind it.
func (s *sequenceFile) writable(b []byte) (value, rest []byte, err error) {
	size := int64(-1)
	if s.text {
		in := bytes.NewReader(b)
		if size, err = readVInt(in); err != nil {
			return nil, nil, err
		}
		b = b[len(b)-in.Len():]
	} else if len(b) >= 4 {
		size, b = int64(int32(binary.BigEndian.Uint32(b))), b[4:]
	}
	if size < 0 || size > int64(len(b)) {
		return nil, nil, fmt.Errorf("a value of %d bytes where %d remain", size, len(b))
	}
	return b[:size], b[size:], nil
}

// take reads size bytes, which are valid until the next take. It allocates no more than there is.
func (s *sequenceFile) take(size int) ([]byte, error) {
	if size > maxBodyBytes {
		return nil, fmt.Errorf("a record of %d bytes", size)
	}
	const step = 1 << 20
	s.buffer = s.buffer[:0]
	for len(s.buffer) < size {
		n := min(size-len(s.buffer), step)
		at := len(s.buffer)
		if cap(s.buffer) < at+n {
			s.buffer = append(make([]byte, 0, max(2*cap(s.buffer), at+n)), s.buffer...)
		}
		s.buffer = s.buffer[:at+n]
		if _, err := io.ReadFull(s.in, s.buffer[at:]); err != nil {
			return nil, err
		}
	}
	return s.buffer, nil
}

// unpack decompresses a whole column or value.
func unpack(packed []byte, codec string) ([]byte, error) {
	if codec == "" {
		return packed, nil
	}
	plain, done, err := decompress(bytes.NewReader(packed), codec)
	if err != nil {
		return nil, err
	}
	defer done()
	all, err := io.ReadAll(io.LimitReader(plain, maxBodyBytes+1))
	if err == nil && len(all) > maxBodyBytes {
		err = fmt.Errorf("a block has more than %d MiB", maxBodyBytes>>20)
	}
	return all, err
}

func (s *sequenceFile) int32() (int32, error) {
	var b [4]byte
	_, err := io.ReadFull(s.in, b[:])
	return int32(binary.BigEndian.Uint32(b[:])), err
}

func (s *sequenceFile) string() (string, error) {
	size, err := readVInt(s.in)
	if err != nil {
		return "", err
	}
	if size < 0 || size > 64<<10 {
		return "", fmt.Errorf("a name of %d bytes", size)
	}
	b := make([]byte, size)
	_, err = io.ReadFull(s.in, b)
	return string(b), err
}

// readVInt reads a number as Hadoop's WritableUtils writes it.
func readVInt(in io.ByteReader) (int64, error) {
	first, err := in.ReadByte()
	if err != nil {
		return 0, err
	}
	n := int(int8(first))
	if n >= -112 {
		return int64(n), nil
	}
	negative := n < -120
	size := -112 - n
	if negative {
		size = -120 - n
	}
	var v int64
	for range size {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		v = v<<8 | int64(b)
	}
	if negative {
		v = ^v
	}
	return v, nil
}
