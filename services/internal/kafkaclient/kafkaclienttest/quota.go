// Package kafkaclienttest has fakes of what brokers do to clients.
package kafkaclienttest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Quota enforces a quota on the connections that its listeners accept, as brokers do: an answer
// names a throttle time, and nothing is read from its connection until that time is over. The
// zero value throttles nothing.
type Quota struct {
	// Throttle is the throttle time after a request, by its API key and size.
	Throttle func(key int16, bytes int) time.Duration
	// Delays has the answer delayed by the throttle time instead, as brokers before Kafka 2.0 do.
	Delays bool

	mu    sync.Mutex
	muted map[string]time.Time // by the listener's address
	early int
	named int
}

// Early is the number of requests that came from a client that had been told to wait longer.
func (q *Quota) Early() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.early
}

// Named is the number of answers that named a throttle time.
func (q *Quota) Named() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.named
}

// Listen is for kfake.ListenFn.
func (q *Quota) Listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	return &listener{l, q}, err
}

type listener struct {
	net.Listener
	quota *Quota
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, quota: l.quota, broker: l.Addr().String(), asked: make(map[int32]asked)}, nil
}

// conn is the broker's side of a connection.
type conn struct {
	net.Conn
	quota  *Quota
	broker string

	in  []byte // a request that is not read yet
	out []byte // the part of an answer that was written

	mu    sync.Mutex
	until time.Time // the end of the mute
	asked map[int32]asked
}

// asked is a request without an answer.
type asked struct {
	key, version int16
	bytes        int
}

// Read yields whole requests only.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.in) == 0 {
		if err := c.request(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *conn) request() error {
	var size [4]byte
	if _, err := io.ReadFull(c.Conn, size[:1]); err != nil {
		return err
	}
	c.quota.arrived(c.broker)
	for { // the answer that mutes has been written by now, since one request at a time is under way
		c.mu.Lock()
		left := time.Until(c.until)
		c.mu.Unlock()
		if left <= 0 {
			break
		}
		timer := time.NewTimer(left)
		<-timer.C
	}
	if _, err := io.ReadFull(c.Conn, size[1:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	c.in = append(size[:], make([]byte, n)...)
	if _, err := io.ReadFull(c.Conn, c.in[4:]); err != nil {
		return err
	}
	r := asked{int16(binary.BigEndian.Uint16(c.in[4:])), int16(binary.BigEndian.Uint16(c.in[6:])), n}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[int32(binary.BigEndian.Uint32(c.in[8:]))] = r
	return nil
}

// arrived counts a request that should have waited.
func (q *Quota) arrived(broker string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Now().Before(q.muted[broker]) {
		q.early++
	}
}

// Write passes whole answers on.
func (c *conn) Write(b []byte) (int, error) {
	c.out = append(c.out, b...)
	for len(c.out) >= 4 {
		n := int(binary.BigEndian.Uint32(c.out)) + 4
		if len(c.out) < n {
			break
		}
		if err := c.answer(c.out[:n]); err != nil {
			return 0, err
		}
		c.out = c.out[n:]
	}
	return len(b), nil
}

func (c *conn) answer(frame []byte) error {
	id := int32(binary.BigEndian.Uint32(frame[4:]))
	c.mu.Lock()
	r, known := c.asked[id]
	delete(c.asked, id)
	c.mu.Unlock()
	if !known {
		return errors.New("an answer without a request")
	}
	var d time.Duration
	if c.quota.Throttle != nil {
		d = c.quota.Throttle(r.key, r.bytes).Truncate(time.Millisecond) // what is named, and kept to
	}
	if d <= 0 {
		_, err := c.Conn.Write(frame)
		return err
	}
	frame, err := throttled(frame, r, d)
	if err != nil {
		return err
	}
	if c.quota.Delays {
		timer := time.NewTimer(d)
		<-timer.C
	} else {
		c.mu.Lock()
		c.until = time.Now().Add(d)
		c.mu.Unlock()
		// What a client sent before it could know is not early.
		defer c.quota.mute(c.broker, c.until)
	}
	_, err = c.Conn.Write(frame)
	return err
}

func (q *Quota) mute(broker string, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.named++
	if q.muted == nil {
		q.muted = make(map[string]time.Time)
	}
	if until.After(q.muted[broker]) {
		q.muted[broker] = until
	}
}

// throttled writes a throttle time into an answer.
func throttled(frame []byte, r asked, d time.Duration) ([]byte, error) {
	request := kmsg.RequestForKey(r.key)
	request.SetVersion(r.version)
	answer := request.ResponseKind()
	throttle, ok := answer.(kmsg.SetThrottleResponse)
	if !ok {
		return frame, nil
	}
	body := kbin.Reader{Src: frame[8:]}
	const apiVersions = 18
	tagged := request.IsFlexible() && r.key != apiVersions
	if tagged {
		kmsg.SkipTags(&body)
	}
	if err := answer.ReadFrom(body.Src); err != nil {
		return nil, err
	}
	throttle.SetThrottle(int32(d.Milliseconds()))
	out := append([]byte{0, 0, 0, 0}, frame[4:8]...)
	if tagged {
		out = append(out, 0)
	}
	out = answer.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out, nil
}

// Silent listens on an address of its own and accepts connections that it never answers, like a
// stopped broker or a load balancer without a backend. The returned function ends it.
func Silent() (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var all []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			all = append(all, c)
		}
		for _, c := range all {
			_ = c.Close()
		}
	}()
	return l.Addr().String(), func() { _ = l.Close(); <-done }, nil
}
