package kafkaclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// greetTimeout bounds the first exchange on a connection. Something that accepts connections
	// and does not answer by then is not a broker at work: it is stopped, or a load balancer has
	// nothing behind it.
	greetTimeout = 5 * time.Second
	// loginTimeout bounds the SASL exchange.
	loginTimeout = 15 * time.Second
	// idleTimeout is how long an unused connection is kept.
	idleTimeout = 30 * time.Second
	// maxMessageBytes bounds answers other than fetches.
	maxMessageBytes = 256 << 20
)

// broker keeps the idle connections to one address.
type broker struct {
	transport *Transport
	address   string

	mu      sync.Mutex
	retired bool // connections are closed when they are given back
	epoch   int  // connections of an epoch before are not used again
	idle    []*connection
	failed  time.Time // of the last connection or exchange; zero when the last one succeeded
	// delays is the throttle time of the last answer of a broker that delays its answers instead
	// of muting the connection after them (before Kafka 2.0).
	delays time.Duration
}

// connection is one connection to a broker. One exchange at a time uses it.
type connection struct {
	net      net.Conn
	protocol *protocol.Conn
	broker   *broker
	epoch    int
	versions map[int16]int16 // the highest version of each API that the broker knows
	expires  time.Time       // when the broker wants a new login; zero: never
	timer    *time.Timer     // ends it when it is idle for too long
	id       int32           // of the last request that this package encoded itself
}

// connect opens a connection and says hello on it.
func (b *broker) connect(ctx context.Context) (*connection, error) {
	b.mu.Lock()
	epoch := b.epoch
	b.mu.Unlock()
	c := &connection{broker: b, epoch: epoch}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var err error
	if c.net, err = b.transport.access.dial(dial, "tcp", b.address); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", b.address, err)
	}
	c.protocol = protocol.NewConn(c.net, b.transport.ClientID)
	err = c.within(ctx, b.transport.access.greetTimeout(), c.hello)
	if err == nil && b.transport.access.mechanism != nil {
		err = c.within(ctx, loginTimeout, func() error { return c.login(ctx, b.transport.access.mechanism) })
	}
	if err != nil {
		return nil, errors.Join(err, c.net.Close())
	}
	return c, nil
}

// within does an exchange that ends after a timeout, and with ctx.
func (c *connection) within(ctx context.Context, timeout time.Duration, do func() error) error {
	deadline := time.Now().Add(timeout)
	until, ok := ctx.Deadline()
	shorter := ok && until.Before(deadline)
	if shorter {
		deadline = until
	}
	if err := c.net.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(time.Unix(1, 0)) }) // it is closed after that
	err := do()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline may be set at any time from now on
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if shorter && isTimeout(err) {
		return context.DeadlineExceeded
	}
	if isTimeout(err) {
		return fmt.Errorf("%s: no answer within %s: %w", c.broker.address, timeout, err)
	}
	return err
}

func isTimeout(err error) bool {
	var timedOut net.Error
	return errors.As(err, &timedOut) && timedOut.Timeout()
}

// hello learns which versions the broker knows. It needs no login.
func (c *connection) hello() error {
	request := kmsg.NewPtrApiVersionsRequest()
	answer, err := c.ask(request)
	if err != nil {
		return fmt.Errorf("greet %s (is this a Kafka broker, and without TLS or with it as configured?): %w", c.broker.address, err)
	}
	response := answer.(*kmsg.ApiVersionsResponse)
	if response.ErrorCode != 0 {
		return fmt.Errorf("greet %s: %w", c.broker.address, kafka.Error(response.ErrorCode))
	}
	c.versions = make(map[int16]int16, len(response.ApiKeys))
	chosen := make(map[protocol.ApiKey]int16, len(response.ApiKeys))
	for _, api := range response.ApiKeys {
		c.versions[api.ApiKey] = api.MaxVersion
		key := protocol.ApiKey(api.ApiKey)
		chosen[key] = key.SelectVersion(api.MinVersion, api.MaxVersion)
	}
	c.protocol.SetVersions(chosen)
	return nil
}

