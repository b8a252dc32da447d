package kafkaclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/segmentio/kafka-go/compress"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// ErrMalformed is wrapped by the errors of record batches that cannot be decoded.
var ErrMalformed = errors.New("malformed record batch")

// The record batch, version 2, in a fetch's answer (big endian; what is not needed is in
// brackets):
//
//	 0 base offset int64 | 8 bytes that follow int32 | 12 [leader epoch int32] | 16 magic int8, 2 |
//	17 CRC32C of all that follows uint32 | 21 attributes int16 | 23 last offset delta int32 |
//	27 first timestamp int64 | 35 max timestamp int64 | 43 producer id int64 | 51 [epoch int16] |
//	53 [base sequence int32] | 57 records int32 | 61 the records, compressed as a whole
//
// Compaction keeps the last offset delta when it removes records, and the batch when it removes
// all.
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

// maxEncodedBytes bounds one record as it is held in memory: the largest that may be delivered,
// and its encoding. What is larger is told by its size alone, since a small batch may expand to
// any size.
const maxEncodedBytes = recordbatch.MaxRecordBytes + 1<<20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// badFunc is told of offsets from first to next-1 whose records cannot be delivered, and why.
type badFunc = func(first, next int64, reason string) error

// callerError carries an error of a callback through the decoder.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

func callers(err error) error {
	if err != nil {
		return &callerError{err}
	}
	return nil
}

// batch is one record batch of a Fetched.
type batch struct {
	first, last int64 // offsets covered, whether there are records at them or not
	producerID  int64 // -1: none
	// Transactional records count only when a marker of their producer says committed.
	transactional bool
	// Control batches end transactions and have no records.
	control, aborted bool

	compression    compress.Compression
	count          int32
	firstTimestamp int64
	appendTime     int64 // negative: records have their own timestamps
	body           []byte
	old            []byte // the whole batch when it is of version 0 or 1
	reader         *batchReader
}

// Each calls yield with every record that counts, from the requested offset on, in order. It
// calls bad with offsets whose records are too large, or cannot be decompressed or decoded
// although the checksum of their batch is right, and goes on after them; without bad, they are an
// error. It returns the offset where the next fetch goes on: offsets before it that were not
// named have no record. The record and its bytes are valid within yield only. Each stops at the
// first error of yield or bad and returns it. It releases the memory of f.
func (f *Fetched) Each(yield func(offset int64, r *recordbatch.Record) error, bad badFunc) (next int64, err error) {
	defer f.Release()
	if t := f.tooLarge; t != nil {
		reason := fmt.Sprintf("record batch of %d bytes is larger than %d", t.bytes, maxSetBytes)
		if bad == nil {
			return f.position, fmt.Errorf("%w at offset %d: %s", ErrMalformed, t.first, reason)
		}
		if err := bad(t.first, t.next, reason); err != nil {
			return f.position, err
		}
		f.position = t.next
		return f.position, nil
	}
	f.reader.reserve = f.Unpack
	var gone map[int64]bool // producers within an aborted transaction
	err = f.eachBatch(func(b *batch) error {
		for len(f.aborted) > 0 && f.aborted[0].first <= b.last {
			if gone == nil {
				gone = make(map[int64]bool)
			}
			gone[f.aborted[0].producerID] = true
			f.aborted = f.aborted[1:]
		}
		if b.aborted {
			delete(gone, b.producerID)
		}
		if b.control || b.transactional && gone[b.producerID] {
			return nil
		}
		err := b.each(&f.position, yield, bad)
		var caller *callerError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &caller):
			return caller.err
		case bad == nil:
			return fmt.Errorf("read batch at offset %d: %w", b.first, err)
		}
		if first := max(f.position, b.first); first <= b.last {
			if err := bad(first, b.last+1, fmt.Sprintf("record batch at offset %d cannot be opened: %v", b.first, err)); err != nil {
				return err
			}
			f.position = b.last + 1
		}
		return nil
	})
	return f.position, err
}

// eachBatch calls yield with every record batch. They are valid within yield only.
func (f *Fetched) eachBatch(yield func(*batch) error) error {
	start, some := f.position, len(f.set) > 0
	for {
		b, rest := cut(f.set)
		if b == nil {
			break
		}
		batch, err := f.reader.parse(b)
		if err == nil && batch.last >= f.position {
			err = yield(batch)
		}
		if err != nil {
			return err
		}
		f.position = max(f.position, batch.last+1)
		f.set = rest
	}
	if some && f.position == start {
		return fmt.Errorf("%w: the answer for offset %d has no whole batch", ErrMalformed, start)
	}
	return nil
}

// cut returns the first record batch of a set, nil when there is no whole one: brokers cut the
// last one.
func cut(set []byte) (batch, rest []byte) {
	if len(set) <= magicAt || set[magicAt] >= 2 && len(set) < headerBytes {
		return nil, nil
	}
	size := int64(binary.BigEndian.Uint32(set[8:])) + frameBytes
	if size > int64(len(set)) {
		return nil, nil
	}
	return set[:size:size], set[size:]
}

// end returns the offset after the last whole batch.
func (f *Fetched) end() int64 {
	if f.tooLarge != nil {
		return f.tooLarge.next
	}
	end := f.position
	for b, rest := cut(f.set); b != nil; b, rest = cut(rest) {
		last := int64(binary.BigEndian.Uint64(b))
		if len(b) >= headerBytes && b[magicAt] == 2 {
			last += max(int64(int32(binary.BigEndian.Uint32(b[23:]))), 0)
		}
		end = max(end, last+1)
	}
	return end
}

