package rpc

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// Local is a listener that only this process can reach: for services that run in one process,
// whose connections then never touch a network.
type Local struct{ *bufconn.Listener }

// NewLocal returns a listener for Server.Serve, which closes it.
func NewLocal() *Local { return &Local{bufconn.Listen(ioBytes)} }

// Dial returns a connection to whoever serves the listener, as the function Dial does. It takes
// no address but the one of the configuration, which messages name. The caller closes it.
func (l *Local) Dial(addr string) (*grpc.ClientConn, error) {
	return dial(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return l.DialContext(ctx)
	}))
}