// login does the SASL exchange.
func (c *connection) login(ctx context.Context, mechanism sasl.Mechanism) error {
	answer, err := c.protocol.RoundTrip(&saslhandshake.Request{Mechanism: mechanism.Name()})
	if err == nil {
		if code := answer.(*saslhandshake.Response).ErrorCode; code != 0 {
			err = kafka.Error(code)
		}
	}
	if err != nil {
		return fmt.Errorf("log in at %s by %s: %w", c.broker.address, mechanism.Name(), err)
	}
	host, port, err := splitAddress(c.broker.address)
	if err != nil {
		return err
	}
	state, data, err := mechanism.Start(sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: port}))
	for done := false; err == nil && !done; {
		began := time.Now()
		answer, err = c.protocol.RoundTrip(&saslauthenticate.Request{AuthBytes: data})
		if errors.Is(err, io.EOF) {
			err = kafka.SASLAuthenticationFailed // brokers say so by closing the connection, too
		}
		if err != nil {
			break
		}
		response := answer.(*saslauthenticate.Response)
		if err = described(response.ErrorCode, response.ErrorMessage); err != nil {
			break
		}
		if life := time.Duration(response.SessionLifetimeMs) * time.Millisecond; life > 0 {
			c.expires = began.Add(life * 9 / 10)
		}
		done, data, err = state.Next(ctx, response.AuthBytes)
	}
	if err != nil {
		if m, ok := state.(interface{ Refused() }); ok && errors.Is(err, kafka.SASLAuthenticationFailed) {
			m.Refused()
		}
		return fmt.Errorf("log in at %s by %s: %w", c.broker.address, mechanism.Name(), err)
	}
	return nil
}

// described is the error of a code, with the broker's own words where there are any; nil for code
// 0.
func described(code int16, message string) error {
	switch {
	case code == 0:
		return nil
	case message == "":
		return kafka.Error(code)
	}
	return fmt.Errorf("%w: %s", kafka.Error(code), message)
}

// grab returns an idle connection, or a new one.
func (b *broker) grab(ctx context.Context) (*connection, error) {
	for {
		b.mu.Lock()
		n := len(b.idle)
		if n == 0 {
			b.mu.Unlock()
			return b.connect(ctx)
		}
		c := b.idle[n-1]
		b.idle = b.idle[:n-1]
		b.mu.Unlock()
		c.timer.Stop()
		if c.expires.IsZero() || time.Now().Before(c.expires) {
			return c, nil
		}
		_ = c.net.Close() // idle: nothing is lost
	}
}

// release gives a connection back after a whole exchange.
func (b *broker) release(c *connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = time.Time{}
	if b.retired || c.epoch != b.epoch {
		_ = c.net.Close()
		return
	}
	b.idle = append(b.idle, c)
	c.timer = time.AfterFunc(idleTimeout, func() {
		b.mu.Lock()
		at := slices.Index(b.idle, c)
		if at >= 0 {
			b.idle = slices.Delete(b.idle, at, at+1)
		}
		b.mu.Unlock()
		if at >= 0 {
			_ = c.net.Close()
		}
	})
}

// broken notes that a connection failed. What broke one has most likely broken the others.
func (b *broker) broken() {
	b.mu.Lock()
	b.failed = time.Now()
	b.mu.Unlock()
	b.closeIdle(false)
}

// closeIdle closes the idle connections, and lets those in use be closed after their exchange.
func (b *broker) closeIdle(retire bool) {
	b.mu.Lock()
	idle := b.idle
	b.idle = nil
	b.epoch++
	b.retired = b.retired || retire
	b.mu.Unlock()
	for _, c := range idle {
		c.timer.Stop()
		_ = c.net.Close()
	}
}

