package serializer

import (
	"bytes"
	stdbzip2 "compress/bzip2"
	stdgzip "compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hamba/avro/v2/ocf"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

var source = &spillwayv1.SourcePartition{Cluster: "c", Topic: "orders", Partition: 3}

func newFormat(t testing.TB, name, compression string) Format {
	t.Helper()
	f, err := New(&config.HDFS{Serializer: name, Compression: compression, SequenceValue: "bytes", AppendNewline: true})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// odd are records at the edges of what a record may be.
func odd() []recordbatch.Record {
	headers := func(pairs ...string) (h []recordbatch.Header) {
		for i := 0; i < len(pairs); i += 2 {
			h = append(h, recordbatch.Header{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
		}
		return h
	}
	var many []recordbatch.Header
	for i := range 2 * fewHeaders {
		many = append(many, headers(fmt.Sprintf("h%d", i%50), fmt.Sprint(i))...)
	}
	return []recordbatch.Record{
		{TimestampMs: 1772690889010, Key: []byte("k"), Value: []byte("plain"), Headers: headers("a", "1", "b", "2")},
		{TimestampMs: -1},
		{Key: []byte{}, Value: []byte{}, Headers: []recordbatch.Header{{Name: []byte{}, Value: nil}}},
		{Value: []byte("\xff\x00"), Key: []byte{0xfe}, Headers: headers("\xff", "\xfe")},
		{Value: []byte("\"\\\b\f\n\r\t\x01\u2028é"), Headers: headers("same", "first", "same", "second", "key", "own")},
		{Value: []byte("event"), Key: []byte("k"), Headers: headers("timestamp", "17", "topic", "t", "partition", "p", "offset", "o", "key", "own")},
		{Value: bytes.Repeat([]byte("long "), blockBytes/4), Headers: many},
	}
}

// write makes a file of three commits, each of all records some times, and returns the records in
// it.
func write(t testing.TB, f Format, records []recordbatch.Record) (file []byte, want []recordbatch.Record) {
	t.Helper()
	sync := NewSync()
	var spare []byte
	for commit := range 3 {
		var c Chunk
		for range 1 + 2*commit {
			for i := range records {
				c.Add(f, Position{Source: source, Offset: int64(len(want))}, &records[i])
				want = append(want, records[i])
			}
		}
		var err error
		if spare, err = f.Seal(&c, File{Empty: len(file) == 0, Sync: sync}, spare[:0]); err != nil {
			t.Fatal(err)
		}
		file = append(file, c.Data...)
	}
	return file, want
}

// decompress reads what Hadoop would take for a stream of that extension.
func decompress(t testing.TB, ext string, file []byte) []byte {
	t.Helper()
	var r io.Reader
	var err error
	switch ext {
	case "":
		return file
	case ".gz":
		r, err = stdgzip.NewReader(bytes.NewReader(file))
	case ".bz2":
		r = stdbzip2.NewReader(bytes.NewReader(file))
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(file)); err == nil {
			defer z.Close()
			r = z
		}
	case ".snappy":
		return unframe(t, file, func(b []byte, _ int) ([]byte, error) { return snappy.Decode(nil, b) })
	case ".lz4":
		return unframe(t, file, func(b []byte, size int) ([]byte, error) {
			out := make([]byte, size)
			n, err := lz4.UncompressBlock(b, out)
			return out[:n], err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unframe(t testing.TB, file []byte, block func(b []byte, size int) ([]byte, error)) (all []byte) {
	t.Helper()
	for len(file) > 0 {
		size, packed := int(binary.BigEndian.Uint32(file)), int(binary.BigEndian.Uint32(file[4:]))
		out, err := block(file[8:8+packed], size)
		if err != nil || len(out) != size {
			t.Fatalf("a block yields %d bytes of %d, and %v", len(out), size, err)
		}
		all = append(all, out...)
		file = file[8+packed:]
	}
	return all
}

func TestStreams(t *testing.T) {
	race.Apart(t)
	records := odd()
	for _, name := range []string{"text", "header_and_text", "json"} {
		plain, _ := write(t, newFormat(t, name, "none"), records)
		for compression, ext := range map[string]string{"none": "", "gzip": ".gz", "zstd": ".zst", "snappy": ".snappy", "lz4": ".lz4", "bzip2": ".bz2"} {
			t.Run(name+"/"+compression, func(t *testing.T) {
				f := newFormat(t, name, compression)
				if f.Extension() != ext {
					t.Errorf("the extension is %q, want %q", f.Extension(), ext)
				}
				file, _ := write(t, f, records)
				if got := decompress(t, ext, file); !bytes.Equal(got, plain) {
					t.Errorf("reading it yields %d bytes, others than the %d written", len(got), len(plain))
				}
				if compression != "none" && len(file) > len(plain)/2 {
					t.Errorf("%d bytes were compressed to %d", len(plain), len(file))
				}
			})
		}
	}
}

func TestText(t *testing.T) {
	records := odd()
	var with, without []byte
	for i := range records {
		with = text{newline: true}.AppendRecord(with, Position{}, &records[i])
		without = text{}.AppendRecord(without, Position{}, &records[i])
	}
	if want := "plain\n\n\n\xff\x00\n"; !strings.HasPrefix(string(with), want) {
		t.Errorf("with line feeds: %.20q, want %q", with, want)
	}
	if want := "plain\xff\x00"; !strings.HasPrefix(string(without), want) {
		t.Errorf("without: %.20q, want %q", without, want)
	}
}

func TestHeaderAndText(t *testing.T) {
	for i, want := range []string{
		"{timestamp=1772690889010, topic=orders, partition=3, offset=0, key=k, a=1, b=2} plain\n",
		"{timestamp=-1, topic=orders, partition=3, offset=1} \n",
		"{timestamp=0, topic=orders, partition=3, offset=2, key=, =} \n",
		"{timestamp=0, topic=orders, partition=3, offset=3, key=\xfe, \xff=\xfe} \xff\x00\n",
		"{timestamp=0, topic=orders, partition=3, offset=4, same=first, key=own} \"\\\b\f\n\r\t\x01\u2028é\n",
		"{key=k, timestamp=17, topic=t, partition=p, offset=o} event\n",
	} {
		r := odd()[i]
		if got := (headerAndText{newline: true}).AppendRecord(nil, Position{Source: source, Offset: int64(i)}, &r); string(got) != want {
			t.Errorf("record %d is %q, want %q", i, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	race.Apart(t)
	if got, want := string((jsonLines{}).AppendRecord(nil, Position{Source: source, Offset: 17}, &odd()[3])),
		`{"cluster":"c","topic":"orders","partition":3,"offset":17,"timestamp":0,"key_base64":"/g==","value_base64":"/wA=","headers":[{"name_base64":"/w==","value_base64":"/g=="}]}`+"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	file, want := write(t, newFormat(t, "json", "none"), odd())
	offset := int64(0)
	for line := range bytes.Lines(file) {
		checkJSON(t, line, offset, &want[offset])
		offset++
	}
	if int(offset) != len(want) {
		t.Errorf("%d lines, want %d", offset, len(want))
	}
}

// checkJSON reads a line with the standard library and compares it with what was written.
func checkJSON(t testing.TB, line []byte, offset int64, want *recordbatch.Record) {
	t.Helper()
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	got := recordbatch.Record{Key: jsonBytes(t, m, "key"), Value: jsonBytes(t, m, "value")}
	for _, h := range m["headers"].([]any) {
		h := h.(map[string]any)
		got.Headers = append(got.Headers, recordbatch.Header{Name: jsonBytes(t, h, "name"), Value: jsonBytes(t, h, "value")})
	}
	got.TimestampMs, _ = m["timestamp"].(json.Number).Int64()
	if diff := cmp.Diff(&got, want); diff != "" {
		t.Errorf("%s", diff)
	}
	if m["offset"].(json.Number).String() != fmt.Sprint(offset) || m["topic"] != "orders" || m["cluster"] != "c" || m["partition"].(json.Number).String() != "3" {
		t.Errorf("the source position is wrong: %s", line)
	}
}

func jsonBytes(t testing.TB, m map[string]any, name string) []byte {
	t.Helper()
	if encoded, ok := m[name+"_base64"].(string); ok {
		b, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	switch v := m[name].(type) {
	case string:
		return []byte(v)
	case nil:
		if _, there := m[name]; !there {
			t.Errorf("no member %s", name)
		}
	}
	return nil
}

// event is what an independent library reads from avro_event.
type event struct {
	Headers map[string]string `avro:"headers"`
	Body    []byte            `avro:"body"`
}

func readAvro(t testing.TB, file []byte) (events []event) {
	t.Helper()
	d, err := ocf.NewDecoder(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(d.Metadata()["avro.schema"]); s != eventSchema {
		t.Errorf("the schema is %s", s)
	}
	for d.HasNext() {
		var e event
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	if err := d.Error(); err != nil {
		t.Fatal(err)
	}
	return events
}

func TestAvroEvent(t *testing.T) {
	headersOf := []map[string]string{
		{"timestamp": "1772690889010", "topic": "orders", "partition": "3", "key": "k", "a": "1", "b": "2"},
		{"timestamp": "-1", "topic": "orders", "partition": "3"},
		{"timestamp": "0", "topic": "orders", "partition": "3", "key": "", "": ""},
		{"timestamp": "0", "topic": "orders", "partition": "3", "key": "\uFFFD", "\uFFFD": "\uFFFD"},
		{"timestamp": "0", "topic": "orders", "partition": "3", "same": "first", "key": "own"},
		{"timestamp": "17", "topic": "t", "partition": "p", "offset": "o", "key": "k"},
		{"timestamp": "0", "topic": "orders", "partition": "3"},
	}
	for i := range 50 {
		headersOf[6][fmt.Sprintf("h%d", i)] = fmt.Sprint(i)
	}
	// Not bzip2, which hamba/avro does not read; the test with Hadoop's reader has it.
	for _, compression := range []string{"none", "deflate", "snappy", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			file, want := write(t, newFormat(t, "avro_event", compression), odd())
			got := readAvro(t, file)
			if len(got) != len(want) {
				t.Fatalf("%d events, want %d", len(got), len(want))
			}
			for i, e := range got {
				headers := headersOf[i%len(headersOf)]
				if i%len(headersOf) != 5 {
					headers["offset"] = fmt.Sprint(i)
				}
				if diff := cmp.Diff(e.Headers, headers); diff != "" {
					t.Errorf("event %d: %s", i, diff)
				}
				if !bytes.Equal(e.Body, want[i].Value) {
					t.Errorf("event %d has another body than was written", i)
				}
			}
		})
	}
}

// TestAvroBlocks looks at the container itself: not all in one block, none of them needlessly
// small.
func TestAvroBlocks(t *testing.T) {
	f := newFormat(t, "avro_event", "none")
	var c Chunk
	r := recordbatch.Record{Value: make([]byte, 1000)}
	for i := range 1000 {
		c.Add(f, Position{Source: source, Offset: int64(i)}, &r)
	}
	if n := len(c.blocks); n < 4 || n > 5 {
		t.Errorf("1 MB is cut into %d blocks of %d", n, blockBytes)
	}
	s := NewSync()
	if _, err := f.Seal(&c, File{Sync: s}, nil); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(c.Data, s[:]); n != len(c.blocks) {
		t.Errorf("%d sync markers after %d blocks", n, len(c.blocks))
	}
	if s == NewSync() {
		t.Error("two files have the same marker")
	}
}

// TestToUTF8 has what Java's decoder makes of the same bytes, but for a surrogate, ED A0 80,
// which is one for Java.
func TestToUTF8(t *testing.T) {
	for in, want := range map[string]string{
		"a\xffb": "a\uFFFDb", "\xff\xfe": "\uFFFD\uFFFD", "\xe2\x82": "\uFFFD", "\xe2\x82x": "\uFFFDx", "\xf0\x9f\x98\xe2\x82\xac": "\uFFFD€",
		"\xc0\xaf": "\uFFFD\uFFFD", "\xed\xa0\x80": "\uFFFD\uFFFD\uFFFD", "\xf4\x90\x80\x80": "\uFFFD\uFFFD\uFFFD\uFFFD", "\ufeffx": "\ufeffx",
	} {
		if got := string(toUTF8([]byte(in))); got != want {
			t.Errorf("%q yields %q, want %q", in, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []config.HDFS{
		{Serializer: "csv", Compression: "none"}, {Serializer: "text", Compression: "deflate"}, {Serializer: "avro_event", Compression: "lz4"},
		{Serializer: "sequence_file", Compression: "none", SequenceValue: "Text"}, {Serializer: "sequence_file", Compression: "lzo", SequenceValue: "text"},
	} {
		if _, err := New(&cfg); err == nil {
			t.Errorf("%s with %s is no error", cfg.Serializer, cfg.Compression)
		}
	}
}

// FuzzRecord looks for a record that json or avro_event does not bring back.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("k"), []byte("v"), []byte("n"), []byte("h"), int64(5))
	f.Add([]byte{0xff}, []byte("\"\\\u2028\x00"), []byte{}, []byte{0xed, 0xa0, 0x80}, int64(-5))
	f.Fuzz(func(t *testing.T, key, value, name, header []byte, ms int64) {
		nonNil := func(b []byte) []byte { return append([]byte{}, b...) }
		r := recordbatch.Record{TimestampMs: ms, Key: nonNil(key), Value: nonNil(value), Headers: []recordbatch.Header{{Name: nonNil(name), Value: nonNil(header)}}}
		checkJSON(t, (jsonLines{}).AppendRecord(nil, Position{Source: source, Offset: 9}, &r), 9, &r)

		avro := newFormat(t, "avro_event", "none")
		var c Chunk
		c.Add(avro, Position{Source: source}, &r)
		if _, err := avro.Seal(&c, File{Empty: true}, nil); err != nil {
			t.Fatal(err)
		}
		events := readAvro(t, c.Data)
		if len(events) != 1 || !bytes.Equal(events[0].Body, value) || events[0].Headers["key"] != string(toUTF8(key)) {
			t.Errorf("read %q", events)
		}
	})
}

// BenchmarkSerialize writes commits of 8 MiB, of records of 200 bytes with two headers.
func BenchmarkSerialize(b *testing.B) {
	for _, f := range [...]struct{ name, compression string }{
		{"text", "none"}, {"text", "gzip"}, {"text", "zstd"}, {"text", "snappy"}, {"text", "lz4"}, {"text", "bzip2"},
		{"header_and_text", "none"}, {"json", "none"},
		{"sequence_file", "none"}, {"sequence_file", "snappy"}, {"parquet", "none"}, {"parquet", "snappy"}, {"parquet", "zstd"}, {"avro_event", "none"}, {"avro_event", "deflate"}, {"avro_event", "snappy"}, {"avro_event", "zstd"}, {"avro_event", "bzip2"},
	} {
		b.Run(f.name+"/"+f.compression, func(b *testing.B) {
			format := newFormat(b, f.name, f.compression)
			value := bytes.Repeat([]byte("0123456789 some text; "), 10)[:200]
			r := recordbatch.Record{TimestampMs: 1772690889010, Key: []byte("key"), Value: value, Headers: []recordbatch.Header{
				{Name: []byte("host"), Value: []byte("node-17")}, {Name: []byte("level"), Value: []byte("info")}}}
			var c Chunk
			var spare []byte
			b.ReportAllocs()
			b.SetBytes(int64(len(value)))
			for i := 0; b.Loop(); i++ {
				binary.BigEndian.PutUint64(value, uint64(i)*0x9e3779b97f4a7c15)
				c.Add(format, Position{Source: source, Offset: int64(i)}, &r)
				if len(c.Data) < 8<<20 {
					continue
				}
				var err error
				if spare, err = format.Seal(&c, File{Empty: true}, spare[:0]); err != nil {
					b.Fatal(err)
				}
				c = Chunk{Data: c.Data[:0], blocks: c.blocks[:0]}
			}
		})
	}
}
