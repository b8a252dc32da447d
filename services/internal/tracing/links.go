package tracing

import (
	"encoding/hex"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// maxLinks is how many a span has at most: the SDK's own limit.
const maxLinks = 128

// Links are those of a batch to the traces of its records, without doubles. The zero value has
// none.
type Links struct {
	all     []trace.Link
	leftOut int // records, at least
}

// Note adds the trace that a record carries in its headers, if it has one that is sampled.
func (t *Tracer) Note(l *Links, headers []recordbatch.Header) {
	if t == nil {
		return
	}
	for i := range headers {
		if string(headers[i].Name) == "traceparent" {
			if c, ok := parse(headers[i].Value); ok && c.IsSampled() && l.wants(c) {
				l.all = append(l.all, trace.Link{SpanContext: c.WithTraceState(state(headers))})
			}
			return
		}
	}
}

// Join adds the links of another batch.
func (l *Links) Join(o *Links) {
	for _, x := range o.all {
		if l.wants(x.SpanContext) {
			l.all = append(l.all, x)
		}
	}
	l.leftOut += o.leftOut
}

// Reset forgets all.
func (l *Links) Reset() { *l = Links{} }

// wants says whether there is to be a link to a span: there is none yet, and room.
func (l *Links) wants(c trace.SpanContext) bool {
	for i := len(l.all) - 1; i >= 0; i-- { // the same ones are next to each other, mostly
		if x := l.all[i].SpanContext; x.SpanID() == c.SpanID() && x.TraceID() == c.TraceID() {
			return false
		}
	}
	if len(l.all) >= maxLinks {
		l.leftOut++
		return false
	}
	return true
}

// state is what a vendor added to the trace; what is malformed counts as absent.
func state(headers []recordbatch.Header) trace.TraceState {
	i := slices.IndexFunc(headers, func(h recordbatch.Header) bool { return string(h.Name) == "tracestate" })
	if i < 0 {
		return trace.TraceState{}
	}
	s, err := trace.ParseTraceState(string(headers[i].Value))
	if err != nil {
		return trace.TraceState{}
	}
	return s
}

// parse reads a traceparent: version, trace, span and flags. Of later versions than 00 only these
// are known.
func parse(b []byte) (trace.SpanContext, bool) {
	const length = len("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	if len(b) < length || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return trace.SpanContext{}, false
	}
	var version, flags [1]byte
	var id trace.TraceID
	var span trace.SpanID
	for _, part := range []struct {
		to, from []byte
	}{{version[:], b[:2]}, {id[:], b[3:35]}, {span[:], b[36:52]}, {flags[:], b[53:55]}} {
		for _, c := range part.from {
			if c >= 'A' && c <= 'F' { // upper case is not allowed
				return trace.SpanContext{}, false
			}
		}
		if _, err := hex.Decode(part.to, part.from); err != nil {
			return trace.SpanContext{}, false
		}
	}
	switch {
	case version[0] == 0xff, version[0] == 0 && len(b) != length, len(b) > length && b[length] != '-':
		return trace.SpanContext{}, false
	}
	c := trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true})
	return c, c.IsValid()
}

// lastTime is when something was done last.
type lastTime struct{ at atomic.Int64 }

// longAgo says whether that is longer ago than d, and notes that it is done now.
func (l *lastTime) longAgo(d time.Duration) bool {
	now, last := time.Now().UnixNano(), l.at.Load()
	return now-last >= int64(d) && l.at.CompareAndSwap(last, now)
}
