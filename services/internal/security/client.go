package security

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/tlsconfig"
)

// Dial is rpc.Dial with what this process shows to others. Files are read again when they change:
// certificates for the next connection, the token for the next call.
func (s *Security) Dial(addr string) (*grpc.ClientConn, error) {
	if err := s.mayShow(addr); err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if s.client != nil {
		transport = &clientCredentials{files: s.client, name: s.name}
	}
	if s.token == nil {
		return rpc.DialWith(addr, transport, nil)
	}
	return rpc.DialWith(addr, transport, tokenCredentials{s.token})
}

// mayShow keeps a token from going over a network in plain text.
func (s *Security) mayShow(addr string) error {
	if s.token != nil && s.client == nil && !s.insecure && !config.OnLoopback(addr) {
		return fmt.Errorf("the token would go to %s in plain text; want a CA (--ca, security.client.ca or security.tls), or security.insecure", addr)
	}
	return nil
}

// clientCredentials are those of the files as they are at each handshake.
type clientCredentials struct {
	files *tlsconfig.Reloader
	name  string // empty: the host
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.now(authority).ClientHandshake(ctx, authority, raw)
}

func (c *clientCredentials) now(authority string) credentials.TransportCredentials {
	name := c.name
	if name == "" {
		name = authority
		if host, _, err := net.SplitHostPort(authority); err == nil {
			name = host
		}
	}
	return credentials.NewTLS(c.files.Client(name))
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of clients")
}

// Info implements credentials.TransportCredentials.
func (c *clientCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", ServerName: c.name}
}

// Clone implements credentials.TransportCredentials.
func (c *clientCredentials) Clone() credentials.TransportCredentials {
	clone := *c
	return &clone
}

// OverrideServerName implements credentials.TransportCredentials.
func (c *clientCredentials) OverrideServerName(name string) error {
	c.name = name
	return nil
}

// tokenCredentials show the token of a file. That plain text is fine for it, where it is plain
// text, the configuration has said.
type tokenCredentials struct{ file *file }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t tokenCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := t.read()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (tokenCredentials) RequireTransportSecurity() bool { return false }

// read returns the first token of the file.
func (t tokenCredentials) read() (string, error) {
	data, err := t.file.content()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return line, nil
		}
	}
	return "", errors.New(t.file.path + " has no token")
}

// HTTPClient returns a client for the HTTP ports of services, which shows the same.
func (s *Security) HTTPClient() *http.Client {
	transport := &http.Transport{DisableKeepAlives: true} // without the proxy of the environment
	if s.client != nil {
		transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			name := s.name
			if name == "" {
				name, _, _ = net.SplitHostPort(address)
			}
			return (&tls.Dialer{Config: s.client.Client(name)}).DialContext(ctx, network, address)
		}
	}
	return &http.Client{Transport: authorized{transport, s}}
}

// authorized adds the token.
type authorized struct {
	next http.RoundTripper
	s    *Security
}

// RoundTrip implements http.RoundTripper.
func (a authorized) RoundTrip(request *http.Request) (*http.Response, error) {
	if a.s.token != nil {
		if err := a.s.mayShow(request.URL.Host); err != nil && request.URL.Scheme == "http" {
			return nil, err
		}
		token, err := tokenCredentials{a.s.token}.read()
		if err != nil {
			return nil, err
		}
		request = request.Clone(request.Context())
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return a.next.RoundTrip(request)
}
