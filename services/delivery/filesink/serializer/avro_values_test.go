package serializer

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hamba/avro/v2"
	"github.com/hamba/avro/v2/ocf"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestAvroValues reads back a container of values with the schema of a file, of two commits.
func TestAvroValues(t *testing.T) {
	const schema = `{"type":"record","name":"R","fields":[{"name":"n","type":"long"},{"name":"s","type":"string"}]}`
	type row struct {
		N int64  `avro:"n"`
		S string `avro:"s"`
	}
	file := filepath.Join(t.TempDir(), "r.avsc")
	if err := os.WriteFile(file, []byte(schema), 0o644); err != nil {
		t.Fatal(err)
	}
	parsed := avro.MustParse(schema)
	for _, compression := range []string{"none", "deflate", "snappy", "zstd"} {
		f, err := New(&config.HDFS{Serializer: "avro", AvroSchema: file, Compression: compression})
		if err != nil {
			t.Fatal(err)
		}
		var written []byte
		sync := NewSync()
		for commit := range 2 {
			var c Chunk
			for i := range 3 {
				value, err := avro.Marshal(parsed, row{int64(10*commit + i), strings.Repeat("x", i)})
				if err != nil {
					t.Fatal(err)
				}
				c.Add(f, Position{}, &recordbatch.Record{Value: value})
			}
			if _, err := f.Seal(&c, File{Empty: commit == 0, Sync: sync}, nil); err != nil {
				t.Fatal(err)
			}
			written = append(written, c.Data...)
		}
		d, err := ocf.NewDecoder(bytes.NewReader(written))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []row{{0, ""}, {1, "x"}, {2, "xx"}, {10, ""}, {11, "x"}, {12, "xx"}} {
			var got row
			if !d.HasNext() || d.Decode(&got) != nil || got != want {
				t.Errorf("%s: %v, want %v", compression, got, want)
			}
		}
		if d.HasNext() {
			t.Errorf("%s: there is more", compression)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file + ".none"} {
		if _, err := New(&config.HDFS{Serializer: "avro", AvroSchema: name, Compression: "none"}); err == nil || !strings.Contains(err.Error(), "avro_schema") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
