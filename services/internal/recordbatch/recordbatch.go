// Package recordbatch writes and reads the payload of a batch: the wire form of
// spillway.v1.RecordBatch (proto/spillway/v1/record.proto) without the message structs, so that
// no record costs an allocation. The generated code reads what Encoder writes and the other way
// round.
package recordbatch

import (
	"errors"
	"fmt"
	"hash/crc32"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxRecordBytes bounds key, value and headers of one record. Larger ones are dead-lettered.
const MaxRecordBytes = 16 << 20

// MaxHeaders bounds the headers of one record, each of which takes 48 bytes of memory however
// short its encoding is. Records with more are dead-lettered before they are written, and
// malformed for a Reader.
const MaxHeaders = 256 << 10

// keptHeaders is how many headers a Reader keeps room for from one record to the next.
const keptHeaders = 1 << 10

// ErrMalformed is wrapped by every decoding error.
var ErrMalformed = errors.New("malformed record batch")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC is the checksum of Batch.payload_crc32c.
func CRC(parts ...[]byte) (crc uint32) {
	for _, part := range parts {
		crc = crc32.Update(crc, castagnoli, part)
	}
	return crc
}

// Field numbers of RecordBatch, Record and Header.
const (
	fieldRecords = 1

	fieldOffsetDelta = 1
	fieldTimestamp   = 2
	fieldKey         = 3
	fieldValue       = 4
	fieldHeaders     = 5

	fieldHeaderName  = 1
	fieldHeaderValue = 2
)

// Header is one record header; a nil Value is null.
type Header struct {
	Name  []byte
	Value []byte
}

// Record is one record. A nil Key or Value is null, an empty one is not. When it comes from a
// Reader its slices point into the payload.
type Record struct {
	OffsetDelta int64
	TimestampMs int64
	Key         []byte
	Value       []byte
	Headers     []Header
}

// Size is the number of key, value and header bytes.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += len(r.Headers[i].Name) + len(r.Headers[i].Value)
	}
	return n
}

// Header returns the value of the first header of that name, and whether there is one.
func (r *Record) Header(name string) ([]byte, bool) {
	for i := range r.Headers {
		if string(r.Headers[i].Name) == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}

// AppendRecord appends r to payload, a RecordBatch in the making, and returns it.
func AppendRecord(payload []byte, r *Record) []byte {
	payload = protowire.AppendTag(payload, fieldRecords, protowire.BytesType)
	payload = protowire.AppendVarint(payload, uint64(recordSize(r)))
	payload = protowire.AppendTag(payload, fieldOffsetDelta, protowire.VarintType)
	payload = protowire.AppendVarint(payload, uint64(r.OffsetDelta))
	payload = protowire.AppendTag(payload, fieldTimestamp, protowire.VarintType)
	payload = protowire.AppendVarint(payload, uint64(r.TimestampMs))
	if r.Key != nil {
		payload = appendBytes(payload, fieldKey, r.Key)
	}
	if r.Value != nil {
		payload = appendBytes(payload, fieldValue, r.Value)
	}
	for i := range r.Headers {
		h := &r.Headers[i]
		payload = protowire.AppendTag(payload, fieldHeaders, protowire.BytesType)
		payload = protowire.AppendVarint(payload, uint64(headerSize(h)))
		payload = appendBytes(payload, fieldHeaderName, h.Name)
		if h.Value != nil {
			payload = appendBytes(payload, fieldHeaderValue, h.Value)
		}
	}
	return payload
}

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// recordSize is the size of the encoded record without its own tag and length. All tags are one
// byte.
func recordSize(r *Record) int {
	n := 2 + protowire.SizeVarint(uint64(r.OffsetDelta)) + protowire.SizeVarint(uint64(r.TimestampMs))
	if r.Key != nil {
		n += 1 + protowire.SizeBytes(len(r.Key))
	}
	if r.Value != nil {
		n += 1 + protowire.SizeBytes(len(r.Value))
	}
	for i := range r.Headers {
		n += 1 + protowire.SizeBytes(headerSize(&r.Headers[i]))
	}
	return n
}

func headerSize(h *Header) int {
	n := 1 + protowire.SizeBytes(len(h.Name))
	if h.Value != nil {
		n += 1 + protowire.SizeBytes(len(h.Value))
	}
	return n
}

// Reader reads the records of an uncompressed payload one after the other. The zero Reader is
// empty; Reset makes it reusable.
type Reader struct {
	rest   []byte
	record Record
	err    error
}

// Reset starts reading payload, which must not change while records of it are in use.
func (r *Reader) Reset(payload []byte) { r.rest, r.err = payload, nil }

// Next moves to the next record and says whether there is one. After false, Err tells why.
func (r *Reader) Next() bool {
	for r.err == nil && len(r.rest) > 0 {
		num, typ, n := protowire.ConsumeTag(r.rest)
		if n < 0 {
			r.fail("tag", n)
			return false
		}
		r.rest = r.rest[n:]
		if num != fieldRecords || typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, r.rest); n < 0 {
				r.fail("unknown field", n)
				return false
			}
			r.rest = r.rest[n:]
			continue
		}
		body, n := protowire.ConsumeBytes(r.rest)
		if n < 0 {
			r.fail("record", n)
			return false
		}
		r.rest = r.rest[n:]
		return r.parse(body)
	}
	return false
}

