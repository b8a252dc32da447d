package kafkaclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/compress"
)

// A few compressed bytes may declare any size, so that lengths are looked at before memory is
// allocated. What a batch takes is told to Fetched.Unpack first. Most batches need little; those
// that turn out to need more are begun again with more.
const (
	// smallBytes is the most that a batch is decompressed to at once; what is larger is read as a
	// stream.
	smallBytes = 4 << 20
	// maxBlockBytes bounds a zstd window and a snappy block. Level 22 of zstd declares windows of
	// that size.
	maxBlockBytes = 128 << 20
	// maxUnpackedBytes bounds what one batch decompresses to.
	maxUnpackedBytes = 4 << 30
	// smallWindow bounds the windows of the zstd decoders that are kept for later.
	smallWindow = 8 << 20
	// smallRecord is how large a record of a stream may be at the first attempt.
	smallRecord = 256 << 10
	// snappyRatio bounds what snappy decompresses to: a copy of 64 bytes takes three.
	snappyRatio = 22
	// stateBytes is more than what a decoder takes beside windows and blocks.
	stateBytes = 256 << 10
)

// errMoreMemory ends an attempt at a batch that takes more memory than it reserved.
var errMoreMemory = errors.New("the batch takes more memory")

// attempt is one way to decompress a batch.
type attempt struct {
	need int64 // bytes of memory
	// open makes w read what is decompressed. The caller calls done when it has read.
	open func(w *window) (done func(), err error)
}

// unpack calls read with what a batch decompresses to. Read may be called again, from the
// beginning, after it returned errMoreMemory. Reserve may be nil.
func (r *batchReader) unpack(c compress.Compression, body []byte, read func(*window) error) error {
	attempts, err := plan(c, body)
	if err != nil {
		return err
	}
	for _, a := range attempts {
		if err = r.try(a, read); !errors.Is(err, errMoreMemory) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

func (r *batchReader) try(a attempt, read func(*window) error) error {
	if r.reserve != nil {
		release, err := r.reserve(a.need)
		if err != nil {
			return &callerError{err}
		}
		defer release()
	}
	w := &window{buffer: r.window[:0]}
	defer func() {
		if r.window = w.buffer; cap(r.window) > smallRecord {
			r.window = nil
		}
	}()
	done, err := a.open(w)
	if err != nil {
		return err
	}
	defer done()
	return read(w)
}

// plan returns the attempts at a batch, after a look at the lengths that it declares.
func plan(c compress.Compression, body []byte) ([]attempt, error) {
	switch c {
	case compress.Gzip:
		return streams(0, func() (io.Reader, func(), error) { return openGzip(body) }), nil
	case compress.Snappy:
		return planSnappy(body)
	case compress.Lz4:
		block, err := lz4BlockBytes(body)
		return streams(2*block, func() (io.Reader, func(), error) { return openLz4(body) }), err
	case compress.Zstd:
		return planZstd(body)
	}
	return nil, fmt.Errorf("%w: unknown compression %d", ErrMalformed, c)
}

// streams are the attempts at a stream whose decoder takes so many bytes: with room for small
// records, and for any.
func streams(decoder int64, open func() (io.Reader, func(), error)) []attempt {
	var all []attempt
	for _, limit := range []int{smallRecord, maxEncodedBytes} {
		all = append(all, attempt{decoder + stateBytes + int64(limit), func(w *window) (func(), error) {
			source, done, err := open()
			w.source, w.limit = &counted{source: source}, limit
			return done, err
		}})
	}
	return all
}

// counted bounds what a batch decompresses to.
type counted struct {
	source io.Reader
	bytes  int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.source.Read(b)
	if c.bytes += int64(n); c.bytes > maxUnpackedBytes {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrMalformed, int64(maxUnpackedBytes))
	}
	return n, err
}

var gzips sync.Pool // of *gzip.Reader

func openGzip(body []byte) (io.Reader, func(), error) {
	z, _ := gzips.Get().(*gzip.Reader)
	if z == nil {
		z = new(gzip.Reader)
	}
	if err := z.Reset(bytes.NewReader(body)); err != nil {
		return nil, nil, fmt.Errorf("%w: gzip: %w", ErrMalformed, err)
	}
	return z, func() { gzips.Put(z) }, nil
}

var lz4s sync.Pool // of *lz4.Reader

func openLz4(body []byte) (io.Reader, func(), error) {
	z, _ := lz4s.Get().(*lz4.Reader)
	if z == nil {
		z = lz4.NewReader(nil)
	}
	z.Reset(bytes.NewReader(body))
	return z, func() {
		z.Reset(nil)
		lz4s.Put(z)
	}, nil
}

// lz4BlockBytes returns the size of blocks that a frame declares: magic uint32 | flags, whose
// bits 6 and 7 are 01 | block size, bits 4 to 6.
func lz4BlockBytes(body []byte) (int64, error) {
	const magic, smallest, largest = 0x184d2204, 4, 7
	if len(body) < 7 || binary.LittleEndian.Uint32(body) != magic {
		return 0, fmt.Errorf("%w: lz4: no frame", ErrMalformed)
	}
	code := body[5] >> 4 & 7
	if code < smallest || code > largest {
		return 0, fmt.Errorf("%w: lz4: block size %d", ErrMalformed, code)
	}
	return 1 << (8 + 2*code), nil
}

// planSnappy plans a block of snappy, or a sequence of them in the frames of xerial's snappy-java:
//
//	130 "SNAPPY" 0 | version uint32 | compatible version uint32 | (bytes of the block uint32 | block)...
func planSnappy(body []byte) ([]attempt, error) {
	const header = 16
	if len(body) < header || string(body[:8]) != "\x82SNAPPY\x00" {
		n, err := snappyBytes(body)
		if err != nil {
			return nil, err
		}
		return []attempt{{n, func(w *window) (func(), error) {
			decoded, err := snappy.Decode(nil, body)
			if err != nil {
				return nil, fmt.Errorf("%w: snappy: %w", ErrMalformed, err)
			}
			w.rest = decoded
			return func() {}, nil
		}}}, nil
	}
	blocks, largest := body[header:], int64(0)
	for rest := blocks; len(rest) > 0; {
		block, next, err := snappyFrame(rest)
		if err != nil {
			return nil, err
		}
		n, err := snappyBytes(block)
		if err != nil {
			return nil, err
		}
		largest, rest = max(largest, n), next
	}
	return streams(largest, func() (io.Reader, func(), error) { return &snappyFrames{blocks: blocks}, func() {}, nil }), nil
}

// snappyBytes returns what a block declares to decompress to.
func snappyBytes(block []byte) (int64, error) {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return 0, fmt.Errorf("%w: snappy: %w", ErrMalformed, err)
	}
	if n > snappyRatio*len(block)+64 || n > maxBlockBytes {
		return 0, fmt.Errorf("%w: snappy: a block of %d bytes that declares %d", ErrMalformed, len(block), n)
	}
	return int64(n), nil
}

