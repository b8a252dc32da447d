package serializer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
)

// TestParquet reads the files with the library's own mapping of rows, which shares nothing with how they are written but
// the schema.
func TestParquet(t *testing.T) {
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
