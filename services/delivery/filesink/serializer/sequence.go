package serializer

import (
	"encoding/binary"
	"fmt"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// sequenceFile writes Hadoop's SequenceFiles as Flume's sink does: the key is the time as
// LongWritable, the value the record's as BytesWritable or Text. Numbers are big endian, a string
// is its length and bytes.
//
//	file:       'S' 'E' 'Q' 6 | key class | value class | compressed: bool | by blocks: bool | codec class, if compressed
//	            | entries of metadata: int32 = 0 | sync | block …
//	block:      -1: int32 | sync | record …
//	record:     length of key and value: int32 | length of key: int32 | key | value
//	compressed: -1: int32 | sync | records | keys' lengths | keys | values' lengths | values
//
// Of a compressed block the four are compressed one by one, each with its length before it.
// Lengths in it and of strings are vints.
type sequenceFile struct {
	codec  codec // nil for none
	header []byte
	text   bool // the values are Text
}

const longWritableBytes = 8

func newSequenceFile(compression, value string) (Format, error) {
	c, class, err := newSequenceCodec(compression)
	if err != nil {
		return nil, err
	}
	s := sequenceFile{codec: c, text: value == "text", header: []byte{'S', 'E', 'Q', 6}}
	s.header = appendWritable(s.header, "org.apache.hadoop.io.LongWritable")
	switch value {
	case "bytes":
		s.header = appendWritable(s.header, "org.apache.hadoop.io.BytesWritable")
	case "text":
		s.header = appendWritable(s.header, "org.apache.hadoop.io.Text")
	default:
		return nil, fmt.Errorf("sequence_value: unknown value %q", value)
	}
	if c == nil {
		s.header = append(s.header, 0, 0)
	} else {
		s.header = append(s.header, 1, 1)
		s.header = appendWritable(s.header, class)
	}
	s.header = append(s.header, 0, 0, 0, 0)
	return s, nil
}

// AppendRecord implements Format. A null value is an empty one.
func (s sequenceFile) AppendRecord(b []byte, _ Position, r *recordbatch.Record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, longWritableBytes)
	b = binary.BigEndian.AppendUint64(b, uint64(r.TimestampMs))
	if s.text {
		b = appendWritable(b, r.Value)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value)))
		b = append(b, r.Value...)
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-8))
	return b
}

// Seal implements Format.
func (s sequenceFile) Seal(c *Chunk, f File, spare []byte) ([]byte, error) {
	dst := spare
	if f.Empty {
		dst = append(dst, s.header...)
		dst = append(dst, f.Sync[:]...)
	}
	var columns sequenceColumns
	err := c.each(func(data []byte, records int64) error {
		dst = binary.BigEndian.AppendUint32(dst, 0xffffffff)
		dst = append(dst, f.Sync[:]...)
		if s.codec == nil {
			dst = append(dst, data...)
			return nil
		}
		columns.split(data)
		dst = appendVInt(dst, records)
		for _, column := range [...][]byte{columns.keyLengths, columns.keys, columns.valueLengths, columns.values} {
			var err error
			if columns.packed, err = s.codec.append(columns.packed[:0], column); err != nil {
				return fmt.Errorf("compress block: %w", err)
			}
			dst = appendWritable(dst, columns.packed)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	spare, c.Data = c.Data, dst
	return spare, nil
}

// Extension implements Format: the codec is named in the file.
func (s sequenceFile) Extension() string { return "" }

// Whole implements Format.
func (s sequenceFile) Whole() bool { return false }

// sequenceColumns are the records of a block, as a compressed one has them.
type sequenceColumns struct{ keyLengths, keys, valueLengths, values, packed []byte }

// split takes the records of data apart.
func (c *sequenceColumns) split(data []byte) {
	c.keyLengths, c.keys, c.valueLengths, c.values = c.keyLengths[:0], c.keys[:0], c.valueLengths[:0], c.values[:0]
	for len(data) > 0 {
		size := binary.BigEndian.Uint32(data)
		record := data[8 : 8+size]
		c.keyLengths = appendVInt(c.keyLengths, longWritableBytes)
		c.keys = append(c.keys, record[:longWritableBytes]...)
		c.valueLengths = appendVInt(c.valueLengths, int64(size-longWritableBytes))
		c.values = append(c.values, record[longWritableBytes:]...)
		data = data[8+size:]
	}
}

func appendWritable[T string | []byte](b []byte, v T) []byte {
	b = appendVInt(b, int64(len(v)))
	return append(b, v...)
}

// appendVInt appends n, which is not negative, as Hadoop's WritableUtils does: up to 127 as
// itself, else the number of its bytes from -113 downwards, and these.
func appendVInt(b []byte, n int64) []byte {
	if n <= 127 {
		return append(b, byte(n))
	}
	size := 0
	for rest := n; rest > 0; rest >>= 8 {
		size++
	}
	b = append(b, byte(-112-size))
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}
