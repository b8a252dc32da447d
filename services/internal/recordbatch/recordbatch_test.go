package recordbatch

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

var odd = []Record{
	{OffsetDelta: 0, TimestampMs: 1_700_000_000_000, Key: []byte("k"), Value: []byte("v"), Headers: []Header{{[]byte("h"), []byte("1")}}},
	{OffsetDelta: 1, TimestampMs: 0, Key: nil, Value: nil},
	{OffsetDelta: 5, TimestampMs: -1, Key: []byte{}, Value: []byte{}},
	{OffsetDelta: 1 << 40, TimestampMs: 7, Value: bytes.Repeat([]byte{0xff}, 1000),
		Headers: []Header{{[]byte{0xff, 0}, nil}, {[]byte("same"), []byte{}}, {[]byte("same"), []byte{1}}, {[]byte{}, []byte("x")}}},
}

func encode(records []Record) (payload []byte) {
	for i := range records {
		payload = AppendRecord(payload, &records[i])
	}
	return payload
}

func decode(t *testing.T, payload []byte) (records []Record) {
	t.Helper()
	var r Reader
	for r.Reset(payload); r.Next(); {
		rec := *r.Record()
		rec.Headers = append([]Header(nil), rec.Headers...)
		records = append(records, rec)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	return records
}

func asMessage(records []Record) *spillwayv1.RecordBatch {
	m := &spillwayv1.RecordBatch{}
	for _, r := range records {
		rec := &spillwayv1.Record{OffsetDelta: r.OffsetDelta, TimestampMs: r.TimestampMs, Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, &spillwayv1.Header{Name: h.Name, Value: h.Value})
		}
		m.Records = append(m.Records, rec)
	}
	return m
}

func TestRoundTripKeepsNullApartFromEmpty(t *testing.T) {
	if diff := cmp.Diff(odd, decode(t, encode(odd))); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestGeneratedCodeReadsWhatWeWrite(t *testing.T) {
	var m spillwayv1.RecordBatch
	if err := proto.Unmarshal(encode(odd), &m); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(asMessage(odd), &m, protocmp.Transform()); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestWeReadWhatGeneratedCodeWrites(t *testing.T) {
	payload, err := proto.Marshal(asMessage(odd))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(odd, decode(t, payload)); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestUnknownFieldsAreSteppedOver(t *testing.T) {
	payload := append([]byte{0x7a, 2, 1, 2}, encode(odd[:1])...) // field 15, two bytes
	if diff := cmp.Diff(odd[:1], decode(t, payload)); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestTruncationIsMalformed(t *testing.T) {
	payload := encode(odd[:1])
	for n := 1; n < len(payload); n++ {
		var r Reader
		for r.Reset(payload[:n]); r.Next(); {
		}
		if !errors.Is(r.Err(), ErrMalformed) {
			t.Fatalf("%d of %d bytes: %v", n, len(payload), r.Err())
		}
	}
}

func FuzzReaderAgreesWithGeneratedCode(f *testing.F) {
	f.Add(encode(odd))
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		var r Reader
		n := 0
		for r.Reset(payload); r.Next(); n++ {
		}
		var m spillwayv1.RecordBatch
		if err := proto.Unmarshal(payload, &m); err == nil && (r.Err() != nil || n != len(m.Records)) {
			t.Fatalf("generated code reads %d records, we read %d and %v", len(m.Records), n, r.Err())
		}
	})
}

func TestNoAllocationPerRecord(t *testing.T) {
	payload := encode(odd)
	buf := make([]byte, 0, 2*len(payload))
	var r Reader
	r.Reset(payload)
	for r.Next() { // grows the headers slice
	}
	if n := testing.AllocsPerRun(100, func() {
		out := buf
		for r.Reset(payload); r.Next(); {
			out = AppendRecord(out, r.Record())
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkReadAndAppend200Bytes(b *testing.B) {
	rec := Record{TimestampMs: 1_700_000_000_000, Key: []byte("host-0001"), Value: make([]byte, 200), Headers: []Header{{[]byte("app"), []byte("web")}}}
	var payload []byte
	for i := range 1000 {
		rec.OffsetDelta = int64(i)
		payload = AppendRecord(payload, &rec)
	}
	out := make([]byte, 0, len(payload))
	var r Reader
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		out = out[:0]
		for r.Reset(payload); r.Next(); {
			out = AppendRecord(out, r.Record())
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "records/s")
}

// TestHeaderBomb: a header takes two bytes of a payload and 48 of memory. A record may have no
// more than so many, and the room for them is not kept for the records after it.
func TestHeaderBomb(t *testing.T) {
	record := func(headers int) (b []byte) {
		body := bytes.Repeat([]byte{fieldHeaders<<3 | 2, 0}, headers)
		b = protowire.AppendTag(nil, fieldRecords, protowire.BytesType)
		return protowire.AppendBytes(b, body)
	}
	var r Reader
	bomb := record(16 << 20) // a payload of 32 MiB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.Reset(bomb)
	if r.Next() || !errors.Is(r.Err(), ErrMalformed) {
		t.Errorf("%d headers, %v", len(r.Record().Headers), r.Err())
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 80<<20 {
		t.Errorf("%d MiB were allocated", taken>>20)
	}
	r.Reset(append(record(MaxHeaders), record(1)...))
	if !r.Next() || len(r.Record().Headers) != MaxHeaders {
		t.Errorf("as many as there may be: %d headers, %v", len(r.Record().Headers), r.Err())
	}
	if !r.Next() || len(r.Record().Headers) != 1 || cap(r.Record().Headers) > keptHeaders {
		t.Errorf("a record later: %d headers in %d, %v", len(r.Record().Headers), cap(r.Record().Headers), r.Err())
	}
}
