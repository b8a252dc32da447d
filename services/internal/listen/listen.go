// Package listen bounds the connections of a port that nobody has vouched for yet.
package listen

import (
	"container/list"
	"net"
	"sync"
)

// Limit returns a listener with at most a number of connections that are not settled. Beyond it
// the oldest of those is closed, so that a newcomer gets its turn whatever others hold open.
func Limit(lis net.Listener, unsettled int) net.Listener {
	return &limited{Listener: lis, max: unsettled, open: list.New()}
}

type limited struct {
	net.Listener
	max int

	mu   sync.Mutex
	open *list.List // of *Conn that are not settled, the oldest first
}

// Conn is a connection of such a listener. Settle takes it out of the count for good.
type Conn struct {
	net.Conn
	lis *limited
	at  *list.Element // nil: settled or closed; the lock of lis guards it
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: conn, lis: l}
	l.mu.Lock()
	c.at = l.open.PushBack(c)
	var oldest *Conn
	if l.open.Len() > l.max {
		oldest = l.open.Remove(l.open.Front()).(*Conn)
		oldest.at = nil
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Conn.Close() // its user finds out
	}
	return c, nil
}

// Settle says that the connection is somebody's.
func (c *Conn) Settle() {
	c.lis.mu.Lock()
	defer c.lis.mu.Unlock()
	if c.at != nil {
		c.lis.open.Remove(c.at)
		c.at = nil
	}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.Settle()
	return c.Conn.Close()
}