// failedAt is when the broker last failed; the zero time when it works, or was not tried.
func (b *broker) failedAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// exchange sends a request and reads its answer. It waits before that for as long as the broker
// mutes this client; patience is the time for the answer, and begins with the sending.
func (b *broker) exchange(ctx context.Context, message protocol.Message, patience time.Duration) (protocol.Message, error) {
	throttle := b.transport.throttle
	if err := throttle.Wait(ctx, b.address); err != nil {
		return nil, err
	}
	c, err := b.grab(ctx)
	if err != nil {
		if ctx.Err() == nil {
			b.broken()
		}
		return nil, err
	}
	b.mu.Lock()
	patience += 2 * b.delays
	b.mu.Unlock()
	if m, ok := message.(interface{ bind(*connection) }); ok {
		m.bind(c)
	}
	var answer protocol.Message
	began := time.Now()
	err = c.within(ctx, patience, func() (err error) {
		answer, err = c.protocol.RoundTrip(message)
		return err
	})
	if ctx.Err() == nil {
		b.transport.access.requests.Since(began, kmsg.NameForKey(int16(message.ApiKey())))
	}
	if err != nil {
		if ctx.Err() == nil {
			b.broken()
		}
		return nil, errors.Join(err, c.net.Close())
	}
	throttled := throttleTime(answer)
	const mutesAfterAnswer = 6 // the version of Produce that came with it
	if c.versions[int16(protocol.Produce)] >= mutesAfterAnswer {
		throttle.Note(b.address, throttled)
	} else {
		b.mu.Lock()
		b.delays = throttled
		b.mu.Unlock()
	}
	b.release(c)
	return answer, nil
}

// Throttled is an answer that says itself how long the broker throttles the client.
type Throttled interface{ ThrottleTime() time.Duration }

// throttleTime is how long the broker throttles the client after an answer.
func throttleTime(answer protocol.Message) time.Duration {
	switch m := answer.(type) {
	case nil:
		return 0
	case Throttled:
		return m.ThrottleTime()
	}
	// All of kafka-go's answers that have it name it alike.
	v := reflect.Indirect(reflect.ValueOf(answer))
	if v.Kind() == reflect.Struct {
		if f := v.FieldByName("ThrottleTimeMs"); f.IsValid() && f.CanInt() {
			return time.Duration(f.Int()) * time.Millisecond
		}
	}
	return 0
}

// encoded is a request and its answer of franz-go's kmsg, which knows newer versions than
// kafka-go.
type encoded struct {
	kmsg.Request
	kmsg.Response
	connection *connection
}

func (m *encoded) bind(c *connection) { m.connection = c }

// ApiKey implements protocol.Message.
func (m *encoded) ApiKey() protocol.ApiKey { return protocol.ApiKey(m.Request.Key()) }

// Required implements protocol.RawExchanger.
func (m *encoded) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange implements protocol.RawExchanger.
func (m *encoded) RawExchange(io.ReadWriter) (protocol.Message, error) {
	known, ok := m.connection.versions[m.Request.Key()]
	if !ok {
		return nil, fmt.Errorf("%s does not know the request %s; Kafka 0.11 or later is needed", m.connection.broker.address, kmsg.NameForKey(m.Request.Key()))
	}
	m.Request.SetVersion(min(known, m.Request.MaxVersion()))
	answer, err := m.connection.ask(m.Request)
	m.Response = answer
	return m, err
}

// ThrottleTime implements Throttled.
func (m *encoded) ThrottleTime() time.Duration {
	if t, ok := m.Response.(kmsg.ThrottleResponse); ok {
		ms, _ := t.Throttle()
		return time.Duration(ms) * time.Millisecond
	}
	return 0
}

// ask sends a request of kmsg in the version that it has, and reads the answer.
func (c *connection) ask(request kmsg.Request) (kmsg.Response, error) {
	c.id++
	id := c.id
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID(c.broker.transport.ClientID))
	if _, err := c.protocol.Write(formatter.AppendRequest(nil, request, id)); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(c.protocol, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < 4 || n > maxMessageBytes {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	// Memory grows with what comes, not with what the length says.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, c.protocol, int64(n)); err != nil {
		return nil, err
	}
	r := kbin.Reader{Src: body.Bytes()}
	if got := r.Int32(); got != id {
		return nil, fmt.Errorf("the answer has correlation id %d, want %d", got, id)
	}
	response := request.ResponseKind()
	const apiVersions = 18 // whose answers have the old header in all versions
	if request.IsFlexible() && request.Key() != apiVersions {
		kmsg.SkipTags(&r)
	}
	return response, response.ReadFrom(r.Src)
}