// Record is the current record, valid until the next call of Next. Its slices point into the
// payload, but the Headers slice itself is reused.
func (r *Reader) Record() *Record { return &r.record }

// Err is why Next returned false; nil at the end of the payload.
func (r *Reader) Err() error { return r.err }

func (r *Reader) fail(what string, code int) {
	r.err = fmt.Errorf("%w: %s: %v", ErrMalformed, what, protowire.ParseError(code))
}

func (r *Reader) parse(b []byte) bool {
	rec := &r.record
	headers := rec.Headers[:0]
	if cap(headers) > keptHeaders {
		headers = nil
	}
	*rec = Record{Headers: headers}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			r.fail("record tag", n)
			return false
		}
		b = b[n:]
		switch {
		case num == fieldOffsetDelta && typ == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			rec.OffsetDelta = int64(v)
		case num == fieldTimestamp && typ == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			rec.TimestampMs = int64(v)
		case num == fieldKey && typ == protowire.BytesType:
			rec.Key, n = consumeBytes(b)
		case num == fieldValue && typ == protowire.BytesType:
			rec.Value, n = consumeBytes(b)
		case num == fieldHeaders && typ == protowire.BytesType:
			var h []byte
			if h, n = protowire.ConsumeBytes(b); n >= 0 && !r.parseHeader(h) {
				return false
			}
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			r.fail("record field", n)
			return false
		}
		b = b[n:]
	}
	return true
}

func (r *Reader) parseHeader(b []byte) bool {
	h := Header{Name: []byte{}} // a name has no null
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			r.fail("header tag", n)
			return false
		}
		b = b[n:]
		switch {
		case num == fieldHeaderName && typ == protowire.BytesType:
			h.Name, n = consumeBytes(b)
		case num == fieldHeaderValue && typ == protowire.BytesType:
			h.Value, n = consumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			r.fail("header field", n)
			return false
		}
		b = b[n:]
	}
	if len(r.record.Headers) == MaxHeaders {
		r.err = fmt.Errorf("%w: record has more than %d headers", ErrMalformed, MaxHeaders)
		return false
	}
	r.record.Headers = append(r.record.Headers, h)
	return true
}

// consumeBytes is protowire.ConsumeBytes with a present but empty field as an empty slice, never
// nil.
func consumeBytes(b []byte) ([]byte, int) {
	v, n := protowire.ConsumeBytes(b)
	if v == nil && n >= 0 {
		v = []byte{}
	}
	return v, n
}
