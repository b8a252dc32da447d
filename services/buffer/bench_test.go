package buffer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The benchmarks take batches of 1,000 records of a size through the buffer and gRPC on loopback:
// append, lease, ack. An operation is a batch. docs/performance.md has the command and the
// figures, and bench_peers_test.go what they are compared with.
//
//	memory    the consumer keeps up, so that no payload touches the disk; acks do
//	spilled   nobody consumes until all is on disk; spill-MB/s is the way in, drain-MB/s the way out
const benchRecords = 1000

var benchSizes = []int{200, 2048}

// benchPayload is a batch of records of that size.
func benchPayload(size int) []byte {
	value := make([]byte, size)
	for i := range value {
		value[i] = byte('a' + i%26)
	}
	var payload []byte
	for i := range int64(benchRecords) {
		payload = recordbatch.AppendRecord(payload, &recordbatch.Record{OffsetDelta: i, TimestampMs: 1_700_000_000_000, Value: value})
	}
	return payload
}

func BenchmarkBuffer(b *testing.B) {
	for _, size := range benchSizes {
		payload := benchPayload(size)
		b.Run(fmt.Sprintf("memory/%dB", size), func(b *testing.B) {
			x := startBench(b, time.Second)
			consumed := x.consume(b.N)
			b.ResetTimer()
			x.append(payload, b.N)
			<-consumed
			report(b, size)
		})
		b.Run(fmt.Sprintf("spilled/%dB", size), func(b *testing.B) {
			x := startBench(b, 0)
			b.ResetTimer()
			began := time.Now()
			x.append(payload, b.N)
			x.awaitSafe(b.N)
			spilled := time.Since(began)
			began = time.Now()
			<-x.consume(b.N)
			drained := time.Since(began)
			report(b, size)
			mb := float64(b.N) * float64(len(payload)) / 1e6
			b.ReportMetric(mb/spilled.Seconds(), "spill-MB/s")
			b.ReportMetric(mb/drained.Seconds(), "drain-MB/s")
		})
	}
}

// report tells records and bytes of values a second.
func report(b *testing.B, size int) {
	b.StopTimer()
	b.SetBytes(benchRecords * int64(size))
	b.ReportMetric(float64(b.N)*benchRecords/b.Elapsed().Seconds(), "records/s")
}

// bench is a running buffer with one queue and one subscription.
type bench struct {
	b    *testing.B
	conn *grpc.ClientConn
	out  spillwayv1.BufferService_AppendClient
	safe chan int64
}

func startBench(b *testing.B, spillAfter time.Duration) *bench {
	b.Helper()
	cfg := &config.Queue{Memory: config.Bounds{Records: 1 << 40, Bytes: 64 << 20}, Disk: config.Bounds{Records: 1 << 40, Bytes: 1 << 40},
		SpillAfter: spillAfter, CommitAfter: "safe", Lease: 30 * time.Second,
		Subscriptions: map[string]*config.Subscription{"s": {Topics: []string{"*"}, Required: true}}}
	ready := make(chan struct{}, 10)
	log := slog.New(slog.DiscardHandler)
	s, err := New(config.Buffer{DataDir: b.TempDir(), Queues: map[string]*config.Queue{"c": cfg}}, Deps{Log: log, OnReady: func(is bool, _ string) {
		if is {
			ready <- struct{}{}
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	server := rpc.NewServer(log)
	s.Register(server.GRPC)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	go func() { ended <- server.Serve(ctx, lis) }()
	x := &bench{b: b, safe: make(chan int64, 1)}
	if x.conn, err = rpc.Dial(lis.Addr().String()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cancel()
		if err := x.conn.Close(); err != nil {
			b.Error(err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	})
	<-ready
	x.open()
	return x
}

// open opens the append stream; from then on the newest safe offset is in safe.
func (x *bench) open() {
	stream, err := spillwayv1.NewBufferServiceClient(x.conn).Append(context.Background())
	if err != nil {
		x.b.Fatal(err)
	}
	x.out = stream
	source := &spillwayv1.SourcePartition{Cluster: "k", Topic: "t"}
	for _, m := range []*spillwayv1.AppendRequest{
		{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Client: "bench"}}},
		{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source}}},
	} {
		if err := stream.Send(m); err != nil {
			x.b.Fatal(err)
		}
	}
	go func() { // ends with the stream
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if a := m.GetAppended(); a.GetStatus() != nil {
				x.b.Errorf("refused: %v", a)
			}
			if s := m.GetSafe(); s != nil {
				select {
				case <-x.safe:
				default:
				}
				x.safe <- s.Offset
			}
		}
	}()
}

