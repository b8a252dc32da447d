package rpc

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
)

// Dial returns a connection to host:port without waiting for it: calls fail with UNAVAILABLE while the
// other side is away, and the connection comes back by itself, trying at least every five seconds. A dead
// peer is noticed within twenty seconds. The caller closes the connection.
func Dial(addr string) (*grpc.ClientConn, error) {
	// Without gRPC's resolver: it keeps an address for 30 s when the buffer has moved to another, and does not
	// say which name it cannot resolve.
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// Services are next to each other; HTTPS_PROXY is meant for what is outside.
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		experimental.WithBufferPool(frames),
		grpc.WithReadBufferSize(ioBytes),
		grpc.WithWriteBufferSize(ioBytes),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec),
			grpc.MaxCallRecvMsgSize(MaxMessageBytes),
			grpc.MaxCallSendMsgSize(MaxMessageBytes),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}
