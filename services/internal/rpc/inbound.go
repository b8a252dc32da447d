package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// What a server's clients can make it hold besides what handlers keep. gRPC collects a message
// before anybody sees it, and opens the stream's window for all of it as soon as its length is
// known.
const (
	// maxUnfinished bounds the bytes of unfinished messages of all connections. Above half of it,
	// connections go on whose messages fit into the rest.
	maxUnfinished = 2 * MaxMessageBytes
	// freeUnfinished is what each connection may hold in any case, so that acks and health checks
	// always get through.
	freeUnfinished = 64 << 10
	// maxConnections bounds the connections, each with buffers of ioBytes.
	maxConnections = 512
	// maxStreamsOfConnection and maxCalls bound the calls that run, each of which may have
	// windowBytes unread.
	maxStreamsOfConnection = 128
	maxCalls               = 1024
	windowBytes            = 64 << 10
	connectionWindowBytes  = 4 << 20

	// While others wait, a connection may be cut that has brought nothing of its message for
	// stalled, or less than slowest bytes a second on the whole.
	stalled = 5 * time.Second
	slowest = 256 << 10
)

// inbound bounds the unfinished messages of a server's connections. While they have half of the
// limit, a connection is read from only when it holds little, or when what its messages still
// lack fits into the rest; those that lack least go first. So a message that is sent in one go
// gets through beside any number that are not. Connections that do not go on with their messages
// are cut while others wait, and so is the one that holds most when nobody can go on.
type inbound struct {
	limit int64
	log   *slog.Logger

	mu       sync.Mutex
	held     int64 // bytes of unfinished messages
	granted  int64 // bytes that connections may still bring of those, above half of the limit
	waiting  map[*inboundConn]bool
	changed  chan struct{} // closed and replaced when one that waits may go on
	conns    map[*inboundConn]struct{}
	pressure bool // connections have been cut since held was last 0
	refusing bool // of connections, as there are too many
	// makesRoom: what nobody has claimed goes when there are too many.
	makesRoom bool
}

func newInbound(limit int64, log *slog.Logger) *inbound {
	return &inbound{limit: limit, log: log, changed: make(chan struct{}),
		waiting: make(map[*inboundConn]bool), conns: make(map[*inboundConn]struct{})}
}

// inboundCredentials are credentials whose connections are counted.
type inboundCredentials struct {
	credentials.TransportCredentials
	in *inbound
}

// ServerHandshake implements credentials.TransportCredentials.
func (c inboundCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	if settled, ok := raw.(interface{ Settle() }); ok {
		settled.Settle() // from here on it is counted
	}
	counted, err := c.in.add(conn)
	return counted, info, err
}

// Clone implements credentials.TransportCredentials.
func (c inboundCredentials) Clone() credentials.TransportCredentials {
	return inboundCredentials{c.TransportCredentials.Clone(), c.in}
}

var errTooManyConnections = errors.New("too many connections")

func (in *inbound) add(conn net.Conn) (net.Conn, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.conns) >= maxConnections && in.makesRoom {
		in.makeRoomLocked()
	}
	if len(in.conns) >= maxConnections {
		if !in.refusing {
			in.log.Warn("too many connections; further ones are refused until some end", "connections", len(in.conns), "from", conn.RemoteAddr().String())
		}
		in.refusing = true
		_ = conn.Close() // it is refused
		return nil, errTooManyConnections
	}
	in.refusing = false
	c := &inboundConn{Conn: conn, in: in, gone: make(chan struct{})}
	c.messages.streams = make(map[uint32]*message)
	c.read.skip = len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	c.read.frame, c.read.data = c.messages.received, c.messages.data
	c.written.frame = c.messages.sent
	in.conns[c] = struct{}{}
	return c, nil
}

// makeRoomLocked cuts a connection that nobody has claimed, any of them: an honest one among many
// is most likely spared.
func (in *inbound) makeRoomLocked() {
	for c := range in.conns {
		if !c.claimed {
			delete(in.conns, c)
			close(c.gone)
			c.cut = true
			in.setLocked(c, 0, 0)
			go c.Conn.Close() // ends its Read
			return
		}
	}
}

// claim keeps a connection, and has a function called at its end. It returns false when the
// connection has ended.
func (in *inbound) claim(c *inboundConn, ended func()) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, known := in.conns[c]; !known {
		return false
	}
	c.claimed = true
	c.ended = append(c.ended, ended)
	return true
}

// admit waits until a connection may be read from.
func (in *inbound) admit(c *inboundConn) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for !in.mayReadLocked(c) {
		changed := in.changed
		in.waiting[c] = true
		in.mu.Unlock()
		timer := time.NewTimer(stalled / 20)
		var err error
		select {
		case <-changed:
		case <-timer.C:
		case <-c.gone:
			err = net.ErrClosed
		}
		timer.Stop()
		in.mu.Lock()
		delete(in.waiting, c)
		if err != nil {
			return err
		}
		in.cutLocked()
	}
	c.reading = time.Now()
	return nil
}

