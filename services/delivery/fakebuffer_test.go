package delivery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// oneShard completes what a session asks of a queue of one shard.
func oneShard(cfg sessionConfig) sessionConfig {
	cfg.time, cfg.seen = newTimes(1), &shards.Seen{Of: 1}
	return cfg
}

const leaseDuration = 30 * time.Second

// fakeBuffer is a buffer of which the test plays every message.
type fakeBuffer struct {
	spillwayv1.UnimplementedBufferServiceServer
	streams chan *fakeStream
	refuse  func() error // of new streams; nil accepts
	paused  bool         // what it says of the delivery
	keeps   bool         // it keeps pauses
	hears   bool         // it hears of troubles

	server *grpc.Server
	lis    *bufconn.Listener
}

// fakeStream is one Consume stream. The test sends with Send and takes what the client said from
// requests, which is closed at the client's end of the stream.
type fakeStream struct {
	spillwayv1.BufferService_ConsumeServer
	t        *testing.T
	open     *spillwayv1.ConsumeOpen
	requests chan *spillwayv1.ConsumeRequest
	end      chan error    // what the server ends the stream with
	stay     chan struct{} // closed: the client's end of the stream is ignored
}

// startFakeBuffer starts a buffer that has no other services than more.
func startFakeBuffer(t *testing.T, more ...func(grpc.ServiceRegistrar)) *fakeBuffer {
	f := &fakeBuffer{streams: make(chan *fakeStream, 16), server: grpc.NewServer(), lis: bufconn.Listen(1 << 20)}
	spillwayv1.RegisterBufferServiceServer(f.server, f)
	for _, register := range more {
		register(f.server)
	}
	go func() { _ = f.server.Serve(f.lis) }()
	t.Cleanup(f.server.Stop)
	return f
}

func (f *fakeBuffer) dial(string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.lis.DialContext(ctx) }))
}

func (f *fakeBuffer) Consume(stream spillwayv1.BufferService_ConsumeServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if f.refuse != nil {
		if err := f.refuse(); err != nil {
			return err
		}
	}
	s := &fakeStream{BufferService_ConsumeServer: stream, open: first.GetOpen(), requests: make(chan *spillwayv1.ConsumeRequest, 1000), end: make(chan error, 2), stay: make(chan struct{})}
	if err := s.Send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Opened{
		Opened: &spillwayv1.ConsumeOpened{SessionId: 7, LedgerId: "made-with-the-data", LeaseDuration: durationpb.New(leaseDuration), KeepsPauses: f.keeps, HearsTroubles: f.hears, Paused: f.paused}}}); err != nil {
		return err
	}
	f.streams <- s
	go func() {
		defer close(s.requests)
		for {
			m, err := stream.Recv()
			if err != nil {
				select {
				case <-s.stay:
				default:
					if errors.Is(err, io.EOF) {
						s.end <- nil
					}
				}
				return
			}
			s.requests <- m
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// newSession opens a session with a fake buffer, and closes it at the end of the test.
func newSession(t *testing.T, memory int64) (*session, *fakeStream, *counters) {
	f := startFakeBuffer(t)
	conn, err := f.dial("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := newCounters()
	s, err := openSession(t.Context(), spillwayv1.NewBufferServiceClient(conn),
		oneShard(sessionConfig{subscription: "q/s", consumer: "me", ordering: spillwayv1.Ordering_ORDERING_PARTITION, memory: memory}), slog.New(slog.DiscardHandler), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	stream := <-f.streams
	stream.t = t
	return s, stream, c
}

// next is the client's next message.
func (s *fakeStream) next() *spillwayv1.ConsumeRequest {
	s.t.Helper()
	m, ok := <-s.requests
	if !ok {
		s.t.Fatal("the client ended the stream")
	}
	return m
}

// credit is the next message, which must be credit.
func (s *fakeStream) credit() int64 {
	s.t.Helper()
	m := s.next()
	if m.GetCredit() == nil {
		s.t.Fatalf("got %v, want credit", m)
	}
	return m.GetCredit().Bytes
}

func (s *fakeStream) send(m *spillwayv1.ConsumeResponse) {
	s.t.Helper()
	if err := s.Send(m); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fakeStream) lease(l *spillwayv1.Lease) {
	s.t.Helper()
	s.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Lease{Lease: l}})
}

func (s *fakeStream) answer(r *spillwayv1.AckResult) {
	s.t.Helper()
	s.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_AckResult{AckResult: r}})
}

func (s *fakeStream) revoke(ids ...uint64) {
	s.t.Helper()
	s.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Revoked{Revoked: &spillwayv1.Revoked{LeaseIds: ids}}})
}

// payload is a RecordBatch of records with these values.
func payload(values ...string) []byte {
	var p []byte
	for i, v := range values {
		p = recordbatch.AppendRecord(p, &recordbatch.Record{OffsetDelta: int64(i), Value: []byte(v)})
	}
	return p
}

// lease is a lease of records with these values from offset 100*id on.
func lease(id uint64, codec spillwayv1.Codec, values ...string) *spillwayv1.Lease {
	p := payload(values...)
	if codec == spillwayv1.Codec_CODEC_ZSTD {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(err)
		}
		p = w.EncodeAll(p, nil)
	}
	first := int64(100 * id)
	return &spillwayv1.Lease{LeaseId: id, Attempt: 1, Batch: &spillwayv1.Batch{
		Source:      &spillwayv1.SourcePartition{Cluster: "c", Topic: "t", Partition: 3},
		FirstOffset: first, NextOffset: first + int64(len(values)), RecordCount: int32(len(values)),
		Codec: codec, PayloadCrc32C: recordbatch.CRC(p), Payload: p}}
}

func none(id uint64, values ...string) *spillwayv1.Lease {
	return lease(id, spillwayv1.Codec_CODEC_NONE, values...)
}

// values reads the records of a lease.
func values(t *testing.T, l *Lease) []string {
	t.Helper()
	var got []string
	if err := l.Records(func(_ int64, r *recordbatch.Record) error {
		got = append(got, string(r.Value))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}
