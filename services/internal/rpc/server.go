// Package rpc is how Spillway's services speak gRPC: one kind of server, one kind of client
// connection, one form of errors.
package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"

	"github.com/spillwayio/spillway/services/internal/listen"
)

// MaxMessageBytes bounds a message in both directions: a batch of one record of the largest size
// (16 MiB) with room to spare.
const MaxMessageBytes = 32 << 20

const (
	connectTimeout = 10 * time.Second // for the handshakes
	maxHeaderBytes = 16 << 10         // of a call

	pingInterval = 10 * time.Second // of both sides, on an idle connection
	// Without an answer the connection is dead. When nothing arrives in either direction any
	// more, a client knows that after pingInterval and clientPatience, and a server not before
	// serverPatience: a delivery has let go of its files before the buffer gives them to another.
	clientPatience = 10 * time.Second
	serverPatience = 30 * time.Second
)

// Server is a gRPC server with reflection and grpc.health.v1, so that grpcurl and health probes
// work on every port. Register services on GRPC before Serve.
type Server struct {
	GRPC   *grpc.Server
	Health *health.Server

	inbound     *inbound
	log         *slog.Logger
	stopTimeout time.Duration // for calls to end after Serve's context did

	mu      sync.Mutex
	serving bool
}

// Guard decides who gets into a server, and what they may do there.
type Guard struct {
	// Credentials are those of connections; nil is plain text.
	Credentials credentials.TransportCredentials
	// Unary and Stream see calls before anything else does; nil lets all of them in.
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
	// Claims says that they claim the connections of those that they let in. Others then make
	// room for newcomers.
	Claims bool
}

// unsettledConnections bounds connections that are not through their handshake.
const unsettledConnections = 256

// NewServer returns a server for everybody, in plain text; see NewGuardedServer.
func NewServer(log *slog.Logger) *Server { return NewGuardedServer(log, Guard{}) }

// NewGuardedServer returns a server that answers NOT_SERVING until SetServing(true).
func NewGuardedServer(log *slog.Logger, guard Guard) *Server {
	var running calls
	in := newInbound(maxUnfinished, log)
	in.makesRoom = guard.Claims
	unary, stream := []grpc.UnaryServerInterceptor{recoverUnary(log)}, []grpc.StreamServerInterceptor{recoverStream(log)}
	if guard.Unary != nil {
		unary = append(unary, guard.Unary)
	}
	if guard.Stream != nil {
		stream = append(stream, guard.Stream)
	}
	s := &Server{
		inbound: in,
		GRPC: grpc.NewServer(
			grpc.Creds(countedCredentials(guard.Credentials, in)),
			grpc.MaxConcurrentStreams(maxStreamsOfConnection),
			grpc.InitialWindowSize(windowBytes),
			grpc.InitialConnWindowSize(connectionWindowBytes),
			grpc.MaxHeaderListSize(maxHeaderBytes),
			grpc.ConnectionTimeout(connectTimeout),
			grpc.InTapHandle(func(ctx context.Context, info *tap.Info) (context.Context, error) {
				if !strings.HasPrefix(info.FullMethodName, "/grpc.health.") && !running.begin(ctx) {
					return nil, Error(codes.ResourceExhausted, "TOO_MANY_CALLS", time.Second, "%d calls are running; try again later", maxCalls)
				}
				return ctx, nil
			}),
			grpc.ChainUnaryInterceptor(append(unary, checkUnary)...),
			grpc.ChainStreamInterceptor(append(stream, checkStream)...),
			experimental.BufferPool(frames),
			grpc.ReadBufferSize(ioBytes),
			grpc.WriteBufferSize(ioBytes),
			grpc.ForceServerCodecV2(codec),
			grpc.WaitForHandlers(true),
			grpc.MaxRecvMsgSize(MaxMessageBytes),
			grpc.MaxSendMsgSize(MaxMessageBytes),
			// A client whose host vanished must lose its stream, and with it its leases.
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: serverPatience}),
			// Below the clients' interval, or jitter would get them thrown out.
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval / 2, PermitWithoutStream: true}),
		),
		Health: health.NewServer(),
		log:    log,

		stopTimeout: 5 * time.Second,
	}
	healthv1.RegisterHealthServer(s.GRPC, s.Health)
	registerReflection(s.GRPC)
	s.SetServing(false)
	return s
}

// SetServing sets the health of the server as a whole and of every registered service, so that a
// probe may ask for any of them by name. It has no effect once Serve's context has ended. Safe
// for concurrent use.
func (s *Server) SetServing(serving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = serving
	s.reportHealth()
}

// reportHealth needs the lock.
func (s *Server) reportHealth() {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if s.serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.Health.SetServingStatus("", status)
	for name := range s.GRPC.GetServiceInfo() {
		s.Health.SetServingStatus(name, status)
	}
}

// Serve accepts connections on lis, which it closes, until ctx ends; then it refuses new calls,
// and after five seconds cuts those that still run. It returns nil when ctx was the reason, and
// when it returns no handler runs any more. A server serves once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	s.mu.Lock()
	s.reportHealth() // of services that were registered since
	s.mu.Unlock()
	served := make(chan error, 1)
	go func() { served <- s.GRPC.Serve(listen.Limit(lis, unsettledConnections)) }()
	select {
	case err := <-served:
		s.GRPC.Stop()
		return fmt.Errorf("serve gRPC on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}

	s.Health.Shutdown()
	stopped := make(chan struct{})
	go func() {
		s.GRPC.GracefulStop()
		close(stopped)
	}()
	timer := time.NewTimer(s.stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		s.log.Warn("cutting gRPC calls that did not end", "address", lis.Addr().String(), "after", s.stopTimeout)
		s.GRPC.Stop()
		<-stopped
	}
	<-served
	return nil
}
