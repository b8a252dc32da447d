package kafkaclient

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// ErrMalformed is wrapped by the errors of record batches that cannot be decoded.
var ErrMalformed = errors.New("malformed record batch")

// The record batch, version 2, in a fetch's answer (big endian; what is not needed is in brackets):
//
//	 0 base offset int64 | 8 bytes that follow int32 | 12 [leader epoch int32] | 16 magic int8, 2 |
//	17 CRC32C of all that follows uint32 | 21 attributes int16 | 23 last offset delta int32 |
//	27 first timestamp int64 | 35 max timestamp int64 | 43 producer id int64 | 51 [epoch int16] |
//	53 [base sequence int32] | 57 records int32 | 61 the records, compressed as a whole
//
// Compaction keeps the last offset delta when it removes records, and the batch when it removes all.
const (
	frameBytes  = 12 // base offset and length
	magicAt     = 16
	checkedAt   = 21
	headerBytes = 61

	attributeCompression   = 7
	attributeAppendTime    = 1 << 3
	attributeTransactional = 1 << 4
	attributeControl       = 1 << 5
)

// maxEncodedBytes bounds one record as it is held in memory: the largest that may be delivered, and its
// encoding. What is larger is told by its size alone, since a small batch may expand to any size.
const maxEncodedBytes = recordbatch.MaxRecordBytes + 1<<20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Batch is one record batch of a Fetched.
type Batch struct {
	First, Last int64 // offsets covered, whether there are records at them or not
	ProducerID  int64 // -1: none
	// Transactional records count only when a marker of their producer says Committed.
	Transactional bool
	// Control batches end transactions and have no records.
	Control, Committed, Aborted bool

	compression    compress.Compression
	count          int32
	firstTimestamp int64
	appendTime     int64 // negative: records have their own timestamps
	body           []byte
	old            []byte // the whole batch when it is of version 0 or 1, which kafka-go reads
	reader         *batchReader
}

// Each calls yield with every record that counts, from the requested offset on, in order, and huge with
// the size of those that are too large to be delivered. It returns the offset where the next fetch goes
// on: offsets before it that were not named have no record. The record and its bytes are valid within
// yield only. Each stops at the first error of yield or huge and returns it.
func (f *Fetched) Each(yield func(offset int64, r *recordbatch.Record) error, huge func(offset, bytes int64) error) (next int64, err error) {
	var gone map[int64]bool // producers within an aborted transaction
	err = f.EachBatch(func(b *Batch) error {
		for len(f.aborted) > 0 && f.aborted[0].first <= b.Last {
			if gone == nil {
				gone = make(map[int64]bool)
			}
			gone[f.aborted[0].producerID] = true
			f.aborted = f.aborted[1:]
		}
		if b.Aborted {
			delete(gone, b.ProducerID)
		}
		if b.Control || b.Transactional && gone[b.ProducerID] {
			return nil
		}
		return b.Each(f.position, func(offset int64, r *recordbatch.Record) error {
			err := yield(offset, r)
			if err == nil {
				f.position = offset + 1
			}
			return err
		}, huge)
	})
	return f.position, err
}

// EachBatch calls yield with every record batch. They are valid within yield only.
func (f *Fetched) EachBatch(yield func(*Batch) error) error {
	defer f.release()
	start, any := f.position, len(f.set) > 0
	for len(f.set) >= headerBytes || len(f.set) > magicAt && f.set[magicAt] < 2 {
		size := int64(binary.BigEndian.Uint32(f.set[8:])) + frameBytes
		if size > int64(len(f.set)) {
			break // the broker cut it
		}
		b, err := f.reader.parse(f.set[:size:size])
		if err == nil && b.Last >= f.position {
			err = yield(b)
		}
		if err != nil {
			return err
		}
		f.position = max(f.position, b.Last+1)
		f.set = f.set[size:]
	}
	if any && f.position == start {
		return fmt.Errorf("%w: the answer for offset %d has no whole batch", ErrMalformed, start)
	}
	return nil
}

// batchReader reads batches one after the other, using its memory again.
type batchReader struct {
	batch  Batch
	record recordbatch.Record
	source bytes.Reader
	window []byte
}

