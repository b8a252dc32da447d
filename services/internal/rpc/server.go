// Package rpc is how Spillway's services speak gRPC: one kind of server, one kind of client
// connection, one form of errors.
package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// MaxMessageBytes bounds a message in both directions: a batch of one record of the largest size
// (16 MiB) with room to spare.
const MaxMessageBytes = 32 << 20

const (
	pingInterval = 10 * time.Second // of both sides, on an idle connection
	pingTimeout  = 10 * time.Second // without an answer the connection is dead
)

// Server is a gRPC server with reflection and grpc.health.v1, so that grpcurl and health probes work
// on every port. Register services on GRPC before Serve.
type Server struct {
	GRPC   *grpc.Server
	Health *health.Server

	log         *slog.Logger
	stopTimeout time.Duration // for calls to end after Serve's context did
}

// NewServer returns a server that answers NOT_SERVING until SetServing(true).
func NewServer(log *slog.Logger) *Server {
	s := &Server{
		GRPC: grpc.NewServer(
			experimental.BufferPool(frames),
			grpc.ReadBufferSize(ioBytes),
			grpc.WriteBufferSize(ioBytes),
			grpc.ForceServerCodecV2(codec),
			grpc.WaitForHandlers(true),
			grpc.MaxRecvMsgSize(MaxMessageBytes),
			grpc.MaxSendMsgSize(MaxMessageBytes),
			// A client whose host vanished must lose its stream, and with it its leases.
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingTimeout}),
			// Below the clients' interval, or jitter would get them thrown out.
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval / 2, PermitWithoutStream: true}),
		),
		Health: health.NewServer(),
		log:    log,

		stopTimeout: 5 * time.Second,
	}
	s.SetServing(false)
	healthv1.RegisterHealthServer(s.GRPC, s.Health)
	registerReflection(s.GRPC)
	return s
}

// SetServing sets the health of the server as a whole. It has no effect once Serve's context has ended.
func (s *Server) SetServing(serving bool) {
	status := healthv1.HealthCheckResponse_NOT_SERVING
	if serving {
		status = healthv1.HealthCheckResponse_SERVING
	}
	s.Health.SetServingStatus("", status)
}

// Serve accepts connections on lis, which it closes, until ctx ends; then it refuses new calls, and
// after five seconds cuts those that still run. It returns nil when ctx was the reason, and when it
// returns no handler runs any more. A server serves once.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.GRPC.Serve(lis) }()
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
