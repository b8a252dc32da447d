package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/ingest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// BenchmarkIngest reads records of 200 bytes from a real Kafka; an operation is all of them.
//
//	bare      kafka-go's Client.Fetch in a loop for each partition, every record read and dropped
//	ingest    Spillway's ingest into a buffer that does nothing but say that all is safe, over gRPC on loopback
//
// The time runs from the first fetch, or the first assignment, to the last record.
//
//	go test -run '^$' -bench Ingest -benchtime 1x ./services/e2e -bench.records 2000000
func BenchmarkIngest(b *testing.B) {
	topic := fmt.Sprintf("bench-ingest-%d", time.Now().UnixNano())
	createTopic(b, stack.kafka, topic, nil)
	if err := newProducer(b, stack.kafka, topic).produce(*benchRecords, 0); err != nil {
		b.Fatal(err)
	}
	for _, round := range []string{"1", "2", "3"} {
		b.Run("bare/"+round, func(b *testing.B) { benchClientFetch(b, topic) })
		b.Run("ingest/"+round, func(b *testing.B) { benchIngest(b, topic) })
	}
}

func benchClientFetch(b *testing.B, topic string) {
	client := &kafka.Client{Addr: kafka.TCP(stack.kafka.addr()), Timeout: 30 * time.Second}
	ends, err := client.ListOffsets(b.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {
		kafka.LastOffsetOf(0), kafka.LastOffsetOf(1), kafka.LastOffsetOf(2), kafka.LastOffsetOf(3)}}})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	var g errgroup.Group
	for _, end := range ends.Topics[topic] {
		g.Go(func() error {
			return clientFetch(context.Background(), client, topic, end.Partition, 0, end.LastOffset, func(r *kafka.Record) error {
				if r.Value == nil {
					return nil
				}
				return r.Value.Close()
			})
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
}

// idleBuffer takes everything.
type idleBuffer struct {
	spillwayv1.UnimplementedBufferServiceServer
	assigned chan struct{} // has room for one
	records  atomic.Int64
	all      chan struct{} // closed when all records are there
}

func (i *idleBuffer) Append(stream spillwayv1.BufferService_AppendServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		var answer *spillwayv1.AppendResponse
		switch m := m.Message.(type) {
		case *spillwayv1.AppendRequest_Open:
			answer = &spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Opened{Opened: &spillwayv1.AppendOpened{}}}
		case *spillwayv1.AppendRequest_Assign:
			select {
			case i.assigned <- struct{}{}:
			default:
			}
			answer = &spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Assigned{Assigned: &spillwayv1.PartitionAssigned{Source: m.Assign.Source}}}
		case *spillwayv1.AppendRequest_Batch:
			answer = &spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Appended{Appended: &spillwayv1.Appended{Source: m.Batch.Source,
				Range: &spillwayv1.OffsetRange{First: m.Batch.FirstOffset, Next: m.Batch.NextOffset}}}}
			if n := i.records.Add(int64(m.Batch.RecordCount)); n == int64(*benchRecords) {
				close(i.all)
			}
		case *spillwayv1.AppendRequest_Topics, *spillwayv1.AppendRequest_CaughtUp:
			continue
		default:
			return fmt.Errorf("unexpected %T", m)
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// ingestLog keeps what an ingest logs.
type ingestLog struct {
	mu    sync.Mutex
	bytes bytes.Buffer
}

// Write implements io.Writer.
func (l *ingestLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes.Write(p)
}

func (l *ingestLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes.String()
}

func benchIngest(b *testing.B, topic string) {
	lines := new(ingestLog)
	log := slog.New(slog.NewTextHandler(lines, nil))
	buffer := &idleBuffer{assigned: make(chan struct{}, 1), all: make(chan struct{})}
	server := rpc.NewServer(log)
	spillwayv1.RegisterBufferServiceServer(server.GRPC, buffer)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s, err := ingest.New(config.Ingest{Memory: 64 * config.MiB, Sources: map[string]*config.Source{"s": {Brokers: []string{stack.kafka.addr()},
		Group: fmt.Sprintf("bench-%d", time.Now().UnixNano()), Topics: []string{topic}, Start: "earliest", Queue: "q", Isolation: "read_committed",
		Batch: config.Batch{Records: 1000, Bytes: config.MiB, Linger: 50 * time.Millisecond}}}}, []string{lis.Addr().String()}, ingest.Deps{Log: log})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return server.Serve(ctx, lis) })
	g.Go(func() error { return s.Run(ctx) })
	<-buffer.assigned
	b.ResetTimer()
	<-buffer.all
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	if b.Elapsed().Seconds() > 3+float64(*benchRecords)/200_000 { // something was waited for
		b.Logf("it took %s:\n%s", b.Elapsed(), lines.text())
	}
	cancel()
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}