func (r *batchReader) parse(b []byte) (*Batch, error) {
	base := int64(binary.BigEndian.Uint64(b))
	batch := &r.batch
	*batch = Batch{First: base, Last: base, ProducerID: -1, appendTime: -1, reader: r}
	if len(b) > magicAt && b[magicAt] < 2 {
		batch.old = b // its offset is that of its last record
		return batch, nil
	}
	if len(b) < headerBytes || b[magicAt] != 2 {
		return nil, fmt.Errorf("%w at offset %d: %d bytes of an unknown version", ErrMalformed, base, len(b))
	}
	if sum := binary.BigEndian.Uint32(b[17:]); crc32.Checksum(b[checkedAt:], castagnoli) != sum {
		return nil, fmt.Errorf("%w at offset %d: wrong checksum", ErrMalformed, base)
	}
	attributes := binary.BigEndian.Uint16(b[21:])
	last := int32(binary.BigEndian.Uint32(b[23:]))
	if last < 0 {
		return nil, fmt.Errorf("%w at offset %d: last offset delta %d", ErrMalformed, base, last)
	}
	batch.Last = base + int64(last)
	batch.compression = compress.Compression(attributes & attributeCompression)
	batch.Transactional = attributes&attributeTransactional != 0
	batch.Control = attributes&attributeControl != 0
	batch.firstTimestamp = int64(binary.BigEndian.Uint64(b[27:]))
	if attributes&attributeAppendTime != 0 {
		batch.appendTime = int64(binary.BigEndian.Uint64(b[35:]))
	}
	batch.ProducerID = int64(binary.BigEndian.Uint64(b[43:]))
	batch.count = int32(binary.BigEndian.Uint32(b[57:]))
	batch.body = b[headerBytes:]
	if batch.Control {
		return batch, batch.mark()
	}
	return batch, nil
}

// mark reads what a control batch says: its record's key is version int16, type int16.
func (b *Batch) mark() error {
	return b.Each(b.First, func(offset int64, r *recordbatch.Record) error {
		if len(r.Key) < 4 {
			return fmt.Errorf("%w: control record at offset %d", ErrMalformed, offset)
		}
		switch binary.BigEndian.Uint16(r.Key[2:]) {
		case 0:
			b.Aborted = true
		case 1:
			b.Committed = true
		}
		return nil
	}, nil)
}