func (x *bench) append(payload []byte, batches int) {
	crc := recordbatch.CRC(payload)
	source := &spillwayv1.SourcePartition{Cluster: "k", Topic: "t"}
	for i := range int64(batches) {
		m := &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Source: source,
			FirstOffset: i * benchRecords, NextOffset: (i + 1) * benchRecords, RecordCount: benchRecords,
			Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: crc, Payload: payload}}}
		if err := x.out.Send(m); err != nil {
			x.b.Fatal(err)
		}
	}
}

func (x *bench) awaitSafe(batches int) {
	for offset := range x.safe {
		if offset == int64(batches)*benchRecords {
			return
		}
	}
}

// consume leases and acks batches like a delivery does that has nothing to do: checksums are
// checked, acks carry what came together.
func (x *bench) consume(batches int) <-chan struct{} {
	stream, err := spillwayv1.NewBufferServiceClient(x.conn).Consume(context.Background())
	if err != nil {
		x.b.Fatal(err)
	}
	const credit = 32 << 20
	send := func(m *spillwayv1.ConsumeRequest) {
		if err := stream.Send(m); err != nil && err != io.EOF {
			x.b.Error(err)
		}
	}
	send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: "c/s", Consumer: "bench", Ordering: spillwayv1.Ordering_ORDERING_NONE}}})
	send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: credit}}})
	leases := make(chan *spillwayv1.Lease, 1024)
	acked := make(chan struct{})
	go func() { // ends with the stream
		left := batches
		sizes := make(map[uint64]int)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if l := m.GetLease(); l != nil {
				if recordbatch.CRC(l.Batch.Payload) != l.Batch.PayloadCrc32C {
					x.b.Error("damaged on the way")
				}
				leases <- l
			}
			if r := m.GetAckResult(); r != nil {
				sizes[r.Id]++
				if left -= int(r.Id >> 32); left == 0 {
					close(acked)
				}
			}
		}
	}()
	go func() {
		defer stream.CloseSend()
		for id := uint64(1); ; id++ {
			ack := &spillwayv1.Ack{}
			bytes := int64(0)
			add := func(l *spillwayv1.Lease) {
				ack.Leases = append(ack.Leases, &spillwayv1.AckedLease{LeaseId: l.LeaseId})
				bytes += int64(len(l.Batch.Payload))
			}
			select {
			case l := <-leases:
				add(l)
			case <-acked:
				return
			}
			for more := true; more; {
				select {
				case l := <-leases:
					add(l)
				default:
					more = false
				}
			}
			ack.Id = uint64(len(ack.Leases))<<32 | id // the answer tells how many they were
			send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: ack}})
			send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: bytes}}})
		}
	}()
	return acked
}

// BenchmarkBareFile is what the disk gives: the same bytes written to one file, one fsync for
// every 2 MiB, which is the size of the buffer's groups.
func BenchmarkBareFile(b *testing.B) {
	for _, size := range benchSizes {
		payload := benchPayload(size)
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "file"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.ResetTimer()
			unsynced := 0
			for range b.N {
				if _, err := f.Write(payload); err != nil {
					b.Fatal(err)
				}
				if unsynced += len(payload); unsynced >= 2<<20 {
					unsynced = 0
					if err := f.Sync(); err != nil {
						b.Fatal(err)
					}
				}
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			report(b, size)
			b.ReportMetric(float64(b.N)*float64(len(payload))/1e6/b.Elapsed().Seconds(), "spill-MB/s")
		})
	}
}
