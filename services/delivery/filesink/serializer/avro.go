package serializer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"unicode/utf8"

	"golang.org/x/text/encoding/unicode"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// eventSchema is that of Flume's avro_event serializer.
const eventSchema = `{"type":"record","name":"Event","fields":[{"name":"headers","type":{"type":"map","values":"string"}},{"name":"body","type":"bytes"}]}`

// avroEvent writes Avro object container files of Flume's events.
//
//	file:  'O' 'b' 'j' 1 | metadata: map of bytes (avro.schema, avro.codec) | sync | block …
//	block: records: long | size: long | records, compressed as a whole | sync
//
// A long is a zigzag varint; bytes and strings are their length as a long, and the bytes.
type avroEvent struct {
	codec codec // nil for none
	meta  []byte
}

func newAvroEvent(compression string) (Format, error) {
	return newAvroContainer(eventSchema, compression)
}

// newAvroContainer prepares the header of containers with a schema.
func newAvroContainer(schema, compression string) (avroEvent, error) {
	c, name, err := newAvroCodec(compression)
	if err != nil {
		return avroEvent{}, err
	}
	m := []byte{'O', 'b', 'j', 1}
	m = binary.AppendVarint(m, 2)
	m = appendAvro(m, "avro.schema")
	m = appendAvro(m, schema)
	m = appendAvro(m, "avro.codec")
	m = appendAvro(m, name)
	m = binary.AppendVarint(m, 0)
	return avroEvent{codec: c, meta: m}, nil
}

// AppendRecord implements Format. Strings of Avro are UTF-8: bytes of a header that are not become
// U+FFFD. The body is the value as it is, a null value an empty one.
func (a avroEvent) AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte {
	h := eventHeadersOf(r)
	b = binary.AppendVarint(b, int64(h.count()))
	if h.timestamp {
		b = appendAvro(b, "timestamp")
		b = appendAvroNumber(b, r.TimestampMs)
	}
	if h.topic {
		b = appendAvro(b, "topic")
		b = appendAvro(b, at.Source.GetTopic())
	}
	if h.partition {
		b = appendAvro(b, "partition")
		b = appendAvroNumber(b, int64(at.Source.GetPartition()))
	}
	if h.offset {
		b = appendAvro(b, "offset")
		b = appendAvroNumber(b, at.Offset)
	}
	if h.key {
		b = appendAvro(b, "key")
		b = appendAvroText(b, r.Key)
	}
	for i := range r.Headers {
		if h.has(r, i) {
			b = appendAvroText(b, r.Headers[i].Name)
			b = appendAvroText(b, r.Headers[i].Value)
		}
	}
	b = binary.AppendVarint(b, 0) // the end of the map
	return appendAvro(b, r.Value)
}

// Seal implements Format.
func (a avroEvent) Seal(c *Chunk, f File, spare []byte) ([]byte, error) {
	dst := spare
	if f.Empty {
		dst = append(dst, a.meta...)
		dst = append(dst, f.Sync[:]...)
	}
	var packed []byte
	err := c.each(func(data []byte, records int64) error {
		if a.codec != nil {
			var err error
			if packed, err = a.codec.append(packed[:0], data); err != nil {
				return fmt.Errorf("compress block: %w", err)
			}
			data = packed
		}
		dst = binary.AppendVarint(dst, records)
		dst = appendAvro(dst, data)
		dst = append(dst, f.Sync[:]...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	spare, c.Data = c.Data, dst
	return spare, nil
}

// Extension implements Format: the codec is named in the file.
func (a avroEvent) Extension() string { return "" }

// Whole implements Format.
func (a avroEvent) Whole() bool { return false }

func appendAvro[T string | []byte](b []byte, v T) []byte {
	b = binary.AppendVarint(b, int64(len(v)))
	return append(b, v...)
}

func appendAvroNumber(b []byte, n int64) []byte {
	var digits [20]byte
	return appendAvro(b, strconv.AppendInt(digits[:0], n, 10))
}

func appendAvroText(b, text []byte) []byte {
	if !utf8.Valid(text) {
		text = toUTF8(text)
	}
	return appendAvro(b, text)
}

// toUTF8 is text with U+FFFD in the place of what is not UTF-8: as many as Java puts there, one
// for each beginning of a character that does not go on; three for a surrogate, where Java has
// one.
func toUTF8(text []byte) []byte {
	valid, err := unicode.UTF8.NewDecoder().Bytes(text)
	if err != nil { // never, as it replaces all there may be
		return bytes.ToValidUTF8(text, []byte("\uFFFD"))
	}
	return valid
}
