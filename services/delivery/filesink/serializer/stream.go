package serializer

import (
	"strconv"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// records is the half of a Format that does not depend on compression.
type records interface {
	AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte
}

// stream is a format without header or blocks. Compressed, each chunk is a member of its own;
// readers take members one after the other for one stream.
type stream struct {
	records
	codec codec // nil for none
	ext   string
}

func newStream(r records, compression string) (Format, error) {
	c, ext, err := newHadoopCodec(compression)
	if err != nil {
		return nil, err
	}
	return stream{records: r, codec: c, ext: ext}, nil
}

// Seal implements Format.
func (s stream) Seal(c *Chunk, _ File, spare []byte) ([]byte, error) {
	if s.codec == nil {
		return spare, nil
	}
	data, err := s.codec.append(spare, c.Data)
	if err != nil {
		return nil, err
	}
	spare, c.Data = c.Data, data
	return spare, nil
}

// Extension implements Format.
func (s stream) Extension() string { return s.ext }

// Whole implements Format.
func (s stream) Whole() bool { return false }

// text writes values as they are. A null value is an empty one.
type text struct{ newline bool }

func (t text) AppendRecord(b []byte, _ Position, r *recordbatch.Record) []byte {
	b = append(b, r.Value...)
	if t.newline {
		b = append(b, '\n')
	}
	return b
}

// headerAndText writes what Flume's serializer of that name does: the headers as Java prints a
// map, a space, the value. Nothing is escaped, so it is for people to read.
type headerAndText struct{ newline bool }

func (t headerAndText) AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte {
	h := eventHeadersOf(r)
	b = append(b, '{')
	start := len(b)
	next := func() {
		if len(b) > start {
			b = append(b, ", "...)
		}
	}
	if h.timestamp {
		b = append(b, "timestamp="...)
		b = strconv.AppendInt(b, r.TimestampMs, 10)
	}
	if h.topic {
		next()
		b = append(b, "topic="...)
		b = append(b, at.Source.GetTopic()...)
	}
	if h.partition {
		next()
		b = append(b, "partition="...)
		b = strconv.AppendInt(b, int64(at.Source.GetPartition()), 10)
	}
	if h.offset {
		next()
		b = append(b, "offset="...)
		b = strconv.AppendInt(b, at.Offset, 10)
	}
	if h.key {
		next()
		b = append(b, "key="...)
		b = append(b, r.Key...)
	}
	for i := range r.Headers {
		if h.has(r, i) {
			next()
			b = append(b, r.Headers[i].Name...)
			b = append(b, '=')
			b = append(b, r.Headers[i].Value...)
		}
	}
	b = append(b, "} "...)
	b = append(b, r.Value...)
	if t.newline {
		b = append(b, '\n')
	}
	return b
}