// Each calls yield with the batch's records from an offset on. Huge may be nil when there are none such.
func (b *Batch) Each(from int64, yield func(offset int64, r *recordbatch.Record) error, huge func(offset, bytes int64) error) error {
	if b.old != nil {
		return b.eachOld(from, yield)
	}
	w := window{rest: b.body}
	if b.compression != compress.None {
		codec := b.compression.Codec()
		if codec == nil {
			return fmt.Errorf("%w at offset %d: unknown compression %d", ErrMalformed, b.First, b.compression)
		}
		b.reader.source.Reset(b.body)
		decompressor := codec.NewReader(&b.reader.source)
		defer decompressor.Close()
		w = window{source: decompressor, buffer: b.reader.window[:0]}
		defer func() { b.reader.window = w.buffer }()
	}
	for range b.count {
		size, err := w.varint()
		if err == nil && size < 0 {
			err = ErrMalformed
		}
		if err != nil {
			return fmt.Errorf("read batch at offset %d: %w", b.First, err)
		}
		if size > maxEncodedBytes {
			err = b.eachHuge(&w, size, from, huge)
		} else {
			err = b.one(&w, size, from, yield)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Batch) one(w *window, size, from int64, yield func(int64, *recordbatch.Record) error) error {
	body, err := w.next(int(size))
	if err != nil {
		return fmt.Errorf("read batch at offset %d: %w", b.First, err)
	}
	r := &b.reader.record
	delta, err := decodeRecord(body, r)
	if err != nil {
		return fmt.Errorf("read batch at offset %d: %w", b.First, err)
	}
	r.TimestampMs += b.firstTimestamp
	if b.appendTime >= 0 {
		r.TimestampMs = b.appendTime
	}
	if b.First+delta < from {
		return nil
	}
	return yield(b.First+delta, r)
}

// eachHuge steps over a record that is not to be held in memory.
func (b *Batch) eachHuge(w *window, size, from int64, huge func(offset, bytes int64) error) error {
	const prefix = 1 + 2*binary.MaxVarintLen64 // attributes and the two deltas
	head, err := w.peek(prefix)
	if err != nil {
		return fmt.Errorf("read batch at offset %d: %w", b.First, err)
	}
	p := payload{rest: head[1:]}
	p.varint()
	offset := b.First + p.varint()
	if err := w.skip(size); err != nil || p.bad {
		return fmt.Errorf("read record of %d bytes at offset %d: %w", size, offset, cmpErr(err))
	}
	if offset < from {
		return nil
	}
	if huge == nil {
		return fmt.Errorf("%w: record of %d bytes at offset %d", ErrMalformed, size, offset)
	}
	return huge(offset, size)
}

func cmpErr(err error) error {
	if err == nil {
		return ErrMalformed
	}
	return err
}

// eachOld reads a batch of the formats before Kafka 0.11.
func (b *Batch) eachOld(from int64, yield func(int64, *recordbatch.Record) error) error {
	set := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b.old)), uint32(len(b.old)))
	var records protocol.RecordSet
	if _, err := records.ReadFrom(bufio.NewReader(bytes.NewReader(append(set, b.old...)))); err != nil {
		return fmt.Errorf("read batch at offset %d: %w", b.First, err)
	}
	for records.Records != nil {
		r, err := records.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read batch at offset %d: %w", b.First, err)
		}
		out := recordbatch.Record{TimestampMs: r.Time.UnixMilli()}
		if out.Key, err = protocol.ReadAll(r.Key); err == nil {
			out.Value, err = protocol.ReadAll(r.Value)
		}
		if err == nil && r.Offset >= from {
			err = yield(r.Offset, &out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// decodeRecord reads a record without its length: attributes int8 | timestamp delta | offset delta |
// key | value | headers | (name | value)... All numbers are zigzag varints, and what has bytes begins
// with their number, -1 for null. The timestamp is the delta.
func decodeRecord(b []byte, r *recordbatch.Record) (offsetDelta int64, err error) {
	p := payload{rest: b}
	p.bytes(1)
	r.TimestampMs = p.varint()
	offsetDelta = p.varint()
	r.Key = p.sized()
	r.Value = p.sized()
	headers := p.varint()
	r.Headers = r.Headers[:0]
	const least = 2 // bytes of a header
	if headers < 0 || headers > int64(len(p.rest)/least) {
		p.bad = true
	}
	for i := int64(0); i < headers && !p.bad; i++ {
		r.Headers = append(r.Headers, recordbatch.Header{Name: p.sized(), Value: p.sized()})
	}
	if p.bad || offsetDelta < 0 || len(p.rest) > 0 {
		return 0, ErrMalformed
	}
	return offsetDelta, nil
}

// payload reads the parts of a record.
type payload struct {
	rest []byte
	bad  bool
}

func (p *payload) varint() int64 {
	v, n := binary.Varint(p.rest)
	if n <= 0 {
		p.bad = true
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *payload) bytes(n int64) []byte {
	if n < 0 || n > int64(len(p.rest)) {
		p.bad = true
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

func (p *payload) sized() []byte {
	n := p.varint()
	if n == -1 {
		return nil
	}
	return p.bytes(n)
}

// window is the part of a sequence of records that is in memory: all of it, or what was read ahead
// from a decompressor.
type window struct {
	source io.Reader // nil: rest is all there is
	buffer []byte    // that rest is in; kept when it is not larger than keptWindowBytes
	rest   []byte
}

const (
	readAheadBytes  = 64 << 10
	keptWindowBytes = 1 << 20
)

// peek returns the next n bytes, or fewer at the end.
func (w *window) peek(n int) ([]byte, error) {
	if len(w.rest) >= n || w.source == nil {
		return w.rest[:min(n, len(w.rest))], nil
	}
	if cap(w.buffer) > keptWindowBytes && n <= readAheadBytes {
		w.buffer = nil
	}
	grown := slices.Grow(w.buffer[:0], max(n, readAheadBytes))
	have := copy(grown[:len(w.rest)], w.rest)
	w.buffer = grown[:cap(grown)]
	for have < n {
		more, err := w.source.Read(w.buffer[have:])
		have += more
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
	}
	w.rest = w.buffer[:have]
	return w.rest[:min(n, have)], nil
}

func (w *window) next(n int) ([]byte, error) {
	b, err := w.peek(n)
	if err == nil && len(b) < n {
		err = ErrMalformed
	}
	w.rest = w.rest[len(b):]
	return b, err
}

func (w *window) skip(n int64) error {
	for n > 0 {
		b, err := w.next(int(min(n, readAheadBytes)))
		if err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

func (w *window) varint() (int64, error) {
	b, err := w.peek(binary.MaxVarintLen64)
	if err != nil {
		return 0, err
	}
	v, n := binary.Varint(b)
	if n <= 0 {
		return 0, ErrMalformed
	}
	w.rest = w.rest[n:]
	return v, nil
}
