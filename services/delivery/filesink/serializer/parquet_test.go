package serializer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestParquet reads the files with the library's own mapping of rows, which shares nothing with
// how they are written but the schema.
func TestParquet(t *testing.T) {
	race.Apart(t)
	type header struct {
		Name  string  `parquet:"name"`
		Value *[]byte `parquet:"value"`
	}
	type row struct {
		Cluster   string   `parquet:"cluster"`
		Topic     string   `parquet:"topic"`
		Partition int32    `parquet:"partition"`
		Offset    int64    `parquet:"offset"`
		Timestamp int64    `parquet:"timestamp,timestamp(millisecond)"`
		Key       *[]byte  `parquet:"key"`
		Value     *[]byte  `parquet:"value"`
		Headers   []header `parquet:"headers,list"`
	}
	optional := func(b []byte) *[]byte {
		if b == nil {
			return nil
		}
		return &b
	}
	for _, compression := range []string{"none", "gzip", "snappy", "zstd", "lz4"} {
		t.Run(compression, func(t *testing.T) {
			f := newFormat(t, "parquet", compression)
			var c Chunk
			var want []row
			records := odd()
			for range 3 {
				for _, r := range records {
					w := row{"c", "orders", 3, int64(len(want)), r.TimestampMs, optional(r.Key), optional(r.Value), nil}
					for _, h := range r.Headers {
						w.Headers = append(w.Headers, header{string(toUTF8(h.Name)), optional(h.Value)})
					}
					c.Add(f, Position{Source: source, Offset: int64(len(want))}, &r)
					want = append(want, w)
				}
			}
			if _, err := f.Seal(&c, File{Empty: true}, nil); err != nil {
				t.Fatal(err)
			}
			if dir := os.Getenv("KEEP_PARQUET"); dir != "" { // for a look with other readers
				if err := os.WriteFile(filepath.Join(dir, compression+".parquet"), c.Data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := parquet.Read[row](bytes.NewReader(c.Data), int64(len(c.Data)))
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if len(got[i].Headers) == 0 {
					got[i].Headers = nil
				}
			}
			if len(got) != len(want) {
				t.Fatalf("%d rows, want %d", len(got), len(want))
			}
			for i := range got {
				if diff := cmp.Diff(got[i], want[i]); diff != "" {
					t.Fatalf("row %d: %s", i, diff)
				}
			}
		})
	}
}

func TestParquetIsWhole(t *testing.T) {
	f := newFormat(t, "parquet", "none")
	if !f.Whole() {
		t.Error("a Parquet file can be appended to")
	}
	var c Chunk
	c.Add(f, Position{Source: source}, &odd()[0])
	if _, err := f.Seal(&c, File{}, nil); err == nil {
		t.Error("sealing a chunk for the middle of a file is no error")
	}
}

// TestParquetBounds: readers pass over pages by the bounds in the column index, so each value
// must be within those of its page, where there are any.
func TestParquetBounds(t *testing.T) {
	f := newFormat(t, "parquet", "none")
	records := append(odd(),
		recordbatch.Record{Key: []byte("a key of more than 16 bytes"), Value: bytes.Repeat([]byte{0xff}, 40)},
		recordbatch.Record{Key: bytes.Repeat([]byte{0xff}, 40), Value: bytes.Repeat([]byte("z"), 40)})
	var c Chunk
	for i := range 2_000 {
		at := Position{Source: &spillwayv1.SourcePartition{Cluster: "größe-größe-größe", Topic: "a-topic-of-more-than-16-bytes", Partition: 3}, Offset: int64(i)}
		c.Add(f, at, &records[i%len(records)])
	}
	if _, err := f.Seal(&c, File{Empty: true}, nil); err != nil {
		t.Fatal(err)
	}
	file, err := parquet.OpenFile(bytes.NewReader(c.Data), int64(len(c.Data)))
	if err != nil {
		t.Fatal(err)
	}
	columns, indexed := file.Schema().Columns(), 0
	for _, group := range file.RowGroups() {
		for i, chunk := range group.ColumnChunks() {
			index, err := chunk.ColumnIndex()
			if errors.Is(err, parquet.ErrMissingColumnIndex) {
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			indexed++
			pages := chunk.Pages()
			for p := 0; ; p++ {
				page, err := pages.ReadPage()
				if errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				values := make([]parquet.Value, page.NumValues())
				if n, err := page.Values().ReadValues(values); n != len(values) {
					t.Fatal(n, err)
				}
				for _, v := range values {
					if !v.IsNull() && (index.NullPage(p) || chunk.Type().Compare(v, index.MinValue(p)) < 0 || chunk.Type().Compare(v, index.MaxValue(p)) > 0) {
						t.Fatalf("column %v has %.50q in a page of which the index says [%.50q, %.50q], nulls only: %v", columns[i], v, index.MinValue(p), index.MaxValue(p), index.NullPage(p))
					}
				}
				parquet.Release(page)
			}
			if err := pages.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(file.RowGroups()) < 2 {
		t.Error("all rows are in one group")
	}
	if indexed == 0 {
		t.Error("no column has an index")
	}
}

// TestParquetTypeLengths: Hive compares the columns with those of its own schema, and a length is
// a difference where the type has none.
func TestParquetTypeLengths(t *testing.T) {
	f := newFormat(t, "parquet", "none")
	var c Chunk
	c.Add(f, Position{Source: source}, &odd()[0])
	if _, err := f.Seal(&c, File{Empty: true}, nil); err != nil {
		t.Fatal(err)
	}
	file, err := parquet.OpenFile(bytes.NewReader(c.Data), int64(len(c.Data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range file.Metadata().Schema {
		if e.TypeLength.Valid {
			t.Errorf("column %s has the length %d", e.Name, e.TypeLength.V)
		}
	}
}
