package kafkaclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

var errManyHeaders = fmt.Errorf("record has more than %d headers", recordbatch.MaxHeaders)

// decodeRecord reads a record without its length: attributes int8 | timestamp delta | offset
// delta | key | value | headers | (name | value)... All numbers are zigzag varints, and what has
// bytes begins with their number, -1 for null. The timestamp is the delta.
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
	if !p.bad && offsetDelta >= 0 && headers > recordbatch.MaxHeaders {
		return offsetDelta, errManyHeaders
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
	limit  int       // of what is in memory at a time, with a source
	buffer []byte    // that rest is in
	rest   []byte
}

const readAheadBytes = 64 << 10

// peek returns the next n bytes, or fewer at the end. It returns errMoreMemory when that is more
// than the limit.
func (w *window) peek(n int) ([]byte, error) {
	if len(w.rest) >= n || w.source == nil {
		return w.rest[:min(n, len(w.rest))], nil
	}
	if n > w.limit {
		return nil, errMoreMemory
	}
	size := max(n, readAheadBytes)
	if cap(w.buffer) < size {
		grown := make([]byte, size)
		copy(grown, w.rest)
		w.buffer = grown
	} else {
		copy(w.buffer[:cap(w.buffer)], w.rest)
		w.buffer = w.buffer[:cap(w.buffer)]
	}
	have := len(w.rest)
	for have < n {
		more, err := w.source.Read(w.buffer[have:])
		have += more
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: decompress: %w", ErrMalformed, err)
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
