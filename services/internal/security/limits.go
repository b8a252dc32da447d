package security

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// freeBytes is the size up to which a message always passes: acks and the like must get through
// whatever its sender has under way.
const freeBytes = 64 << 10

// limits bounds what each identity has at a time. Callers without one share theirs.
type limits struct {
	audit *Audit

	mu      sync.Mutex
	conf    config.Limits
	used    map[string]*usage // by Identity.String
	watches int
}

// usage is what an identity has at a time.
type usage struct {
	connections map[any]bool
	streams     int
	sessions    int
	bytes       int64
	freed       chan struct{} // closed and replaced when bytes were freed for one that waits
}

func newLimits(c config.Limits, audit *Audit) *limits {
	return &limits{conf: c, audit: audit, used: make(map[string]*usage)}
}

// set changes what may be had from now on. Whoever has more keeps it.
func (l *limits) set(c config.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conf = c
	for _, u := range l.used { // there may be room now
		close(u.freed)
		u.freed = make(chan struct{})
	}
}

// usageLocked returns the usage of an identity.
func (l *limits) usageLocked(who string) *usage {
	u := l.used[who]
	if u == nil {
		u = &usage{connections: make(map[any]bool), freed: make(chan struct{})}
		l.used[who] = u
	}
	return u
}

// tidyLocked forgets an identity that has nothing any more.
func (l *limits) tidyLocked(who string, u *usage) {
	if len(u.connections) == 0 && u.streams == 0 && u.sessions == 0 && u.bytes == 0 {
		delete(l.used, who)
	}
}

// begin counts a call, and its connection, until the function that it returns is called. A session
// is a stream that records flow in.
func (l *limits) begin(ctx context.Context, who string, session bool) (end func(), err error) {
	l.mu.Lock()
	u := l.usageLocked(who)
	conn := rpc.SameConnection(ctx)
	switch {
	case conn != nil && !u.connections[conn] && len(u.connections) >= l.conf.Connections:
		err = fmt.Errorf("has %d connections; security.limits.connections allows no more", len(u.connections))
	case u.streams >= l.conf.Streams:
		err = fmt.Errorf("has %d calls running; security.limits.streams allows no more", u.streams)
	case session && u.sessions >= l.conf.Sessions:
		err = fmt.Errorf("has %d sessions; security.limits.sessions allows no more", u.sessions)
	}
	if err != nil {
		l.tidyLocked(who, u)
		l.mu.Unlock()
		return nil, rpc.Error(codes.ResourceExhausted, "LIMIT_OF_IDENTITY", 0, "%s %v", who, err)
	}
	u.streams++
	if session {
		u.sessions++
	}
	isNew := conn != nil && !u.connections[conn]
	if isNew {
		u.connections[conn] = true
	}
	l.mu.Unlock()
	if isNew {
		forget := func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(u.connections, conn)
			l.tidyLocked(who, u)
		}
		if !rpc.Claim(ctx, forget) {
			forget()
		}
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		u.streams--
		if session {
			u.sessions--
		}
		l.tidyLocked(who, u)
	}, nil
}

// take counts the bytes of a message, and waits until there is room; give counts them out. What is
// larger than all of the limit passes alone.
func (l *limits) take(ctx context.Context, who string, n int64) error {
	for {
		l.mu.Lock()
		u := l.usageLocked(who)
		if u.bytes == 0 || u.bytes+n <= int64(l.conf.Bytes) {
			u.bytes += n
			l.mu.Unlock()
			return nil
		}
		freed := u.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *limits) give(who string, n int64) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.usageLocked(who)
	u.bytes -= n
	close(u.freed)
	u.freed = make(chan struct{})
	l.tidyLocked(who, u)
}

// beginWatch counts a stream of somebody who needs no identity.
func (l *limits) beginWatch() (end func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watches >= maxWatches {
		return nil, fmt.Errorf("%d health checks watch already", l.watches)
	}
	l.watches++
	return func() {
		l.mu.Lock()
		l.watches--
		l.mu.Unlock()
	}, nil
}
