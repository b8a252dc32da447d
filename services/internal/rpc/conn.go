package rpc

import (
	"context"
	"crypto/tls"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// connCredentials are credentials that remember the connection, for CloseConnection.
type connCredentials struct {
	credentials.TransportCredentials
}

// connInfo implements credentials.AuthInfo.
type connInfo struct {
	credentials.AuthInfo
	conn net.Conn
}

// countedCredentials adds to c what a server's connections need; nil is plain text.
func countedCredentials(c credentials.TransportCredentials, in *inbound) credentials.TransportCredentials {
	if c == nil {
		c = insecure.NewCredentials()
	}
	return connCredentials{inboundCredentials{c, in}}
}

// Claim says that the connection of the call that a server's handler has ctx of is somebody's: it
// does not have to make room for newcomers. The function is called when the connection ends; false
// says that it has ended.
func Claim(ctx context.Context, ended func()) bool {
	c, ok := connectionOf(ctx).(*inboundConn)
	return ok && c.in.claim(c, ended)
}

// connectionOf returns the connection of a call; nil where there is none.
func connectionOf(ctx context.Context) net.Conn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(connInfo)
	return info.conn
}

// TLSState returns the state of the connection of a call; nil when it is not TLS.
func TLSState(ctx context.Context) *tls.ConnectionState {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, _ := p.AuthInfo.(connInfo)
	if t, ok := info.AuthInfo.(credentials.TLSInfo); ok {
		return &t.State
	}
	return nil
}

// SameConnection returns a value that the calls of one connection share, and no others.
func SameConnection(ctx context.Context) any { return connectionOf(ctx) }

// ServerHandshake implements credentials.TransportCredentials.
func (c connCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	return conn, connInfo{info, conn}, err
}

// Clone implements credentials.TransportCredentials.
func (c connCredentials) Clone() credentials.TransportCredentials {
	return connCredentials{c.TransportCredentials.Clone()}
}

// CloseConnection closes the connection of the call that a server's handler has ctx of, and ends
// all calls on it. To end only the call would keep what was sent and not read, for as long as the
// other side does not read it.
func CloseConnection(ctx context.Context) {
	if conn := connectionOf(ctx); conn != nil {
		_ = conn.Close() // it may be closed already
	}
}