func (in *inbound) mayReadLocked(c *inboundConn) bool {
	switch {
	case c.held < freeUnfinished || c.granted > 0 || in.held+in.granted < in.limit/2:
		return true
	case in.held+in.granted+c.missing > in.limit:
		return false
	}
	for other := range in.waiting {
		if other != c && other.missing < c.missing {
			return false // it hears of the room, too
		}
	}
	c.granted = max(c.missing, 1)
	in.granted += c.granted
	return true
}

// cutLocked cuts connections when that is needed for others to go on.
func (in *inbound) cutLocked() {
	if in.held+in.granted < in.limit/2 {
		return
	}
	var largest *inboundConn
	now := time.Now()
	for c := range in.conns {
		if c.held < freeUnfinished {
			continue
		}
		if c.reading.IsZero() { // it waits for others, not for its peer
			if largest == nil || c.held > largest.held {
				largest = c
			}
			continue
		}
		waited := now.Sub(c.reading)
		if waited >= stalled || c.spent+waited >= stalled+time.Duration(c.held)*time.Second/slowest {
			in.cutOneLocked(c)
		}
	}
	if in.granted > 0 || largest == nil || in.held < in.limit/2 {
		return
	}
	for c := range in.waiting {
		if in.held+c.missing <= in.limit {
			return // it can go on
		}
	}
	in.cutOneLocked(largest)
}

func (in *inbound) cutOneLocked(c *inboundConn) {
	if !in.pressure {
		in.log.Warn("clients do not finish their messages, and hold up others; cutting their connections", "from", c.RemoteAddr().String(), "bytes", c.held, "of_all", in.held)
	}
	in.pressure = true
	c.cut = true
	in.setLocked(c, 0, 0)
	go c.Conn.Close() // ends its Read
}

// account notes what a connection holds after something was read, or written.
func (in *inbound) account(c *inboundConn, now time.Time, read bool) {
	held, missing := c.messages.held()
	in.mu.Lock()
	defer in.mu.Unlock()
	if read {
		c.spent += now.Sub(c.reading)
		c.reading = time.Time{}
	}
	if !c.cut {
		in.setLocked(c, held, missing)
	}
}

// setLocked notes what a connection holds and lacks.
func (in *inbound) setLocked(c *inboundConn, held, missing int64) {
	finished := held < c.held
	brought := held - c.held
	in.held += brought
	c.held, c.missing = held, missing
	if finished {
		c.spent = 0
		brought = c.granted // what it may still bring is decided anew
	}
	if used := min(max(brought, 0), c.granted); used > 0 {
		c.granted -= used
		in.granted -= used
	}
	if in.held == 0 {
		in.pressure = false
	}
	if finished && len(in.waiting) > 0 {
		close(in.changed)
		in.changed = make(chan struct{})
	}
}

func (in *inbound) remove(c *inboundConn) {
	in.mu.Lock()
	ended := c.ended
	c.ended = nil
	defer func() {
		in.mu.Unlock()
		for _, f := range ended {
			f()
		}
	}()
	if _, known := in.conns[c]; !known {
		return
	}
	delete(in.conns, c)
	close(c.gone)
	c.cut = true
	in.setLocked(c, 0, 0)
}

// inboundConn is a connection whose frames are looked at.
type inboundConn struct {
	net.Conn
	in       *inbound
	gone     chan struct{} // closed by Close
	messages messages
	read     frameScanner // of Read's caller
	written  frameScanner // of Write's

	// The lock of in guards these.
	held    int64         // as accounted
	missing int64         // what its messages lack
	granted int64         // what it may bring of that, above half of the limit
	spent   time.Duration // waited for the peer since the oldest message began, or another was finished
	reading time.Time     // since when the peer is waited for; zero when it is not
	cut     bool
	claimed bool     // by a caller that was let in
	ended   []func() // to be called at its end
}

// Read implements net.Conn.
func (c *inboundConn) Read(p []byte) (int, error) {
	if err := c.in.admit(c); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.read.scan(p[:n])
	c.in.account(c, time.Now(), true)
	return n, err
}

// Write implements net.Conn.
func (c *inboundConn) Write(p []byte) (int, error) {
	if c.written.scan(p); c.written.relevant {
		c.written.relevant = false
		c.in.account(c, time.Time{}, false)
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *inboundConn) Close() error {
	c.in.remove(c)
	return c.Conn.Close()
}

// calls bounds the calls that run at a time.
type calls struct {
	mu  sync.Mutex
	now int
}

// begin returns false when there are too many. Calls of the health service always begin.
func (c *calls) begin(ctx context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now >= maxCalls {
		return false
	}
	c.now++
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		c.now--
		c.mu.Unlock()
	})
	return true
}
