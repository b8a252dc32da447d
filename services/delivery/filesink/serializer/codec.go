package serializer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// codec compresses data as a unit that can be read by itself. Safe for concurrent use.
type codec interface {
	append(dst, data []byte) ([]byte, error)
}

// newHadoopCodec is the codec that Hadoop chooses by the extension of a file's name.
func newHadoopCodec(compression string) (codec, string, error) {
	switch compression {
	case "none":
		return nil, "", nil
	case "gzip":
		return newPooled(func() (resetter, error) { return gzip.NewWriterLevel(io.Discard, gzip.DefaultCompression) }), ".gz", nil
	case "bzip2":
		return newBzip2(), ".bz2", nil
	case "zstd":
		c, err := newZstd()
		return c, ".zst", err
	case "snappy":
		return framed(appendSnappy), ".snappy", nil
	case "lz4":
		return framed(appendLZ4), ".lz4", nil
	}
	return nil, "", fmt.Errorf("compression: unknown value %q", compression)
}

// newAvroCodec is the codec of a container's blocks, and its name there.
func newAvroCodec(compression string) (codec, string, error) {
	switch compression {
	case "none":
		return nil, "null", nil
	case "deflate":
		return newPooled(func() (resetter, error) { return flate.NewWriter(io.Discard, flate.DefaultCompression) }), "deflate", nil
	case "bzip2":
		return newBzip2(), "bzip2", nil
	case "zstd":
		c, err := newZstd()
		return c, "zstandard", err
	case "snappy":
		return checkedSnappy{}, "snappy", nil
	}
	return nil, "", fmt.Errorf("compression: unknown value %q for avro_event", compression)
}

// newSequenceCodec is the codec of a SequenceFile's blocks, and its class.
func newSequenceCodec(compression string) (codec, string, error) {
	const classes = "org.apache.hadoop.io.compress."
	if compression == "deflate" {
		return newPooled(func() (resetter, error) { return zlib.NewWriterLevel(io.Discard, zlib.DefaultCompression) }), classes + "DefaultCodec", nil
	}
	c, ext, err := newHadoopCodec(compression)
	names := map[string]string{".gz": "GzipCodec", ".bz2": "BZip2Codec", ".zst": "ZStandardCodec", ".snappy": "SnappyCodec", ".lz4": "Lz4Codec"}
	return c, classes + names[ext], err
}

// resetter is a compressor that can be used again.
type resetter interface {
	io.WriteCloser
	Reset(io.Writer)
}

// pooled makes one member with a compressor from its pool, as they are costly to make.
type pooled struct {
	pool sync.Pool
	make func() (resetter, error)
}

func newPooled(newWriter func() (resetter, error)) *pooled { return &pooled{make: newWriter} }

func (p *pooled) append(dst, data []byte) ([]byte, error) {
	w, _ := p.pool.Get().(resetter)
	if w == nil {
		var err error
		if w, err = p.make(); err != nil {
			return dst, err
		}
	}
	out := appender{dst}
	w.Reset(&out)
	if _, err := w.Write(data); err != nil {
		return dst, err
	}
	if err := w.Close(); err != nil {
		return dst, err
	}
	p.pool.Put(w)
	return out.b, nil
}

// appender is an io.Writer that appends.
type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// bzip2Writer has the Reset of the others.
type bzip2Writer struct{ *bzip2.Writer }

func (w bzip2Writer) Reset(to io.Writer) {
	_ = w.Writer.Reset(to) // always nil; what was wrong with the last member was its Close's to say
}

func newBzip2() codec {
	return newPooled(func() (resetter, error) {
		w, err := bzip2.NewWriter(io.Discard, nil)
		return bzip2Writer{w}, err
	})
}

type zstdCodec struct{ encoder *zstd.Encoder }

// newZstd has a window that is small for zstd, since each file that is being written needs a few
// of them.
func newZstd() (zstdCodec, error) {
	e, err := zstd.NewWriter(nil, zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20), zstd.WithZeroFrames(true))
	return zstdCodec{e}, err
}

func (z zstdCodec) append(dst, data []byte) ([]byte, error) {
	return z.encoder.EncodeAll(data, dst), nil
}

// checkedSnappy is Avro's: one block of snappy, and the checksum of what is in it.
type checkedSnappy struct{}

func (checkedSnappy) append(dst, data []byte) ([]byte, error) {
	dst, err := appendSnappy(dst, data)
	return binary.BigEndian.AppendUint32(dst, crc32.ChecksumIEEE(data)), err
}

// framedBytes is how much Hadoop's decompressors must be able to hold of one piece, uncompressed.
// Their buffers have 256 KiB by default, less what the worst compression adds.
const framedBytes = 128 << 10

// framed is the framing of Hadoop's BlockCompressorStream, for block formats that have none of
// their own.
//
//	uncompressed size: uint32 | compressed size: uint32 | block      (numbers are big endian)
//
// Hadoop allows several blocks after one uncompressed size. One each is what all readers
// understand.
type framed func(dst, data []byte) ([]byte, error)

func (f framed) append(dst, data []byte) ([]byte, error) {
	for len(data) > 0 {
		n := min(len(data), framedBytes)
		dst = binary.BigEndian.AppendUint32(dst, uint32(n))
		at := len(dst)
		var err error
		if dst, err = f(append(dst, 0, 0, 0, 0), data[:n]); err != nil {
			return dst, err
		}
		binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
		data = data[n:]
	}
	return dst, nil
}

// grow returns dst with room for n more bytes, and that room.
func grow(dst []byte, n int) (grown, room []byte) {
	if cap(dst)-len(dst) < n {
		dst = append(make([]byte, 0, 2*cap(dst)+n), dst...)
	}
	return dst, dst[len(dst) : len(dst)+n]
}

func appendSnappy(dst, data []byte) ([]byte, error) {
	dst, room := grow(dst, snappy.MaxEncodedLen(len(data)))
	return dst[:len(dst)+len(snappy.Encode(room, data))], nil
}

func appendLZ4(dst, data []byte) ([]byte, error) {
	dst, room := grow(dst, lz4.CompressBlockBound(len(data)))
	n, err := lz4.CompressBlock(data, room, nil)
	return dst[:len(dst)+n], err
}
