package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/internal/kerberos"
)

const dialTimeout = 10 * time.Second

// nameNodes has the one that was active last first, so that one that is away costs the time to
// find that out once.
func (f *FS) nameNodes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Clone(f.cluster.options.Addresses)
	if i := slices.Index(all, f.active); i > 0 {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, f.active)
	}
	return all
}

// connect returns a new client.
func (f *FS) connect(ctx context.Context) (*client, error) {
	options := f.cluster.options
	options.Addresses = f.nameNodes()
	at := strings.Join(options.Addresses, ",")

	c := &client{cluster: f.cluster, since: time.Now(), cutting: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	options.NamenodeDialFunc, options.DatanodeDialFunc = c.dialNameNode, c.dialDataNode
	var loginErr error
	if login := f.cluster.login; login != nil {
		if c.tickets, loginErr = login.Get(); c.tickets == nil {
			return nil, fmt.Errorf("connect to HDFS at %s: %w", at, loginErr)
		}
		options.KerberosClient = c.tickets.Client
	}
	stop := context.AfterFunc(ctx, c.cut)
	defer stop()
	var err error
	if c.Client, err = hdfs.NewClient(options); err != nil {
		// Whatever of the login may be the reason, the next one begins with the files.
		if c.tickets != nil && strings.Contains(err.Error(), "SASL") {
			f.cluster.login.Suspect(c.tickets)
		}
		c.close()
		return nil, fmt.Errorf("connect to HDFS at %s: %w", at, errors.Join(ctx.Err(), err, loginErr))
	}
	// The library would renew leases each second, under a name that has no files. Its own Close
	// would do this again.
	hidden(hidden(c.Client, "namenode").Interface(), "done").Close()
	return c, nil
}

func (f *FS) put(c *client) {
	c.mu.Lock()
	nameNode := c.nameNode
	c.mu.Unlock()
	f.mu.Lock()
	f.active = nameNode
	keep := !f.closed && len(f.idle) < maxIdle
	if keep {
		c.used = time.Now()
		f.idle = append(f.idle, c)
	}
	f.mu.Unlock()
	if !keep {
		c.close()
	}
}

// client is a hdfs.Client whose connections can be cut under it: it knows no contexts. One
// goroutine uses it at a time.
type client struct {
	*hdfs.Client
	cluster *cluster
	tickets *kerberos.Tickets // nil without Kerberos
	since   time.Time
	used    time.Time // when an operation ended last

	cutting chan struct{} // closed by cut
	// dialed takes what the library calls DataNodes with, from within its call; see dialBlock.
	dialed func()

	mu    sync.Mutex
	isCut bool
	// nameNode is the one that was connected to last.
	nameNode string
	conns    map[net.Conn]struct{}
}

var errCut = errors.New("the operation was given up")

func (c *client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	go func() {
		select {
		case <-c.cutting:
			cancel()
		case <-ctx.Done():
		}
	}()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		return nil, errors.Join(errCut, conn.Close())
	}
	c.conns[conn] = struct{}{}
	return &trackedConn{conn, c}, nil
}

// cut ends all that the client does.
func (c *client) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.isCut {
		c.isCut = true
		close(c.cutting)
	}
	for conn := range c.conns {
		_ = conn.Close() // whoever uses it gets the error
	}
}

func (c *client) close() {
	c.cut()
	if c.tickets != nil {
		c.cluster.login.Release(c.tickets)
	}
}

// dialNameNode is dial, and remembers whom it called.
func (c *client) dialNameNode(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	c.nameNode = addr
	c.mu.Unlock()
	return c.dial(ctx, network, addr)
}

type trackedConn struct {
	net.Conn
	c *client
}

// Close implements net.Conn.
func (t *trackedConn) Close() error {
	t.c.mu.Lock()
	delete(t.c.conns, t.Conn)
	t.c.mu.Unlock()
	return t.Conn.Close()
}
