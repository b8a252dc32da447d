package manifest

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/hamba/avro/v2"
	"github.com/hamba/avro/v2/ocf"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// maxBodyBytes bounds one record of a file, so that a damaged length costs no memory.
const maxBodyBytes = 1 << 30

// readLines calls each with the checksums of the lines of a file's records, in order. What the
// file is, its content says, or for framed compression its name. A body of a record that is not
// text has as many lines as it has line feeds, and one more.
func readLines(r io.Reader, name string, each func(h uint64) error) error {
	in := bufio.NewReaderSize(r, 256<<10)
	magic, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case bytes.Equal(magic, []byte{'O', 'b', 'j', 1}):
		return avroLines(in, each)
	case bytes.HasPrefix(magic, []byte("SEQ")):
		return sequenceLines(in, each)
	}
	codec := ""
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		codec = "gzip"
	case bytes.HasPrefix(magic, []byte("BZh")):
		codec = "bzip2"
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		codec = "zstd"
	case strings.HasSuffix(name, ".snappy"):
		codec = "snappy"
	case strings.HasSuffix(name, ".lz4"):
		codec = "lz4"
	case strings.HasSuffix(name, ".deflate"):
		codec = "deflate"
	}
	if codec == "" {
		return textLines(in, each)
	}
	plain, done, err := decompress(in, codec)
	if err != nil {
		return err
	}
	defer done()
	return textLines(bufio.NewReaderSize(plain, 256<<10), each)
}

// textLines reads lines of any length. The last one need not have a line feed.
func textLines(in *bufio.Reader, each func(h uint64) error) error {
	var long xxhash.Digest
	begun := false // long has the beginning of the line
	for {
		part, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if !begun {
				long.Reset()
				begun = true
			}
			long.Write(part) // never fails
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return err
		case err != nil && len(part) == 0 && !begun:
			return nil
		}
		line, h := bytes.TrimSuffix(part, newline), uint64(0)
		if begun {
			long.Write(line) // never fails
			h, begun = long.Sum64(), false
		} else {
			h = xxhash.Sum64(line)
		}
		if failed := each(h); failed != nil {
			return failed
		}
		if err != nil {
			return nil
		}
	}
}

// bodyLines calls each for the lines of a value, as AppendEntry lists them.
func bodyLines(value []byte, each func(h uint64) error) error {
	for range MaxLines {
		line, rest, more := bytes.Cut(value, newline)
		if err := each(xxhash.Sum64(line)); err != nil {
			return err
		}
		if !more {
			break
		}
		value = rest
	}
	return nil
}

// avroConfig takes values of any size that a record may have; the library's own bound is 1 MiB.
var avroConfig = avro.Config{MaxByteSliceSize: maxBodyBytes}.Freeze()

// avroLines reads a container of Flume's events.
func avroLines(in io.Reader, each func(h uint64) error) error {
	d, err := ocf.NewDecoder(in, ocf.WithDecoderConfig(avroConfig))
	if err != nil {
		return fmt.Errorf("read Avro: %w", err)
	}
	for d.HasNext() {
		var event struct {
			Body []byte `avro:"body"`
		}
		if err := d.Decode(&event); err != nil {
			return fmt.Errorf("read event in Avro: %w", err)
		}
		if err := bodyLines(event.Body, each); err != nil {
			return err
		}
	}
	if err := d.Error(); err != nil {
		return fmt.Errorf("read Avro: %w", err)
	}
	return nil
}

// decompress returns a reader of what is compressed with a codec of Hadoop's, and what to call
// when it is not needed any more.
func decompress(in io.Reader, codec string) (plain io.Reader, done func(), err error) {
	done = func() {}
	switch codec {
	case "gzip":
		plain, err = gzip.NewReader(in)
	case "bzip2":
		plain = bzip2.NewReader(in)
	case "deflate":
		plain, err = zlib.NewReader(in)
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			plain, done = z, z.Close
		}
	case "snappy":
		plain = &framedReader{in: in, decode: func(dst, block []byte) ([]byte, error) { return snappy.Decode(dst, block) }}
	case "lz4":
		plain = &framedReader{in: in, decode: func(dst, block []byte) ([]byte, error) {
			n, err := lz4.UncompressBlock(block, dst)
			return dst[:max(n, 0)], err
		}}
	default:
		err = fmt.Errorf("unknown codec %s", codec)
	}
	if err != nil {
		err = fmt.Errorf("decompress %s: %w", codec, err)
	}
	return plain, done, err
}

// framedReader reads the framing of Hadoop's BlockCompressorStream: the size of some blocks
// together when they are decompressed, then each with its compressed size before it.
type framedReader struct {
	in     io.Reader
	decode func(dst, block []byte) ([]byte, error) // dst has room for all that may come
	left   int                                     // of the blocks together
	out    []byte                                  // decompressed and not read yet
	room   []byte
	block  []byte
}

// maxFrameBytes bounds the blocks that one size stands for, and one block.
const maxFrameBytes = 64 << 20

func (f *framedReader) Read(p []byte) (int, error) {
	for len(f.out) == 0 {
		if f.left <= 0 {
			size, err := f.size()
			if err != nil {
				return 0, err // io.EOF between frames is the end
			}
			f.left = size
			if size == 0 {
				continue
			}
		}
		size, err := f.size()
		if err == nil {
			f.block = sized(f.block, size)
			_, err = io.ReadFull(f.in, f.block)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		f.room = sized(f.room, f.left)
		out, err := f.decode(f.room, f.block)
		if err != nil {
			return 0, err
		}
		if len(out) == 0 || len(out) > f.left {
			return 0, fmt.Errorf("a block has %d bytes where %d remain", len(out), f.left)
		}
		f.out, f.left = out, f.left-len(out)
	}
	n := copy(p, f.out)
	f.out = f.out[n:]
	return n, nil
}

func (f *framedReader) size() (int, error) {
	var b [4]byte
	if _, err := io.ReadFull(f.in, b[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > maxFrameBytes {
		return 0, fmt.Errorf("a frame of %d bytes is longer than %d MiB", n, maxFrameBytes>>20)
	}
	return int(n), nil
}

// sized returns b with that length, larger when need be.
func sized(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}
