package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// trackingServer sends leases of a size as long as it may, and tells which are sent.
type trackingServer struct {
	spillwayv1.UnimplementedBufferServiceServer
	bytes, n int
	handed   chan int // SendMsg has returned
	sent     chan int
	drop     chan struct{} // closed to close the connection
}

func (s *trackingServer) Consume(stream spillwayv1.BufferService_ConsumeServer) error {
	go func() {
		select {
		case <-s.drop:
			CloseConnection(stream.Context())
		case <-stream.Context().Done():
		}
	}()
	for i := range s.n {
		m := &Tracked{Sent: func() { s.sent <- i }, Message: &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Lease{
			Lease: &spillwayv1.Lease{LeaseId: uint64(i + 1), Batch: &spillwayv1.Batch{Payload: make([]byte, s.bytes)}}}}}
		if err := stream.SendMsg(m); err != nil {
			return err
		}
		s.handed <- i
	}
	<-stream.Context().Done()
	return nil
}

func (s *trackingServer) start(t *testing.T) spillwayv1.BufferService_ConsumeClient {
	t.Helper()
	s.handed, s.sent, s.drop = make(chan int, s.n), make(chan int, s.n), make(chan struct{})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(slog.New(slog.DiscardHandler))
	spillwayv1.RegisterBufferServiceServer(server.GRPC, s)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, lis) }()
	conn, err := Dial(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(conn.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	stream, err := spillwayv1.NewBufferServiceClient(conn).Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func await(t *testing.T, c <-chan int, what string) int {
	t.Helper()
	select {
	case i := <-c:
		return i
	case <-time.After(time.Minute):
		t.Fatalf("not after a minute: %s", what)
		return 0
	}
}

// TestTrackedTellsWhenItIsSent: a payload that nobody reads is not sent, though SendMsg has
// returned; once it is read it is.
func TestTrackedTellsWhenItIsSent(t *testing.T) {
	for _, bytes := range []int{100, splitBytes, 8 << 20} {
		s := &trackingServer{bytes: bytes, n: 2}
		stream := s.start(t)
		await(t, s.handed, "the first message is handed over")
		if bytes > 1<<20 {
			select {
			case <-s.sent:
				t.Error("a large payload counts as sent before anything of it is read")
			case <-time.After(50 * time.Millisecond): // no more than a chance to fail
			}
		}
		for i := range s.n {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if l := m.GetLease(); l.GetLeaseId() != uint64(i+1) || len(l.Batch.Payload) != bytes {
				t.Fatalf("lease %d with %d bytes", l.GetLeaseId(), len(l.GetBatch().GetPayload()))
			}
			if got := await(t, s.sent, "what was read is sent"); got != i {
				t.Fatalf("message %d was sent, want %d", got, i)
			}
		}
	}
}

// TestCloseConnection ends a handler that waits for a client that does not read.
func TestCloseConnection(t *testing.T) {
	s := &trackingServer{bytes: 1 << 20, n: 100}
	stream := s.start(t)
	await(t, s.handed, "the first message is handed over")
	close(s.drop)
	for {
		if _, err := stream.Recv(); err != nil {
			return
		}
	}
}
