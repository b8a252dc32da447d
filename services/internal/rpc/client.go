package rpc

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
)

const scheme = "passthrough:///"

// Address is the host:port that Dial was given.
func Address(conn *grpc.ClientConn) string { return strings.TrimPrefix(conn.Target(), scheme) }

// Dial returns a connection to host:port without waiting for it: calls fail with UNAVAILABLE
// while the other side is away, and the connection comes back by itself, trying at least every
// five seconds. A dead peer is noticed within twenty seconds. The caller closes the connection.
func Dial(addr string) (*grpc.ClientConn, error) {
	return DialWith(addr, insecure.NewCredentials(), nil)
}

// DialWith is Dial with credentials of the connection, and of each call; the latter may be nil.
func DialWith(addr string, transport credentials.TransportCredentials, call credentials.PerRPCCredentials) (*grpc.ClientConn, error) {
	more := []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	if call != nil {
		more = append(more, grpc.WithPerRPCCredentials(call))
	}
	return dial(addr, more...)
}

func dial(addr string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	// Without gRPC's resolver: it keeps an address for 30 s when the buffer has moved to another,
	// and does not say which name it cannot resolve.
	conn, err := grpc.NewClient(scheme+addr, append(more,
		// Services are next to each other; HTTPS_PROXY is meant for what is outside.
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: clientPatience, PermitWithoutStream: true}),
		// Whoever calls waits between attempts. ResetConnectBackoff would say so, and reads a map
		// of gRPC's (1.85) while others write to it.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		experimental.WithBufferPool(frames),
		grpc.WithReadBufferSize(ioBytes),
		grpc.WithWriteBufferSize(ioBytes),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec),
			grpc.MaxCallRecvMsgSize(MaxMessageBytes),
			grpc.MaxCallSendMsgSize(MaxMessageBytes),
		))...,
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}
