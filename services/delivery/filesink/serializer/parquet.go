package serializer

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// parquetFile writes Parquet files. The columns of one are in its footer, so a chunk is a whole
// file. Until then the records of a chunk are in a form of their own:
//
//	record: cluster | topic | partition: uvarint | a RecordBatch (recordbatch) of the one record with its offset as the delta
//
// Cluster and topic are their length as a uvarint, and the bytes.
type parquetFile struct{ codec compress.Codec }

// parquetRow is the schema.
type parquetRow struct {
	Cluster   string          `parquet:"cluster,dict"`
	Topic     string          `parquet:"topic,dict"`
	Partition int32           `parquet:"partition"`
	Offset    int64           `parquet:"offset,delta"`
	Timestamp int64           `parquet:"timestamp,timestamp(millisecond),delta"`
	Key       []byte          `parquet:"key,optional"`
	Value     []byte          `parquet:"value,optional"`
	Headers   []parquetHeader `parquet:"headers,list"`
}

type parquetHeader struct {
	Name  string `parquet:"name"`
	Value []byte `parquet:"value,optional"`
}

// The columns of parquetRow, in its order.
const (
	columnCluster = iota
	columnTopic
	columnPartition
	columnOffset
	columnTimestamp
	columnKey
	columnValue
	columnHeaderName
	columnHeaderValue
)

// rowGroupBytes is about how long a row group gets, uncompressed: the writer holds one in memory.
const rowGroupBytes = 64 << 20

var parquetSchema = parquet.SchemaOf(parquetRow{})

func newParquet(compression string) (Format, error) {
	codec, known := map[string]compress.Codec{
		"none": &parquet.Uncompressed, "gzip": &parquet.Gzip, "snappy": &parquet.Snappy, "zstd": &parquet.Zstd, "lz4": &parquet.Lz4Raw,
	}[compression]
	if !known {
		return nil, fmt.Errorf("compression: unknown value %q for parquet", compression)
	}
	if compression == "zstd" {
		z, err := newZstd()
		if err != nil {
			return nil, err
		}
		codec = parquetZstd{codec, z}
	}
	return parquetFile{codec}, nil
}

// parquetZstd is the library's codec with a compressor that takes less memory.
type parquetZstd struct {
	compress.Codec
	zstd zstdCodec
}

func (p parquetZstd) Encode(dst, src []byte) ([]byte, error) { return p.zstd.append(dst[:0], src) }

// AppendRecord implements Format.
func (p parquetFile) AppendRecord(b []byte, at Position, r *recordbatch.Record) []byte {
	b = protowire.AppendString(b, at.Source.GetCluster())
	b = protowire.AppendString(b, at.Source.GetTopic())
	b = binary.AppendUvarint(b, uint64(at.Source.GetPartition()))
	positioned := *r
	positioned.OffsetDelta = at.Offset
	return recordbatch.AppendRecord(b, &positioned)
}

// Seal implements Format.
func (p parquetFile) Seal(c *Chunk, f File, spare []byte) ([]byte, error) {
	if !f.Empty {
		return nil, fmt.Errorf("a Parquet file cannot be appended to")
	}
	out := appender{slices.Grow(spare, len(c.Data))} // as copies on the way would take more memory yet
	w := parquet.NewWriter(&out, parquetSchema, parquet.Compression(p.codec), parquet.CreatedBy("spillway", "", ""),
		// Their least and greatest values would be in the footer, and are as long as records are.
		parquet.SkipPageBounds("key"), parquet.SkipPageBounds("value"), parquet.SkipPageBounds("headers", "list", "element", "value"))
	var reader parquetReader
	rows := make([]parquet.Row, 1)
	for rest, flushed := c.Data, len(c.Data); len(rest) > 0; {
		var err error
		if flushed-len(rest) >= rowGroupBytes {
			if err = w.Flush(); err != nil {
				return nil, err
			}
			flushed = len(rest)
		}
		if rows[0], rest, err = reader.next(rows[0][:0], rest); err != nil {
			return nil, err
		}
		if _, err := w.WriteRows(rows); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	file, err := mendParquet(out.b)
	if err != nil {
		return nil, err
	}
	spare, c.Data = c.Data, file
	return spare, nil
}

// Extension implements Format: nobody goes by it.
func (p parquetFile) Extension() string { return "" }

// Whole implements Format.
func (p parquetFile) Whole() bool { return true }

// parquetReader takes records off a chunk.
type parquetReader struct{ records recordbatch.Reader }

// next makes a row of the first record. Its values point into the chunk.
func (p *parquetReader) next(row parquet.Row, chunk []byte) (next parquet.Row, rest []byte, err error) {
	cluster, n := protowire.ConsumeBytes(chunk)
	chunk = chunk[max(n, 0):]
	topic, m := protowire.ConsumeBytes(chunk)
	chunk = chunk[max(m, 0):]
	partition, k := protowire.ConsumeVarint(chunk)
	chunk = chunk[max(k, 0):]
	_, _, size := protowire.ConsumeField(chunk)
	if n < 0 || m < 0 || k < 0 || size < 0 {
		return row, nil, io.ErrUnexpectedEOF
	}
	p.records.Reset(chunk[:size])
	if !p.records.Next() {
		return row, nil, fmt.Errorf("read a record of the chunk: %w", p.records.Err())
	}
	r := p.records.Record()
	row = append(row,
		parquet.ByteArrayValue(cluster).Level(0, 0, columnCluster), parquet.ByteArrayValue(topic).Level(0, 0, columnTopic),
		parquet.Int32Value(int32(partition)).Level(0, 0, columnPartition), parquet.Int64Value(r.OffsetDelta).Level(0, 0, columnOffset),
		parquet.Int64Value(r.TimestampMs).Level(0, 0, columnTimestamp),
		optionalBytes(r.Key, 0, 0, columnKey), optionalBytes(r.Value, 0, 0, columnValue))
	// The values of a column stay together, the first of a row with repetition level 0.
	if len(r.Headers) == 0 {
		row = append(row, parquet.NullValue().Level(0, 0, columnHeaderName), parquet.NullValue().Level(0, 0, columnHeaderValue))
	}
	for i := range r.Headers {
		name := r.Headers[i].Name
		if !utf8.Valid(name) {
			name = toUTF8(name)
		}
		row = append(row, parquet.ByteArrayValue(name).Level(min(i, 1), 1, columnHeaderName))
	}
	for i := range r.Headers {
		row = append(row, optionalBytes(r.Headers[i].Value, min(i, 1), 1, columnHeaderValue))
	}
	return row, chunk[size:], nil
}

// optionalBytes is v in a column in which it is there or null, below one in which definition
// levels are defined.
func optionalBytes(v []byte, repetition, defined, column int) parquet.Value {
	if v == nil {
		return parquet.NullValue().Level(repetition, defined, column)
	}
	return parquet.ByteArrayValue(v).Level(repetition, defined+1, column)
}
