package transform

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// pipeline is a file around the transforms of a delivery.
const pipeline = `
delivery:
  d:
    subscription: q/s
    hdfs: {url: "file:///tmp/x", path: /x}
    transforms:
%s`

func parse(t testing.TB, transforms string) []config.Transform {
	t.Helper()
	c, err := config.Parse("test", fmt.Appendf(nil, pipeline, "      - "+strings.NewReplacer("\n~", "\n        ", "\n", "\n      - ").Replace(transforms)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Delivery["d"].Transforms
}

// show is a record as text: key, value, time and headers.
func show(r *recordbatch.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s|%s|%d", r.Key, r.Value, r.TimestampMs)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, " %s=%s", h.Name, h.Value)
	}
	return b.String()
}

func TestTransforms(t *testing.T) {
	for _, test := range []struct{ transforms, value, want string }{
		{`set_header: {name: a, value: new}`, "v", "k|v|5 b=2 a=new"},
		{`set_header: {name: a, value: new, keep: true}`, "v", "k|v|5 a=1 b=2"},
		{`set_header: {name: c, value: new, keep: true}`, "v", "k|v|5 a=1 b=2 c=new"},
		{`remove_header: {name: a}`, "v", "k|v|5 b=2"},
		{`remove_header: {matching: "^[ab]$"}`, "v", "k|v|5"},
		{`extract_header: {name: h, regex: "id=(\\d+)"}`, "x id=17 y", "k|x id=17 y|5 a=1 b=2 h=17"},
		{`extract_header: {name: h, regex: "(\\w)(\\d)", group: 2}`, "a17", "k|a17|5 a=1 b=2 h=1"},
		{`extract_header: {name: h, regex: "\\d+"}`, "x 17", "k|x 17|5 a=1 b=2 h=17"},
		{`extract_header: {name: h, regex: "id=(\\d+)"}`, "none", "k|none|5 a=1 b=2"},
		{`extract_header: {name: h, from: key}`, "v", "k|v|5 a=1 b=2 h=k"},
		{`extract_header: {name: h, from: "header:a"}`, "v", "k|v|5 a=1 b=2 h=1"},
		{`extract_header: {name: h, from: "json:user.id"}`, `{"user":{"id":7}}`, `k|{"user":{"id":7}}|5 a=1 b=2 h=7`},
		{`extract_header: {name: h, from: "json:user.id"}`, `{"user":`, `k|{"user":|5 a=1 b=2`},
		{`replace_value: {regex: "(\\w+)@\\w+", with: "$1@x"}`, "to bob@home", "k|to bob@x|5 a=1 b=2"},
		{`keep: {regex: "err"}`, "an error", "k|an error|5 a=1 b=2"},
		{`keep: {regex: "err"}`, "fine", "dropped"},
		{`drop: {from: "header:a", equals: "1"}`, "v", "dropped"},
		{`drop: {from: "header:c", equals: "1"}`, "v", "k|v|5 a=1 b=2"},
		{`keep: {from: "json:level", equals: WARN}`, `{"level":"WARN"}`, `k|{"level":"WARN"}|5 a=1 b=2`},
		{`set_time: {from: "json:t"}`, `{"t":1767225600123}`, `k|{"t":1767225600123}|1767225600123 a=1 b=2`},
		{`set_time: {from: "json:t", unit: seconds}`, `{"t":1767225600.5}`, `k|{"t":1767225600.5}|1767225600500 a=1 b=2`},
		{`set_time: {from: "json:t", unit: nanoseconds}`, `{"t":1767225600123456789}`, `k|{"t":1767225600123456789}|1767225600123 a=1 b=2`},
		{`set_time: {from: value, unit: rfc3339}`, "1970-01-01T01:00:01+01:00", "k|1970-01-01T01:00:01+01:00|1000 a=1 b=2"},
		{`set_time: {from: value}`, "soon", `transform 1, set_time: value: "soon" is no number of milliseconds`},
		{`set_time: {from: "header:z"}`, "v", "transform 1, set_time: the record has no header:z"},
		{"set_time: {from: value}\n  on_error: keep", "soon", "k|soon|5 a=1 b=2"},
		{"set_time: {from: value}\n  on_error: drop", "soon", "dropped"},
		{"extract_header: {name: n, regex: \"(\\\\d)\"}\nkeep: {from: \"header:n\", equals: \"3\"}\nremove_header: {name: n}", "x3", "k|x3|5 a=1 b=2"},
		{`decode: flume_event`, "\x02\x02a\x049!\x00\x06abc", "k|abc|5 b=2 a=9!"},
		{`decode: flume_event`, "\x01\x08\x02c\x04yz\x00\x00", "k||5 a=1 b=2 c=yz"}, // a block with its size
		{`decode: flume_event`, "plain text", "transform 1, decode: the value is no Flume event in Avro"},
		{`encode: flume_event`, "v", "k|\x04\x02a\x021\x02b\x022\x00\x02v|5 a=1 b=2"},
		{"encode: flume_event\ndecode: flume_event", "v", "k|v|5 a=1 b=2"},
	} {
		c, err := New(parse(t, strings.ReplaceAll(test.transforms, "\n  ", "\n"+"~")))
		if err != nil {
			t.Fatal(err)
		}
		headers := []recordbatch.Header{{Name: []byte("a"), Value: []byte("1")}, {Name: []byte("b"), Value: []byte("2")}}
		value := []byte(test.value)
		r := &recordbatch.Record{TimestampMs: 5, Key: []byte("k"), Value: value, Headers: headers}
		got := ""
		switch err := c.Apply(r); {
		case errors.Is(err, ErrDropped):
			got = "dropped"
		case err != nil:
			got = err.Error()
		default:
			got = show(r)
		}
		if got != test.want {
			t.Errorf("%s of %q:\ngot  %q\nwant %q", test.transforms, test.value, got, test.want)
		}
		if string(value) != test.value || string(headers[0].Value) != "1" || string(headers[1].Name) != "b" {
			t.Errorf("%s changed what belongs to others: %q, %v", test.transforms, value, headers)
		}
	}
}

// TestNothingIsLeftOver applies a chain to one record after the other.
func TestNothingIsLeftOver(t *testing.T) {
	c, err := New(parse(t, `set_header: {name: x, value: "1"}`))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r := &recordbatch.Record{}
		if err := c.Apply(r); err != nil || len(r.Headers) != 1 {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func FuzzFlumeEvent(f *testing.F) {
	f.Add([]byte("\x02\x02a\x049!\x00\x06abc"))
	f.Add([]byte("\x01\x08\x02c\x04yz\x00\x00"))
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, value []byte) {
		r := &recordbatch.Record{Value: bytes.Clone(value)}
		if err := decodeFlumeEvent(nil, r); err != nil {
			if !bytes.Equal(r.Value, value) || r.Headers != nil {
				t.Errorf("after %v the record is another one: %v", err, r)
			}
			return
		}
		want := show(r)
		if err := encodeFlumeEvent(nil, r); err != nil {
			t.Fatal(err)
		}
		r.Headers = nil
		if err := decodeFlumeEvent(nil, r); err != nil || show(r) != want {
			t.Errorf("%q came back as %q, %v", want, show(r), err)
		}
	})
}

func BenchmarkChain(b *testing.B) {
	c, err := New(parse(b, "extract_header: {name: h, from: \"json:user.id\"}\ndrop: {from: \"header:h\", equals: \"8\"}"))
	if err != nil {
		b.Fatal(err)
	}
	value := []byte(`{"user":{"id":7},"text":"` + strings.Repeat("x", 150) + `"}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		r := recordbatch.Record{Value: value}
		if err := c.Apply(&r); err != nil {
			b.Fatal(err)
		}
	}
}
