package tracing

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func headers(pairs ...string) (all []recordbatch.Header) {
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, recordbatch.Header{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return all
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestParse reads what W3C Trace Context allows, and nothing else.
func TestParse(t *testing.T) {
	for text, want := range map[string]bool{
		parent: true,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00":      true,
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more": true, // of a later version
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more":  false,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more": false,
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":      false,
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":      false,
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01":      false,
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01":      false,
		"00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01":      false,
		"00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01":      false,
		"":                     false,
		parent[:len(parent)-1]: false,
	} {
		c, ok := parse([]byte(text))
		if ok != want || ok && (c.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || c.SpanID().String() != "b7ad6b7169203331" || !c.IsRemote()) {
			t.Errorf("%q: %v, %v", text, c, ok)
		}
	}
}

// TestLinks are to sampled traces, each once, and not more than a span may have.
func TestLinks(t *testing.T) {
	tracer := &Tracer{}
	var l Links
	for range 3 {
		tracer.Note(&l, headers("other", "x", "traceparent", parent, "tracestate", "vendor=1"))
	}
	tracer.Note(&l, headers("traceparent", strings.TrimSuffix(parent, "1")+"0"))
	tracer.Note(&l, headers("traceparent", "nonsense"))
	tracer.Note(&l, nil)
	if len(l.all) != 1 || l.all[0].SpanContext.TraceState().Get("vendor") != "1" {
		t.Fatalf("%v", l.all)
	}
	var more Links
	for i := range maxLinks + 2 {
		tracer.Note(&more, headers("traceparent", fmt.Sprintf("00-%032x-%016x-01", i+1, i+1), "tracestate", "==="))
	}
	l.Join(&more)
	if len(l.all) != maxLinks || l.leftOut != 3 {
		t.Errorf("%d links, %d left out", len(l.all), l.leftOut)
	}
	if l.Reset(); len(l.all) != 0 || l.leftOut != 0 {
		t.Error("a reset keeps something")
	}
}

// TestOffCostsNothing makes no span, looks at no header and allocates nothing without a tracer.
func TestOffCostsNothing(t *testing.T) {
	var tracer *Tracer
	var l Links
	record := headers("traceparent", parent)
	allocs := testing.AllocsPerRun(100, func() {
		tracer.Note(&l, record)
		s := tracer.Start("x", time.Time{}, &l)
		s.Event("y")
		s.End(nil)
	})
	if allocs != 0 || len(l.all) != 0 {
		t.Errorf("%v allocations, %v", allocs, l.all)
	}
}

// BenchmarkNote is what a record costs, with and without a tracer.
func BenchmarkNote(b *testing.B) {
	record := headers("id", "4711", "traceparent", parent)
	for name, tracer := range map[string]*Tracer{"off": nil, "on": {}} {
		b.Run(name, func(b *testing.B) {
			var l Links
			b.ReportAllocs()
			for b.Loop() {
				tracer.Note(&l, record)
			}
		})
	}
}

// TestWanted exports only when the environment asks, and says what it cannot do.
func TestWanted(t *testing.T) {
	for _, test := range []struct {
		env   string
		want  bool
		wrong string
	}{
		{"", false, ""},
		{"OTEL_SERVICE_NAME=x", false, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://collector:4317", true, ""},
		{"OTEL_TRACES_EXPORTER=otlp", true, ""},
		{"OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", false, ""},
		{"OTEL_SDK_DISABLED=true OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317", false, ""},
		{"OTEL_TRACES_EXPORTER=zipkin", false, "want otlp, or none"},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", false, "want grpc"},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", true, ""},
	} {
		env := make(map[string]string)
		for _, pair := range strings.Fields(test.env) {
			name, value, _ := strings.Cut(pair, "=")
			env[name] = value
		}
		on, err := wanted(func(name string) string { return env[name] })
		if on != test.want || (err != nil) != (test.wrong != "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%s: %v, %v", test.env, on, err)
		}
	}
}
