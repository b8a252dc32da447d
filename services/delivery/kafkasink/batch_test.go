package kafkasink

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func all(n int) []int32 {
	chosen := make([]int32, n)
	for i := range chosen {
		chosen[i] = int32(i)
	}
	return chosen
}

// decode reads a batch with kafka-go's own decoder, which checks the CRC.
func decode(t *testing.T, b []byte) []record {
	t.Helper()
	var set protocol.RecordSet
	if _, err := set.ReadFrom(bytes.NewReader(b)); err != nil {
		t.Fatalf("kafka-go cannot read the batch: %v", err)
	}
	var records []record
	for {
		r, err := set.Records.ReadRecord()
		if err != nil {
			return records
		}
		key, err := protocol.ReadAll(r.Key)
		if err != nil {
			t.Fatal(err)
		}
		value, err := protocol.ReadAll(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		out := record{offset: r.Offset, timestamp: r.Time.UnixMilli(), key: key, value: value}
		for _, h := range r.Headers {
			out.headers = append(out.headers, recordbatch.Header{Name: []byte(h.Key), Value: h.Value})
		}
		records = append(records, out)
	}
}

func same(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func TestBatchIsReadByKafkaGo(t *testing.T) {
	want := []record{
		{timestamp: 1_700_000_000_000, key: []byte("k"), value: []byte("v")},
		{timestamp: 1_700_000_000_500, key: nil, value: []byte{}},
		{timestamp: 1_699_999_999_000, key: []byte{}, value: nil},
		{timestamp: 1_700_000_000_000, value: bytes.Repeat([]byte("x"), 70_000), headers: []recordbatch.Header{
			{Name: []byte("a"), Value: []byte("1")}, {Name: []byte("a"), Value: nil}, {Name: []byte{}, Value: []byte{}}}},
	}
	for compression := compress.None; compression <= compress.Zstd; compression++ {
		t.Run(compression.String(), func(t *testing.T) {
			e := encoder{compression: compression}
			b, taken, _, err := e.append([]byte("before"), want, all(len(want)), 100, maxBatchBytes, noStamp)
			if err != nil || taken != len(want) {
				t.Fatalf("took %d records: %v", taken, err)
			}
			got := decode(t, b[len("before"):])
			if len(got) != len(want) {
				t.Fatalf("read %d records, want %d", len(got), len(want))
			}
			for i, w := range want {
				g := got[i]
				if g.offset != int64(i) || g.timestamp != w.timestamp || !same(g.key, w.key) || !same(g.value, w.value) || len(g.headers) != len(w.headers) {
					t.Errorf("record %d: got %v %v %q %q, want %v %q %q", i, g.offset, g.timestamp, g.key, g.value, w.timestamp, w.key, w.value)
				}
			}
		})
	}
}

func TestBatchKeepsToItsBounds(t *testing.T) {
	var records []record
	for i := range 100 {
		records = append(records, record{timestamp: int64(i), value: bytes.Repeat([]byte("x"), 100)})
	}
	var e encoder
	for _, limit := range []int{1000, 1001, 1100, 5000} {
		b, taken, size, err := e.append(nil, records, all(100), 1000, limit, noStamp)
		if err != nil {
			t.Fatal(err)
		}
		if size != len(b) || size > limit || size < limit-120 {
			t.Errorf("limit %d: %d records in %d bytes, said to be %d", limit, taken, len(b), size)
		}
	}
	if _, taken, _, _ := e.append(nil, records, all(100), 7, maxBatchBytes, noStamp); taken != 7 {
		t.Errorf("took %d records, want 7", taken)
	}
	if _, taken, _, _ := e.append(nil, records, all(100), 7, 1, noStamp); taken != 1 {
		t.Errorf("took %d records that are too large, want the first alone", taken)
	}
}

func TestMurmur2(t *testing.T) {
	// From Kafka's UtilsTest.testMurmur2, as signed numbers there.
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string":                       -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2([]byte(key))); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestTemplate(t *testing.T) {
	headers := []recordbatch.Header{{Name: []byte("env"), Value: []byte("prod")}, {Name: []byte("null")}, {Name: []byte("bad"), Value: []byte("a b")}, {Name: []byte("env"), Value: []byte("second")}}
	for _, c := range []struct{ template, want, problem string }{
		{"%{topic}", "src", ""},
		{"x-%{topic}.%{env}", "x-src.prod", ""},
		{"fixed", "fixed", ""},
		{"%{none}", "", `no target topic: the record has no header "none"`},
		{"%{null}", "", `no target topic: the record has no header "null"`},
		{"%{bad}", "", `no target topic: Kafka allows letters, digits, '.', '_' and '-' in names, not "a b"`},
		{".", "", `no target topic: Kafka does not allow the name "."`},
		{fmt.Sprintf("%0250d", 0), "", "no target topic: its name would have 250 bytes, Kafka allows 249"},
	} {
		tpl, err := parseTemplate(c.template)
		if err != nil {
			t.Fatal(err)
		}
		name, problem := tpl.append(nil, "src", headers)
		if problem != c.problem || problem == "" && string(name) != c.want {
			t.Errorf("%q: %q, %q; want %q, %q", c.template, name, problem, c.want, c.problem)
		}
	}
	for _, bad := range []string{"", "%{", "%{}", "a%{b"} {
		if _, err := parseTemplate(bad); err == nil {
			t.Errorf("template %q is accepted", bad)
		}
	}
}

// BenchmarkBatch encodes a batch of 1,000 records of 500 bytes.
func BenchmarkBatch(b *testing.B) {
	var records []record
	for i := range 1000 {
		records = append(records, record{timestamp: int64(i), key: []byte("key-123456"), value: bytes.Repeat([]byte("x"), 500),
			headers: []recordbatch.Header{{Name: []byte("name"), Value: []byte("value")}}})
	}
	chosen := all(len(records))
	var e encoder
	buffer, _, _, err := e.append(nil, records, chosen, len(records), maxBatchBytes, noStamp)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(buffer)))
	b.ReportAllocs()
	for b.Loop() {
		if buffer, _, _, err = e.append(buffer[:0], records, chosen, len(records), maxBatchBytes, noStamp); err != nil {
			b.Fatal(err)
		}
	}
}
