package filesink

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// flumeVector is what Flume's BucketPath yields. testdata/bucketpath/generate makes them.
type flumeVector struct {
	Template string
	Zone     string
	Unit     string // of rounding; empty for none
	Value    int64
	Now      int64 // ms; 0 for the time of the record
	Headers  map[string]string
	Yields   string
}

// unlikeFlume is what a header's value yields where Flume has it as it is: so no record leads to
// another directory, and every name is one for every file system. (On HDFS a colon is like these,
// and where they are all of a segment "." and ".."; see TestPaths.)
var unlikeFlume = map[string]string{
	"a/b":         "a%2Fb",
	"../../etc":   "..%2F..%2Fetc",
	"100%":        "100%25",
	"%Y":          "%25Y",
	"tab\tline\n": "tab%09line%0A",
	"\x00":        "%00",
}

// TestBucketPath compares with Flume's own class. What else differs is documented: escapes that
// Flume takes for text or for nothing (%Q, %{a b}, a single %) are refused at start, but for %Z,
// the zone's name; there is always a time, for Kafka has one where the header is missing; and
// none is before 1970.
func TestBucketPath(t *testing.T) {
	vectors, unlike, failed := 0, 0, 0
	for v := range flumeVectors(t) {
		vectors++
		want, differs := unlikeFlume[v.Yields]
		if differs = differs && v.Template == "%{tenant}"; differs {
			unlike++
		} else {
			want = v.Yields
		}
		if got := v.ours(t); got != want {
			t.Errorf("%+v: ours is %q", v, got)
			if failed++; failed == 20 {
				t.Fatal("and more")
			}
		}
	}
	if vectors < 4000 || unlike != len(unlikeFlume) {
		t.Errorf("there are %d vectors, of which %d differ from Flume; want 4000 and %d", vectors, unlike, len(unlikeFlume))
	}
}

// flumeVectors reads the file.
func flumeVectors(t *testing.T) func(yield func(*flumeVector) bool) {
	return func(yield func(*flumeVector) bool) {
		f, err := os.Open("testdata/bucketpath/vectors.jsonl.gz")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for d := json.NewDecoder(lines); ; {
			var v flumeVector
			if err := d.Decode(&v); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if !yield(&v) {
				return
			}
		}
	}
}

// ours is what the layout makes of the record that has the event's headers as Flume's Kafka
// source sets them.
func (v *flumeVector) ours(t *testing.T) string {
	t.Helper()
	cfg := &config.HDFS{URL: "file:///x", Path: "/" + v.Template, TimeZone: v.Zone, TimeFrom: "record", Round: v.Unit != "", RoundUnit: v.Unit, RoundValue: v.Value}
	if v.Now != 0 {
		cfg.TimeFrom = "local"
	}
	l, err := newLayout(cfg, "", testHost)
	if err != nil {
		t.Fatalf("%+v: %v", v, err)
	}
	l.now = func() time.Time { return time.UnixMilli(v.Now) }
	number := func(name string) int64 {
		n, err := strconv.ParseInt(v.Headers[name], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	r := &recordbatch.Record{TimestampMs: number("timestamp")}
	for name, value := range v.Headers {
		switch name {
		case "topic", "partition", "offset", "timestamp":
		case "key":
			r.Key = []byte(value)
		default:
			r.Headers = append(r.Headers, recordbatch.Header{Name: []byte(name), Value: []byte(value)})
		}
	}
	source := &spillwayv1.SourcePartition{Topic: v.Headers["topic"], Partition: int32(number("partition"))}
	return l.text(l.dir, "/", l.item(source, number("offset"), r))[1:]
}

// TestTimeOfRecords is where the time of the escapes comes from.
func TestTimeOfRecords(t *testing.T) {
	for _, test := range []struct{ from, header, want string }{
		{"record", "3600000", "1970-01-01 01"}, {"record", "no number", "1970-01-01 02"}, {"record", "", "1970-01-01 02"},
		{"record", "-5", "1970-01-01 00"}, {"kafka", "3600000", "1970-01-01 02"}, {"local", "3600000", "1970-01-01 03"},
	} {
		l, err := newLayout(&config.HDFS{URL: "file:///x", Path: "/%Y-%m-%d %H", TimeZone: "UTC", TimeFrom: test.from}, "", testHost)
		if err != nil {
			t.Fatal(err)
		}
		l.now = func() time.Time { return time.UnixMilli(3 * 3_600_000) }
		r := &recordbatch.Record{TimestampMs: 2 * 3_600_000}
		if test.header != "" {
			r.Headers = []recordbatch.Header{{Name: []byte("timestamp"), Value: []byte(test.header)}}
		}
		it := l.item(&spillwayv1.SourcePartition{}, 0, r)
		if dir, _ := l.render(it); dir != "/"+test.want {
			t.Errorf("time from %s with header %q is %s, want %s", test.from, test.header, dir, test.want)
		}
	}
}

// TestKeyDecides renders records whose keys must differ, since what they yield does.
func TestKeyDecides(t *testing.T) {
	l := newTestLayout(t, "file:///data", "/%{key}-%{timestamp}-%{offset}-%{a}", "")
	header := func(name, value string) recordbatch.Header {
		return recordbatch.Header{Name: []byte(name), Value: []byte(value)}
	}
	seen := make(map[string]string)
	for _, r := range []recordbatch.Record{
		{}, {Key: []byte{}, Headers: []recordbatch.Header{header("key", "h")}}, {Headers: []recordbatch.Header{header("key", "h")}},
		{Key: []byte("k")}, {TimestampMs: 1}, {Headers: []recordbatch.Header{header("timestamp", "2")}},
		{Headers: []recordbatch.Header{header("offset", "2")}}, {Headers: []recordbatch.Header{header("a", "2")}}, {Headers: []recordbatch.Header{header("timestamp", "")}},
	} {
		for offset := range int64(2) {
			it := l.item(&spillwayv1.SourcePartition{}, offset, &r)
			dir, _ := l.render(it)
			key := string(l.appendKey(nil, it))
			if other, there := seen[key]; there && other != dir {
				t.Errorf("%s and %s have the same key", dir, other)
			}
			seen[key] = dir
		}
	}
}