// batchReader reads batches one after the other, using its memory again.
type batchReader struct {
	batch   batch
	record  recordbatch.Record
	window  []byte
	reserve func(bytes int64) (release func(), err error)
}

func (r *batchReader) parse(b []byte) (*batch, error) {
	if len(b) <= magicAt {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	base := int64(binary.BigEndian.Uint64(b))
	batch := &r.batch
	resetBatch(batch, base, r)
	if b[magicAt] < 2 {
		batch.old = b // its offset is that of its last record
		_, err := parseOld(b)
		return batch, err
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
	batch.last = base + int64(last)
	batch.compression = compress.Compression(attributes & attributeCompression)
	batch.transactional = attributes&attributeTransactional != 0
	batch.control = attributes&attributeControl != 0
	batch.firstTimestamp = int64(binary.BigEndian.Uint64(b[27:]))
	if attributes&attributeAppendTime != 0 {
		batch.appendTime = int64(binary.BigEndian.Uint64(b[35:]))
	}
	batch.producerID = int64(binary.BigEndian.Uint64(b[43:]))
	batch.count = int32(binary.BigEndian.Uint32(b[57:]))
	batch.body = b[headerBytes:]
	if batch.control {
		return batch, batch.mark()
	}
	return batch, nil
}

func resetBatch(b *batch, base int64, r *batchReader) {
	*b = batch{first: base, last: base, producerID: -1, appendTime: -1, reader: r}
}

// mark reads what a control batch says: its record's key is version int16, type int16.
func (b *batch) mark() error {
	from := b.first
	return b.each(&from, func(offset int64, r *recordbatch.Record) error {
		if len(r.Key) < 4 {
			return fmt.Errorf("%w: control record at offset %d", ErrMalformed, offset)
		}
		b.aborted = binary.BigEndian.Uint16(r.Key[2:]) == 0
		return nil
	}, nil)
}

// each calls yield with the batch's records from next on, and moves next behind each. Errors of
// yield and bad are callerErrors.
func (b *batch) each(next *int64, yield func(offset int64, r *recordbatch.Record) error, bad badFunc) error {
	switch {
	case b.old != nil:
		return b.eachOld(next, yield, bad)
	case b.compression == compress.None:
		return b.walk(&window{rest: b.body}, next, yield, bad)
	}
	return b.reader.unpack(b.compression, b.body, func(w *window) error { return b.walk(w, next, yield, bad) })
}

// walk reads the batch's records.
func (b *batch) walk(w *window, next *int64, yield func(offset int64, r *recordbatch.Record) error, bad badFunc) error {
	before := int64(-1)
	for range b.count {
		size, err := w.varint()
		if err == nil && size < 0 {
			err = ErrMalformed
		}
		if err != nil {
			return err
		}
		delta := int64(0)
		if size > maxEncodedBytes {
			delta, err = b.stepOver(w, size, next, bad)
		} else {
			delta, err = b.one(w, size, next, yield, bad)
		}
		if err == nil && (delta <= before || delta > b.last-b.first) {
			err = fmt.Errorf("%w: offset delta %d after %d", ErrMalformed, delta, before)
		}
		if err != nil {
			return err
		}
		before = delta
	}
	return nil
}

func (b *batch) one(w *window, size int64, next *int64, yield func(int64, *recordbatch.Record) error, bad badFunc) (delta int64, err error) {
	body, err := w.next(int(size))
	if err != nil {
		return 0, err
	}
	r := &b.reader.record
	delta, err = decodeRecord(body, r)
	offset := b.first + delta
	if errors.Is(err, errManyHeaders) {
		return delta, b.unfit(offset, err.Error(), next, bad)
	}
	if err != nil || offset > b.last || offset < *next {
		return delta, err
	}
	r.TimestampMs += b.firstTimestamp
	if b.appendTime >= 0 {
		r.TimestampMs = b.appendTime
	}
	if err := yield(offset, r); err != nil {
		return 0, callers(err)
	}
	*next = offset + 1
	return delta, nil
}

// stepOver reads over a record that is not to be held in memory.
func (b *batch) stepOver(w *window, size int64, next *int64, bad badFunc) (delta int64, err error) {
	const prefix = 1 + 2*binary.MaxVarintLen64 // attributes and the two deltas
	head, err := w.peek(prefix)
	if err != nil {
		return 0, err
	}
	p := payload{rest: head}
	p.bytes(1)
	p.varint()
	delta = p.varint()
	if p.bad {
		return 0, ErrMalformed
	}
	if err := w.skip(size); err != nil {
		return 0, err
	}
	return delta, b.tooLarge(b.first+delta, size, next, bad)
}

func (b *batch) tooLarge(offset, size int64, next *int64, bad badFunc) error {
	return b.unfit(offset, fmt.Sprintf("record of %d bytes is larger than %d", size, recordbatch.MaxRecordBytes), next, bad)
}

// unfit reports one record that cannot be delivered.
func (b *batch) unfit(offset int64, reason string, next *int64, bad badFunc) error {
	if offset < *next || offset > b.last {
		return nil
	}
	if bad == nil {
		return fmt.Errorf("%w: at offset %d: %s", ErrMalformed, offset, reason)
	}
	if err := bad(offset, offset+1, reason); err != nil {
		return callers(err)
	}
	*next = offset + 1
	return nil
}
