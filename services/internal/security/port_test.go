package security

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/telemetry"
	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

// service answers what the guard lets in.
type service struct {
	spillwayv1.UnimplementedBufferServiceServer
	spillwayv1.UnimplementedBufferAdminServiceServer
	panics bool
}

func (service) Append(stream spillwayv1.BufferService_AppendServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(&spillwayv1.AppendResponse{}); err != nil {
			return err
		}
	}
}

func (service) Consume(stream spillwayv1.BufferService_ConsumeServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(&spillwayv1.ConsumeResponse{}); err != nil {
			return err
		}
	}
}

func (s service) ListQueues(context.Context, *spillwayv1.ListQueuesRequest) (*spillwayv1.ListQueuesResponse, error) {
	if s.panics {
		panic("as asked")
	}
	return &spillwayv1.ListQueuesResponse{}, nil
}

func (service) PauseSubscription(ctx context.Context, _ *spillwayv1.PauseSubscriptionRequest) (*spillwayv1.PauseSubscriptionResponse, error) {
	return &spillwayv1.PauseSubscriptionResponse{Subscription: &spillwayv1.Subscription{Name: Caller(ctx).String()}}, nil
}

// journal is a log that tests read while it is written.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// port is a guarded server with both ports.
type port struct {
	t          *testing.T
	dir        string
	ca         *tlstest.Authority
	log        *journal
	security   *Security
	addr, http string
}

func (p *port) file(name string) string { return filepath.Join(p.dir, name) }

// put swaps a file the way Kubernetes does: by a link above it, with times of long ago.
func (p *port) put(name, content string) {
	p.t.Helper()
	put(p.t, p.file(name), content)
}

func (p *port) issue(ca *tlstest.Authority, file, name string, valid time.Duration, uris ...string) {
	p.t.Helper()
	cert, key := ca.IssueFor(p.t, name, valid, uris...)
	p.put(file+".crt", string(cert))
	p.put(file+".key", string(key))
}

const (
	readToken  = "read-0123456789abcdefghijklmnop"
	adminToken = "admin-0123456789abcdefghijklmnop"
	ownToken   = "own-0123456789abcdefghijklmnopqr"
)

// newPort starts it; change may alter its section.
func newPort(t *testing.T, handler service, change func(*port, *config.Security)) *port {
	t.Helper()
	p := &port{t: t, dir: t.TempDir(), ca: tlstest.New(t), log: &journal{}}
	p.put("ca.crt", string(p.ca.PEM()))
	p.issue(p.ca, "server", "localhost", time.Hour)
	p.put("readers", "# who reads\n"+readToken+"\n")
	p.put("admins", adminToken+"\n")
	p.put("owners", ownToken+"\n")
	c := &config.Security{TLS: &config.SecurityTLS{Cert: p.file("server.crt"), Key: p.file("server.key"), CA: p.file("ca.crt"), ClientAuth: "request"},
		Tokens: []config.StaticToken{{Name: "reader", File: p.file("readers"), Roles: []string{"read"}}, {Name: "admin", File: p.file("admins"), Roles: []string{"admin"}},
			{Name: "owner", File: p.file("owners"), Roles: []string{"append:q", "consume:q/s"}}},
		Identities: []config.CertificateIdentity{{Name: "spiffe://prod/ingest", Roles: []string{"append:q"}}, {Name: "delivery", Roles: []string{"consume:q/s"}}},
		Limits:     config.Limits{Connections: 8, Streams: 20, Sessions: 4, Bytes: 64 * config.MiB}}
	if change != nil {
		change(p, c)
	}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if p.security, err = New(c, log); err != nil {
		t.Fatal(err)
	}
	p.security.recheck = 50 * time.Millisecond
	server := rpc.NewGuardedServer(log, p.security.Guard())
	spillwayv1.RegisterBufferServiceServer(server.GRPC, handler)
	spillwayv1.RegisterBufferAdminServiceServer(server.GRPC, handler)
	web := telemetry.NewHTTP()
	web.Guard, web.MayRead, web.TLS = p.security.Handler, MayRead, p.security.HTTPS()
	web.SetReady(false, "waiting for kafka-secret-host")
	if err := p.security.Register(web.Registry); err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return lis
	}
	ctx, cancel := context.WithCancel(t.Context())
	rpcLis, webLis := listen(), listen()
	p.addr, p.http = rpcLis.Addr().String(), webLis.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, rpcLis) })
	wg.Go(func() { _ = web.Serve(ctx, webLis) })
	server.SetServing(true)
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return p
}

// caller is a connection of somebody.
type caller struct {
	*grpc.ClientConn
	t    *testing.T
	http *http.Client
}

// dial connects with a token, or with the certificate of a file; empty: without.
func (p *port) dial(token, cert string) *caller {
	p.t.Helper()
	return p.dialWith(config.SecurityClient{CA: p.file("ca.crt")}, token, cert)
}

func (p *port) dialWith(c config.SecurityClient, token, cert string) *caller {
	p.t.Helper()
	if token != "" {
		c.TokenFile = filepath.Join(p.t.TempDir(), "token")
		put(p.t, c.TokenFile, token+"\n")
	}
	if cert != "" {
		c.Cert, c.Key = p.file(cert+".crt"), p.file(cert+".key")
	}
	client, err := NewClient(&config.Security{Client: c}, slog.New(slog.DiscardHandler))
	if err != nil {
		p.t.Fatal(err)
	}
	conn, err := client.Dial(p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return &caller{conn, p.t, client.HTTPClient()}
}

func (c *caller) context() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

func (c *caller) list() error {
	_, err := spillwayv1.NewBufferAdminServiceClient(c).ListQueues(c.context(), &spillwayv1.ListQueuesRequest{})
	return err
}

func (c *caller) pause() error {
	_, err := spillwayv1.NewBufferAdminServiceClient(c).PauseSubscription(c.context(), &spillwayv1.PauseSubscriptionRequest{Name: "q/s"})
	return err
}

func (c *caller) health() error {
	_, err := healthv1.NewHealthClient(c).Check(c.context(), &healthv1.HealthCheckRequest{})
	return err
}

func (c *caller) reflection() error {
	stream, err := reflectionv1.NewServerReflectionClient(c).ServerReflectionInfo(c.context())
	if err != nil {
		return err
	}
	_ = stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}) // Recv has the reason
	_, err = stream.Recv()
	return err
}

// append opens a stream, and returns what its first answer is.
func (c *caller) append(queue string) (spillwayv1.BufferService_AppendClient, error) {
	stream, err := spillwayv1.NewBufferServiceClient(c).Append(c.context())
	if err == nil {
		_ = stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: queue}}}) // Recv has the reason
		_, err = stream.Recv()
	}
	return stream, err
}

func (c *caller) consume(subscription string) (spillwayv1.BufferService_ConsumeClient, error) {
	stream, err := spillwayv1.NewBufferServiceClient(c).Consume(c.context())
	if err == nil {
		_ = stream.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: subscription}}})
		_, err = stream.Recv()
	}
	return stream, err
}

func (c *caller) get(p *port, path string) (int, string) {
	response, err := c.http.Get("https://" + p.http + path)
	if err != nil {
		return 0, err.Error()
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	return response.StatusCode, string(body)
}
