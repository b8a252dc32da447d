package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers the open of an Append stream and every batch of it with the batch's payload size.
type echo struct {
	spillwayv1.UnimplementedBufferServiceServer
	ended chan error // why a handler returned
}

func (e *echo) Append(stream grpc.BidiStreamingServer[spillwayv1.AppendRequest, spillwayv1.AppendResponse]) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			e.ended <- err
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		size := int64(len(request.GetBatch().GetPayload()))
		answer := &spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Safe{Safe: &spillwayv1.SafeOffset{Offset: size}}}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

type fixture struct {
	server  *Server
	echo    *echo
	conn    *grpc.ClientConn
	address string
	stop    context.CancelFunc
	served  chan error
}

func start(t *testing.T) *fixture {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{server: NewServer(slog.New(slog.DiscardHandler)), echo: &echo{ended: make(chan error, 1)}, served: make(chan error, 1), address: lis.Addr().String()}
	spillwayv1.RegisterBufferServiceServer(f.server.GRPC, f.echo)
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() { f.served <- f.server.Serve(ctx, lis) }()
	if f.conn, err = Dial(lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := f.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) append(t *testing.T) grpc.BidiStreamingClient[spillwayv1.AppendRequest, spillwayv1.AppendResponse] {
	t.Helper()
	stream, err := spillwayv1.NewBufferServiceClient(f.conn).Append(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestHealthFollowsSetServing(t *testing.T) {
	f := start(t)
	expect := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		response, err := healthv1.NewHealthClient(f.conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || response.Status != want {
			t.Errorf("health is %v, %v; want %v", response.GetStatus(), err, want)
		}
	}
	expect(healthv1.HealthCheckResponse_NOT_SERVING)
	f.server.SetServing(true)
	expect(healthv1.HealthCheckResponse_SERVING)
	f.server.SetServing(false)
	expect(healthv1.HealthCheckResponse_NOT_SERVING)
}

// TestHealthOfEachService asks as Kubernetes' gRPC probe does that names a service.
func TestHealthOfEachService(t *testing.T) {
	f := start(t)
	client := healthv1.NewHealthClient(f.conn)
	expect := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for name := range f.server.GRPC.GetServiceInfo() {
			response, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
			if err != nil || response.Status != want {
				t.Errorf("health of %s is %v, %v; want %v", name, response.GetStatus(), err, want)
			}
		}
	}
	expect(healthv1.HealthCheckResponse_NOT_SERVING)
	f.server.SetServing(true)
	expect(healthv1.HealthCheckResponse_SERVING)
	f.server.SetServing(false)
	expect(healthv1.HealthCheckResponse_NOT_SERVING)
	if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "nobody's"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of a service that is not there: %v", err)
	}
}

func TestReflectionListsServices(t *testing.T) {
	f := start(t)
	stream, err := reflectionv1.NewServerReflectionClient(f.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range response.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	for _, want := range []string{"spillway.v1.BufferService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("services are %v, without %s", names, want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
}

func TestMessageLimit(t *testing.T) {
	f := start(t)
	send := func(size int) (int64, error) {
		stream := f.append(t)
		batch := &spillwayv1.Batch{Payload: make([]byte, size)}
		if err := stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: batch}}); err != nil {
			return 0, err
		}
		response, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		if err := stream.CloseSend(); err != nil {
			return 0, err
		}
		<-f.echo.ended
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ends with %v", err)
		}
		return response.GetSafe().GetOffset(), nil
	}
	if size, err := send(20 << 20); err != nil || size != 20<<20 {
		t.Errorf("20 MiB give %d, %v", size, err)
	}
	if _, err := send(MaxMessageBytes); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("more than the limit gives %v", err)
	}
}

func TestServeLetsCallsEnd(t *testing.T) {
	f := start(t)
	stream := f.append(t)
	exchange := func() {
		t.Helper()
		if err := stream.Send(&spillwayv1.AppendRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := healthv1.NewHealthClient(f.conn).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	f.server.SetServing(true)
	if response, err := watch.Recv(); err != nil || response.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health is %v, %v", response, err)
	}
	exchange()
	f.stop()
	if response, err := watch.Recv(); err != nil || response.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Fatalf("health is %v, %v", response, err)
	}
	exchange() // a call that runs goes on after Serve was asked to stop
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
	cancel() // ends the watch
	if err := <-f.served; err != nil {
		t.Errorf("Serve returns %v", err)
	}
}

func TestServeCutsCallsThatDoNotEnd(t *testing.T) {
	f := start(t)
	f.server.stopTimeout = 50 * time.Millisecond
	stream := f.append(t)
	if err := stream.Send(&spillwayv1.AppendRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	f.stop()
	if err := <-f.served; err != nil {
		t.Errorf("Serve returns %v", err)
	}
	if took := time.Since(begin); took < f.server.stopTimeout {
		t.Errorf("Serve gave calls only %v to end", took)
	}
	select {
	case <-f.echo.ended:
	default:
		t.Error("a handler still runs after Serve returned")
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the cut stream ends with %v", err)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	err = NewServer(slog.New(slog.DiscardHandler)).Serve(t.Context(), lis)
	if err == nil || !strings.Contains(err.Error(), "serve gRPC on 127.0.0.1:") {
		t.Errorf("error is %v", err)
	}
}

func TestError(t *testing.T) {
	for _, test := range []struct {
		retryAfter time.Duration
		details    int
	}{{0, 1}, {3 * time.Second, 2}} {
		err := Error(codes.ResourceExhausted, "QUEUE_FULL", test.retryAfter, "queue %q is full", "c")
		proto := status.Convert(err).Proto()
		again := StatusError(proto)
		st := status.Convert(again)
		if st.Code() != codes.ResourceExhausted || st.Message() != `queue "c" is full` || len(st.Details()) != test.details {
			t.Fatalf("status is %v", proto)
		}
		info, ok := st.Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.Reason != "QUEUE_FULL" || info.Domain != "spillway.io" {
			t.Errorf("info is %v", st.Details()[0])
		}
		if test.retryAfter > 0 {
			retry, ok := st.Details()[1].(*errdetails.RetryInfo)
			if !ok || retry.RetryDelay.AsDuration() != test.retryAfter {
				t.Errorf("retry is %v", st.Details()[1])
			}
		}
	}
	if err := StatusError(nil); err != nil {
		t.Errorf("no status is %v", err)
	}
}

// TestPageHasABoundInBytes pages through items of 1 MiB, and one that is larger than a page.
func TestPageHasABoundInBytes(t *testing.T) {
	var all []*spillwayv1.Subscription
	for i := range 10 {
		all = append(all, &spillwayv1.Subscription{Name: fmt.Sprintf("%02d%s", i, strings.Repeat("x", 1<<20))})
	}
	all = append(all, &spillwayv1.Subscription{Name: "large" + strings.Repeat("x", 2*PageBytes)})
	seen, token := 0, ""
	for {
		page, next, err := Page(all, (*spillwayv1.Subscription).GetName, 0, 100, token)
		if err != nil || len(page) == 0 {
			t.Fatalf("a page of %d items: %v", len(page), err)
		}
		bytes := 0
		for _, s := range page {
			bytes += proto.Size(s)
		}
		if len(page) > 1 && bytes > PageBytes {
			t.Errorf("a page of %d items has %d bytes", len(page), bytes)
		}
		if seen += len(page); next == "" {
			break
		}
		token = next
	}
	if seen != len(all) {
		t.Errorf("%d items in all pages, want %d", seen, len(all))
	}
}
