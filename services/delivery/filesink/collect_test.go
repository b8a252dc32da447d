package filesink

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// idSession has nothing but an id.
type idSession struct{ delivery.Session }

func (idSession) ID() uint64    { return 1 }
func (idSession) Sessions() int { return 1 }

// newCollector is the collecting half of a session, which needs neither files nor a buffer.
func newCollector(tb testing.TB, format string) *serving {
	tb.Helper()
	sink, err := New(&config.HDFS{
		URL: "hdfs://n:8020", Path: "/logs/%{topic}/%Y-%m-%d/%{tenant}", FilePrefix: "%H", FileSuffix: ".log", InUseSuffix: ".tmp", TimeZone: "UTC",
		TimeFrom: "record", MaxOpenFiles: 500, Commit: config.Commit{Bytes: 8 * config.MiB}, Serializer: format, Compression: "none", SequenceValue: "bytes", AppendNewline: true,
	}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return newServing(sink, idSession{})
}

// collectLease is a batch of a thousand records of 200 bytes for three buckets.
func collectLease() *delivery.Lease {
	var payload []byte
	for i := range 1000 {
		payload = recordbatch.AppendRecord(payload, &recordbatch.Record{
			OffsetDelta: int64(i), TimestampMs: 1772690889010 + int64(i), Key: []byte("key"), Value: bytes.Repeat([]byte("v"), 200),
			Headers: []recordbatch.Header{{Name: []byte("tenant"), Value: fmt.Appendf(nil, "t%d", i%3)}},
		})
	}
	return delivery.NewLease(1, &spillwayv1.SourcePartition{Cluster: "c", Topic: "orders", Partition: 3}, 0, 1000, 1000, payload)
}

// collectBatch collects a lease, and forgets what it has when that is as much as a commit takes.
func (v *serving) collectBatch(l *delivery.Lease) {
	v.collect(l)
	v.giveRuns(v.leases)
	v.leases = v.leases[:0]
	if v.collected < int64(v.sink.cfg.Commit.Bytes) {
		return
	}
	for _, f := range v.files {
		v.giveBuffer(f.chunk.Data)
		f.chunk, f.count = serializer.Chunk{}, 0
	}
	v.collected, v.dirty = 0, 0
}

// TestCollectDoesNotAllocate: what a batch and a commit cost does not depend on how many records
// are in them.
func TestCollectDoesNotAllocate(t *testing.T) {
	race.Apart(t)
	for _, name := range []string{"text", "avro_event", "sequence_file"} {
		v, l := newCollector(t, name), collectLease()
		for range 200 { // grows the buffers
			v.collectBatch(l)
		}
		if n := testing.AllocsPerRun(200, func() { v.collectBatch(l) }); n > 20 {
			t.Errorf("%s: a batch of 1000 records costs %.0f allocations", name, n)
		}
	}
}

// BenchmarkCollect is a batch of a thousand records into three files, without compression and
// writing.
func BenchmarkCollect(b *testing.B) {
	for _, name := range []string{"text", "header_and_text", "json", "avro_event", "sequence_file", "parquet"} {
		b.Run(name, func(b *testing.B) {
			v, l := newCollector(b, name), collectLease()
			b.ReportAllocs()
			for b.Loop() {
				v.collectBatch(l)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "records/s")
		})
	}
}
