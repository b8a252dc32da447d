package filesink_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hamba/avro/v2/ocf"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// flumeRecord is a line of testdata/flume/records.jsonl.
type flumeRecord struct {
	Partition         int32
	Offset, Timestamp int64
	Key, Value        []byte
	Tenant            *string
}

// TestLikeFlume delivers the records that testdata/flume/generate gave to a real Flume, with that
// Flume's sink configuration, and compares the files: directories, prefixes, suffixes and
// content, in order. The number in a name is another's there.
func TestLikeFlume(t *testing.T) {
	for _, serializer := range []string{"avro_event", "text"} {
		t.Run(serializer, func(t *testing.T) {
			root := t.TempDir()
			disk, err := localfs.New(root)
			if err != nil {
				t.Fatal(err)
			}
			sink := newSink(t, &config.HDFS{
				URL: "file:///x", Path: "/%{topic}/%Y-%m-%d", FilePrefix: "%H", FileSuffix: ".log", InUseSuffix: ".tmp",
				TimeZone: "Europe/Berlin", TimeFrom: "record", Round: true, RoundUnit: "second", RoundValue: 1,
				MaxOpenFiles: 500, Commit: config.Commit{Bytes: 8 * config.MiB, Interval: 1}, Serializer: serializer, Compression: "none", AppendNewline: true,
			}, disk)
			b := newFakeBuffer()
			for partition, records := range readFlumeRecords(t) {
				b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "originTopic", Partition: int32(partition)}, 0, records...)
			}
			session := b.open()
			wait := serve(t, sink, session)
			settleAll(t, b, session)
			if err := wait(); err != nil {
				t.Fatal(err)
			}
			if err := sink.Close(); err != nil {
				t.Fatal(err)
			}
			got, want := buckets(t, finals(t, root)), buckets(t, finals(t, "testdata/flume/written/"+serializer))
			if len(want) != 4 {
				t.Errorf("Flume wrote %d files, want 4", len(want))
			}
			if serializer == "text" {
				if diff := cmp.Diff(got, want); diff != "" {
					t.Error(diff)
				}
				return
			}
			if diff := cmp.Diff(readEvents(t, got), readEvents(t, want)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// readFlumeRecords returns the records of each partition.
func readFlumeRecords(t *testing.T) (records [2][]recordbatch.Record) {
	t.Helper()
	f, err := os.Open("testdata/flume/records.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var r flumeRecord
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return records
		} else if err != nil {
			t.Fatal(err)
		}
		if int(r.Offset) != len(records[r.Partition]) {
			t.Fatalf("partition %d has offset %d after %d records", r.Partition, r.Offset, len(records[r.Partition]))
		}
		rec := recordbatch.Record{TimestampMs: r.Timestamp, Key: r.Key, Value: r.Value}
		if r.Tenant != nil {
			rec.Headers = []recordbatch.Header{{Name: []byte("tenant"), Value: []byte(*r.Tenant)}}
		}
		records[r.Partition] = append(records[r.Partition], rec)
	}
}

// buckets renames files so that what makes their names unique is left out: /dir/17.x.log.
func buckets(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for p, content := range files {
		dir, name := path.Split(p)
		prefix, _, _ := strings.Cut(name, ".")
		bucket := dir + prefix + ".x" + path.Ext(name)
		if _, there := out[bucket]; there {
			t.Errorf("there are two files like %s", bucket)
		}
		out[bucket] = content
	}
	return out
}

type flumeEvent struct {
	Headers map[string]string `avro:"headers"`
	Body    []byte            `avro:"body"`
}

// avroFile is what must be equal: not the blocks and their marker.
type avroFile struct {
	Schema, Codec string
	Events        []flumeEvent
}

func readEvents(t *testing.T, files map[string]string) map[string]avroFile {
	t.Helper()
	out := make(map[string]avroFile)
	for p, content := range files {
		d, err := ocf.NewDecoder(bytes.NewReader([]byte(content)))
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		f := avroFile{Schema: string(d.Metadata()["avro.schema"]), Codec: string(d.Metadata()["avro.codec"])}
		for d.HasNext() {
			var e flumeEvent
			if err := d.Decode(&e); err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			f.Events = append(f.Events, e)
		}
		if err := d.Error(); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		out[p] = f
	}
	return out
}