func snappyFrame(b []byte) (block, rest []byte, err error) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, fmt.Errorf("%w: snappy: a frame is cut", ErrMalformed)
	}
	n := binary.BigEndian.Uint32(b)
	return b[4 : 4+n], b[4+n:], nil
}

// snappyFrames reads blocks one after the other.
type snappyFrames struct {
	blocks       []byte
	buffer, rest []byte
}

func (s *snappyFrames) Read(b []byte) (int, error) {
	for len(s.rest) == 0 {
		if len(s.blocks) == 0 {
			return 0, io.EOF
		}
		block, next, err := snappyFrame(s.blocks)
		if err == nil {
			s.buffer, err = snappy.Decode(s.buffer[:cap(s.buffer)], block)
		}
		if err != nil {
			return 0, fmt.Errorf("%w: snappy: %w", ErrMalformed, err)
		}
		s.blocks, s.rest = next, s.buffer
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// planZstd decompresses at once what is small, whatever window it declares, for a stream
// allocates the window.
func planZstd(body []byte) ([]attempt, error) {
	var h zstd.Header
	if err := h.Decode(body); err != nil {
		return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	size := h.WindowSize
	if h.SingleSegment {
		size = h.FrameContentSize
	}
	var all []attempt
	const expected = 16 // as much as records usually shrink
	first := min(expected*len(body)+64<<10, smallBytes)
	if h.HasFCS {
		first = int(min(max(h.FrameContentSize, 1), smallBytes+1))
	}
	for _, limit := range []int{first, smallBytes} {
		if limit <= smallBytes && !(h.HasFCS && h.FrameContentSize > smallBytes) {
			class := sizeClass(limit)
			all = append(all, attempt{int64(classBytes(class)) + stateBytes, func(w *window) (func(), error) { return zstdAtOnce(w, class, body) }})
		}
	}
	if size > maxBlockBytes {
		if len(all) == 0 {
			return nil, fmt.Errorf("%w: zstd: a window of %d bytes", ErrMalformed, size)
		}
		return all, nil
	}
	const block = 128 << 10
	return append(all, streams(int64(size)+2*block, func() (io.Reader, func(), error) { return openZstd(body, size) })...), nil
}

// zstdAll decompresses what fits into the memory that it is given.
var zstdAll = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxWindow(1<<32))
})

var unpacked bufferPool

func zstdAtOnce(w *window, class int, body []byte) (func(), error) {
	z, err := zstdAll()
	if err != nil {
		return nil, err
	}
	buffer := unpacked.get(class)
	if cap(buffer) < classBytes(class) {
		buffer = make([]byte, 0, classBytes(class))
	}
	out, err := z.DecodeAll(body, buffer)
	if err != nil {
		unpacked.put(class, buffer)
		if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			return nil, errMoreMemory
		}
		return nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	w.rest = out
	return func() { unpacked.put(class, buffer) }, nil
}

var zstds sync.Pool // of *zstd.Decoder, for windows up to smallWindow

func openZstd(body []byte, window uint64) (io.Reader, func(), error) {
	limit := uint64(smallWindow)
	if window > limit {
		limit = maxBlockBytes
	}
	var z *zstd.Decoder
	if limit == smallWindow {
		z, _ = zstds.Get().(*zstd.Decoder)
	}
	if z == nil {
		var err error
		if z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(limit), zstd.WithDecoderMaxMemory(limit)); err != nil {
			return nil, nil, err
		}
	}
	if err := z.Reset(bytes.NewReader(body)); err != nil {
		z.Close()
		return nil, nil, fmt.Errorf("%w: zstd: %w", ErrMalformed, err)
	}
	return z, func() {
		if limit > smallWindow || z.Reset(nil) != nil {
			z.Close() // it would keep the window
			return
		}
		zstds.Put(z)
	}, nil
}
