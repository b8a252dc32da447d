package serializer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/manifest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// oneFile is a tree with one file in one directory.
type oneFile struct {
	name string
	data []byte
}

func (o oneFile) ReadDir(context.Context, string) ([]manifest.Info, error) {
	return []manifest.Info{{Name: o.name, Size: int64(len(o.data))}}, nil
}

func (o oneFile) Open(context.Context, string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(o.data)), nil
}

// TestManifestOfEveryFormat writes records in each format that a manifest can be compared with,
// in two commits, and compares.
func TestManifestOfEveryFormat(t *testing.T) {
	race.Apart(t)
	values := []string{"one", "", "three lines\nof one\nrecord", strings.Repeat("long ", 100_000), "one", "\n", strings.Repeat("x", 1<<20+1)}
	write := func(cfg *config.HDFS) []byte {
		f, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var file []byte
		sync := NewSync()
		for commit := range 2 {
			var c Chunk
			for i, v := range values {
				c.Add(f, Position{Source: &spillwayv1.SourcePartition{Topic: "t", Partition: 1}, Offset: int64(10*commit + i)}, &recordbatch.Record{Value: []byte(v), TimestampMs: 5})
			}
			if _, err := f.Seal(&c, File{Empty: commit == 0, Sync: sync}, nil); err != nil {
				t.Fatal(err)
			}
			file = append(file, c.Data...)
		}
		return file
	}
	here := oneFile{"manifest.1.zst", write(&config.HDFS{Serializer: "manifest", Compression: "zstd"})}
	formats := 0
	for serializer, all := range map[string][]string{
		"text":          {"none", "gzip", "bzip2", "zstd", "snappy", "lz4"},
		"sequence_file": {"none", "gzip", "deflate", "bzip2", "zstd", "snappy", "lz4"},
		"avro_event":    {"none", "deflate", "zstd", "snappy"},
	} {
		for _, compression := range all {
			for _, value := range []string{"bytes", "text"} {
				cfg := &config.HDFS{Serializer: serializer, Compression: compression, SequenceValue: value, AppendNewline: true}
				f, err := New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				c := manifest.Comparison{Here: here, There: oneFile{"file" + f.Extension(), write(cfg)}}
				err = c.Run(t.Context(), func(d *manifest.Directory) error {
					formats++
					if d.Verdict != manifest.Equal || d.Here.Records != 14 || d.Equal != 20 {
						return fmt.Errorf("%+v", d)
					}
					return nil
				})
				if err != nil {
					t.Errorf("%s, %s, %s: %v", serializer, compression, value, err)
				}
			}
		}
	}
	if formats != 34 {
		t.Errorf("%d formats were compared", formats)
	}
}
