package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// receiver takes traces as a collector does.
type receiver struct {
	collectorpb.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string][]*tracepb.Span // by the service that made them
}

func (r *receiver) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range request.ResourceSpans {
		service := ""
		for _, a := range resource.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range resource.ScopeSpans {
			r.spans[service] = append(r.spans[service], scope.Spans...)
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// of returns the spans of a service.
func (r *receiver) of(service string) []*tracepb.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans[service])
}

// TestTraces has a pipeline send its traces to a collector: those that records are part of, by
// their headers, are linked to the batch that was appended and to the commit that delivered it.
func TestTraces(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got, server := &receiver{spans: make(map[string][]*tracepb.Span)}, grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(server, got)
	go func() { _ = server.Serve(lis) }() // until it is stopped
	t.Cleanup(server.Stop)

	source := kafkaOf(t, kfake.SeedTopics(1, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 100ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}}}}}
delivery: {files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files")))
	c := newChild(t, "run", "-c", file)
	c.cmd.Env = append(c.cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+lis.Addr().String(), "OTEL_BSP_SCHEDULE_DELAY=100")
	c.run()
	c.wait("joined the group")
	trace := func(i int) string { return fmt.Sprintf("%032x", 0xabc0+i) }
	const records = 10
	for i := range records {
		r := &kgo.Record{Value: fmt.Append(nil, i)}
		if i%2 == 0 {
			r.Headers = []kgo.RecordHeader{{Key: "traceparent", Value: fmt.Appendf(nil, "00-%s-%016x-01", trace(i), i+1)}}
		}
		client.Produce(t.Context(), r, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// linked returns the traces that spans of that name are linked to, and checks them.
	linked := func(service, name string) (traces []string) {
		for _, s := range got.of(service) {
			if s.Name != name {
				t.Errorf("%s has a span %s", service, s.Name)
			}
			if s.EndTimeUnixNano < s.StartTimeUnixNano || s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
				t.Errorf("%s: %v", service, s)
			}
			for _, l := range s.Links {
				traces = append(traces, hex.EncodeToString(l.TraceId))
			}
		}
		slices.Sort(traces)
		return slices.Compact(traces)
	}
	var want []string
	for i := 0; i < records; i += 2 {
		want = append(want, trace(i))
	}
	waitUntil(t, "all traces are linked to a batch and to a commit", func() bool {
		return slices.Equal(linked("spillway-ingest", "spillway.append"), want) && slices.Equal(linked("spillway-delivery", "spillway.commit"), want)
	})
	if n := len(got.of("spillway-ingest")) + len(got.of("spillway-delivery")); n >= records {
		t.Errorf("%d spans of %d records", n, records)
	}
	committed := int64(0)
	for _, s := range got.of("spillway-delivery") {
		for _, a := range s.Attributes {
			if a.Key == "messaging.batch.message_count" {
				committed += a.Value.GetIntValue()
			}
			if a.Key == "spillway.subscription" && a.Value.GetStringValue() != "q/files" {
				t.Errorf("the subscription is %v", a.Value)
			}
		}
		if len(s.Events) != 1 {
			t.Errorf("%v", s)
		}
	}
	if committed != records {
		t.Errorf("the commits are about %d records, want %d", committed, records)
	}

	// Without the receiver nothing waits, and the process ends.
	server.Stop()
	client.Produce(t.Context(), &kgo.Record{Value: []byte("more")}, nil)
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "a record is delivered without a receiver", func() bool {
		return slices.Contains(textBelow(t, filepath.Join(dir, "files")), "more")
	})
	c.signal(syscall.SIGTERM)
	if status := c.status(); status != 0 || !strings.Contains(c.out.String(), "traces are not exported") {
		t.Errorf("status %d; it is not said that traces are not exported", status)
	}

	c = newChild(t, "run", "-c", file)
	c.cmd.Env = append(c.cmd.Env, "OTEL_TRACES_EXPORTER=zipkin")
	c.run()
	if status := c.status(); status != 2 || !strings.Contains(c.out.String(), "want otlp, or none") {
		t.Errorf("status %d with another exporter", status)
	}
}
