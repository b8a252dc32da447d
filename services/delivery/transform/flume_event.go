package transform

import (
	"encoding/binary"
	"errors"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Flume writes an event into a Kafka record as one Avro datum without a header, of the schema
//
//	{"type": "record", "name": "AvroFlumeEvent", "fields": [
//	  {"name": "headers", "type": {"type": "map", "values": "string"}},
//	  {"name": "body", "type": "bytes"}]}
//
// A map is blocks of entries, each with its count before it, and ends with a count of 0. A
// negative count is followed by the size of the block in bytes. Lengths and counts are zig-zag
// varints (Avro 1.11, "Binary Encoding").

var errNoFlumeEvent = errors.New("the value is no Flume event in Avro")

// decodeFlumeEvent puts the body into the place of the value, and adds the event's headers to the
// record's.
func decodeFlumeEvent(_ *Chain, r *recordbatch.Record) error {
	d, all := datum(r.Value), r.Headers
	for {
		count, ok := d.long()
		if !ok {
			return errNoFlumeEvent
		}
		if count == 0 {
			break
		}
		if count < 0 {
			count = -count
			if _, ok := d.long(); !ok {
				return errNoFlumeEvent
			}
		}
		if count < 0 || count > int64(len(d)/2) { // an entry has two bytes at least
			return errNoFlumeEvent
		}
		for range count {
			name, okName := d.bytes()
			value, okValue := d.bytes()
			if !okName || !okValue {
				return errNoFlumeEvent
			}
			all = append(all, recordbatch.Header{Name: name, Value: value})
		}
	}
	body, ok := d.bytes()
	if !ok || len(d) > 0 {
		return errNoFlumeEvent
	}
	r.Headers, r.Value = lastOfEach(all), body
	return nil
}

// lastOfEach keeps the last header of each name: those of the event come before those of the
// record.
func lastOfEach(all []recordbatch.Header) []recordbatch.Header {
	last := make(map[string]int, len(all))
	for i, h := range all {
		last[string(h.Name)] = i
	}
	kept := all[:0]
	for i, h := range all {
		if last[string(h.Name)] == i {
			kept = append(kept, h)
		}
	}
	return kept
}

// encodeFlumeEvent puts an event with the record's headers and value into the place of the value.
func encodeFlumeEvent(_ *Chain, r *recordbatch.Record) error {
	headers := lastOfEach(append([]recordbatch.Header(nil), r.Headers...))
	out := make([]byte, 0, r.Size()+10*len(headers)+20)
	if len(headers) > 0 {
		out = binary.AppendVarint(out, int64(len(headers)))
		for _, h := range headers {
			out = appendBytes(appendBytes(out, h.Name), h.Value)
		}
	}
	out = binary.AppendVarint(out, 0)
	r.Value = appendBytes(out, r.Value)
	return nil
}

func appendBytes(out, b []byte) []byte {
	return append(binary.AppendVarint(out, int64(len(b))), b...)
}

// datum is what is left of an Avro datum.
type datum []byte

// long reads a zig-zag varint, as encoding/binary has them.
func (d *datum) long() (int64, bool) {
	n, size := binary.Varint(*d)
	if size <= 0 {
		return 0, false
	}
	*d = (*d)[size:]
	return n, true
}

// bytes reads a length and as many bytes. They are not copied.
func (d *datum) bytes() ([]byte, bool) {
	n, ok := d.long()
	if !ok || n < 0 || n > int64(len(*d)) {
		return nil, false
	}
	b := (*d)[:n:n]
	*d = (*d)[n:]
	return b, true
}
