package kafkaclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/telemetry"
	"github.com/spillwayio/spillway/services/internal/tlsconfig"
)

// Access is how the brokers of a cluster are reached: over TLS or not, authenticated or not. The
// zero value is neither. Files that it was made from are read again when they change, for new
// connections.
type Access struct {
	tls        *tlsconfig.Reloader
	serverName string // empty: the broker's host
	mechanism  sasl.Mechanism
	log        *slog.Logger // nil: nowhere
	// requests are timed when the Access was made with NewAccess.
	requests telemetry.Seconds
	// greet bounds the first exchange on a connection; tests make it shorter.
	greet time.Duration
}

func (a Access) greetTimeout() time.Duration { return cmp.Or(a.greet, greetTimeout) }

func (a Access) logger() *slog.Logger {
	if a.log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.log
}

// NewAccess reads the files that the configuration names. Both parts may be nil.
func NewAccess(t *config.TLS, s *config.SASL, log *slog.Logger) (Access, error) {
	a := Access{log: log, requests: telemetry.NewCallSeconds("kafka_request_seconds",
		"Time from a request to its answer, without what a quota has it wait. Fetches wait for records, and JoinGroup for other members.", "request")}
	if t != nil {
		var err error
		if a.tls, err = tlsconfig.Load(tlsconfig.Files{CA: t.CA, Cert: t.Cert, Key: t.Key}, log); err != nil {
			return a, fmt.Errorf("tls: %w", err)
		}
		a.serverName = t.ServerName
	}
	if s != nil && s.Mechanism == "GSSAPI" {
		a.mechanism = newGSSAPI(s, log)
	} else if s != nil {
		m := credentials{*s}
		if _, err := m.mechanism(); err != nil {
			return a, fmt.Errorf("sasl: %w", err)
		}
		a.mechanism = m
	}
	return a, nil
}

// Metrics returns what is measured of the requests to the cluster, under names that begin with a
// service's prefix, as in spillway_delivery_.
func (a Access) Metrics(prefix string) prometheus.Collector {
	return prometheus.WrapCollectorWithPrefix(prefix, a.requests)
}

// Close lets go of what new connections would log in with. Connections that are open stay so.
func (a Access) Close() {
	if m, ok := a.mechanism.(gssapiMechanism); ok {
		m.login.Close()
	}
}

// Dialer is for kafka-go's consumer groups, which try one broker after the other but let each
// take its time for the first answer: here a broker that accepts connections and does not answer
// is refused like one that does not accept.
func (a Access) Dialer(clientID string) *kafka.Dialer {
	return &kafka.Dialer{ClientID: clientID, Timeout: dialTimeout + a.greetTimeout() + loginTimeout, DialFunc: a.dialAlive, SASLMechanism: a.mechanism}
}

// dialAlive is dial, and makes sure that the other side answers as a broker does.
func (a Access) dialAlive(ctx context.Context, network, address string) (net.Conn, error) {
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := a.dial(dial, network, address)
	if err != nil {
		return nil, err
	}
	c := &connection{net: conn, protocol: protocol.NewConn(conn, ""), broker: &broker{transport: &Transport{access: a}, address: address}}
	if err := c.within(ctx, a.greetTimeout(), c.hello); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, conn.SetDeadline(time.Time{})
}

// dial does the TLS handshake itself: kafka-go would use one configuration for good.
func (a Access) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if err != nil || a.tls == nil {
		return conn, err
	}
	name := a.serverName
	if name == "" {
		if name, _, err = net.SplitHostPort(address); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	secure := tls.Client(conn, a.tls.Client(name))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", address, errors.Join(err, conn.Close()))
	}
	return secure, nil
}

// credentials are a sasl.Mechanism that reads the password or token anew for each connection.
type credentials struct{ config.SASL }

// Name implements sasl.Mechanism.
func (c credentials) Name() string { return c.Mechanism }

// Start implements sasl.Mechanism.
func (c credentials) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	m, err := c.mechanism()
	if err != nil {
		return nil, nil, err
	}
	return m.Start(ctx)
}

func (c credentials) mechanism() (sasl.Mechanism, error) {
	secret := c.Password
	if c.SecretFile != "" {
		b, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return nil, err
		}
		secret = strings.TrimRight(string(b), "\r\n")
	}
	switch c.Mechanism {
	case "PLAIN":
		return plain.Mechanism{Username: c.Username, Password: secret}, nil
	case "SCRAM-SHA-256":
		return scram.Mechanism(scram.SHA256, c.Username, secret)
	case "SCRAM-SHA-512":
		return scram.Mechanism(scram.SHA512, c.Username, secret)
	case "OAUTHBEARER":
		return bearer(secret), nil
	}
	return nil, fmt.Errorf("unknown mechanism %q", c.Mechanism)
}

// bearer is a token for OAUTHBEARER (RFC 7628).
type bearer string

// Name implements sasl.Mechanism.
func (bearer) Name() string { return "OAUTHBEARER" }

// Start implements sasl.Mechanism.
func (b bearer) Start(context.Context) (sasl.StateMachine, []byte, error) {
	return b, []byte("n,,\x01auth=Bearer " + string(b) + "\x01\x01"), nil
}

// Next implements sasl.StateMachine. A challenge is the reason of a refusal.
func (bearer) Next(_ context.Context, challenge []byte) (done bool, response []byte, err error) {
	if len(challenge) > 0 {
		return false, nil, fmt.Errorf("the broker refuses the token: %s", challenge)
	}
	return true, nil, nil
}
