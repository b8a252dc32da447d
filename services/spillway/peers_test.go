package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// listen serves connections until the end of the test.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			go serve(c)
		}
	}()
	return lis.Addr().String()
}

// mute reads and never answers.
func mute(t *testing.T) string {
	return listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
}

func web(t *testing.T, answer int) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(answer) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// gRPC serves what register adds, behind an interceptor.
func startGRPC(t *testing.T, register func(*grpc.Server), intercept grpc.UnaryServerInterceptor) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(intercept), grpc.WaitForHandlers(true))
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String()
}

func pass(ctx context.Context, r any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	return h(ctx, r)
}

func kafkaWith(t *testing.T, key kmsg.Key, answer func(kmsg.Request) kmsg.Response) string {
	t.Helper()
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	kafka.ControlKey(key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.KeepControl()
		return answer(r), nil, true
	})
	return kafka.ListenAddrs()[0]
}

// TestPeersThatAreOther has every command that connects to something say in plain words, and
// within a bound, what is wrong with an address where nobody is, or another.
func TestPeersThatAreOther(t *testing.T) {
	const nobody = "127.0.0.1:1"
	audits := func(s *grpc.Server) { spillwayv1.RegisterBufferAdminServiceServer(s, &fakeAudit{}) }
	denied := func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, status.Error(codes.PermissionDenied, "this call needs the role read")
	}
	stuck := func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, test := range []struct{ name, command, want string }{
		{"nobody", "audit --buffer " + nobody, "spillway: nothing listens at " + nobody + " (connection refused); is the buffer running? The gRPC port of a buffer is buffer.listen"},
		{"no such host", "audit --buffer nowhere.invalid:7400", "cannot be resolved: "},
		{"a web server", "audit --buffer " + web(t, 404), "speaks HTTP, but not gRPC; the gRPC port of a buffer is buffer.listen in its configuration, and not buffer.http"},
		{"hangs up", "audit --buffer " + listen(t, func(c net.Conn) { _ = c.Close() }), "if it always does so at once, something else listens there: the gRPC port of a buffer is buffer.listen"},
		{"silent", "audit --timeout 1s --buffer " + mute(t), "no answer from the buffer at 127.0.0.1:"},
		{"older", "audit --buffer " + startGRPC(t, func(*grpc.Server) {}, pass), "it is an older buffer, or another service"},
		{"denied", "audit --buffer " + startGRPC(t, audits, denied), "does not allow this call: this call needs the role read"},
		{"stuck", "audit --timeout 1s --buffer " + startGRPC(t, audits, stuck), "no answer from the buffer at 127.0.0.1:"},

		{"nobody", "health http://" + nobody + "/readyz", "nothing listens there (connection refused); is the service running"},
		{"no such host", "health http://nowhere.invalid:7401/readyz", "lookup nowhere.invalid"},
		{"gRPC", "health http://" + startGRPC(t, audits, pass) + "/readyz", "the port for this is http, as buffer.http, and not listen, which is for gRPC"},
		{"hangs up", "health http://" + listen(t, func(c net.Conn) { _ = c.Close() }) + "/readyz", "does not speak HTTP"},
		{"silent", "health --timeout 1s http://" + mute(t) + "/readyz", "no answer within 1s"},
		{"older", "health http://" + web(t, 404) + "/readyz", "404 Not Found"},
		{"denied", "health http://" + web(t, 401) + "/readyz", "401 Unauthorized"},

		{"nobody", "generate --topics t --count 1 --brokers " + nobody, "connect to 127.0.0.1:1: "},
		{"a web server", "generate --topics t --count 1 --brokers " + web(t, 404), "is this a Kafka broker, and without TLS"},
		{"gRPC", "generate --topics t --count 1 --brokers " + startGRPC(t, audits, pass), "is this a Kafka broker, and without TLS"},
		{"silent", "generate --topics t --count 1 --brokers " + mute(t), "no answer within 5s"},
		{"older", "generate --topics t --count 1 --brokers " + kafkaWith(t, kmsg.ApiVersions, func(r kmsg.Request) kmsg.Response {
			answer := r.ResponseKind().(*kmsg.ApiVersionsResponse)
			answer.ApiKeys = []kmsg.ApiVersionsResponseApiKey{{ApiKey: kmsg.ApiVersions.Int16()}}
			return answer
		}), "Kafka 0.11 or later is needed"},
		{"denied", "generate --topics t --count 1 --brokers " + kafkaWith(t, kmsg.CreateTopics, func(r kmsg.Request) kmsg.Response {
			answer := r.ResponseKind().(*kmsg.CreateTopicsResponse)
			topic := kmsg.NewCreateTopicsResponseTopic()
			const topicAuthorizationFailed = 29
			topic.Topic, topic.ErrorCode, topic.ErrorMessage = "t", topicAuthorizationFailed, kmsg.StringPtr("Authorization failed.")
			answer.Topics = append(answer.Topics, topic)
			return answer
		}), "create topic t: "},
	} {
		t.Run(strings.Fields(test.command)[0]+" "+test.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := spillway(t, strings.Fields(test.command)...)
			if got.status != 1 || !strings.Contains(got.stderr, test.want) || strings.Contains(got.stderr, "rpc error") || strings.Contains(got.stderr, "desc =") {
				t.Errorf("status %d: %s, want %s", got.status, got.stderr, test.want)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// TestGenerateObeysQuotas: no request is sent to a broker that has this client wait, and every
// record is written once. (One partition has one request under way.)
func TestGenerateObeysQuotas(t *testing.T) {
	quota := &kafkaclienttest.Quota{Throttle: func(key int16, _ int) time.Duration {
		if key == kmsg.Produce.Int16() {
			return 300 * time.Millisecond
		}
		return 0
	}}
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(quota.Listen))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	if got := spillway(t, "generate", "--brokers", kafka.ListenAddrs()[0], "--topics", "orders", "--count", "9000", "--partitions", "1"); got.status != 0 {
		t.Fatalf("generate: %+v", got)
	}
	if quota.Early() > 0 || quota.Named() < 3 {
		t.Errorf("%d of %d requests came before the broker would read them", quota.Early(), quota.Named())
	}
	tally := newTally(newTestGenerator(map[string]int64{"orders": 9000}))
	if err := tally.readTopics(t.Context(), kafka.ListenAddrs()); err != nil {
		t.Fatal(err)
	}
	if tally.distinct != 9000 || tally.doubled != 0 {
		t.Errorf("%d different records, %d doubled; want 9000", tally.distinct, tally.doubled)
	}
}
