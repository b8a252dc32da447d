package buffer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// flightBytes bounds the payloads of a process that were taken from the window, or read from
	// the store, and are not yet written to the network. A single one may be larger than a
	// stream's part, and none is larger than this.
	flightBytes = 48 << 20
	// stalledAfter is when a stream that takes nothing of what was sent to it loses its
	// connection, if others wait for the memory.
	stalledAfter = 30 * time.Second
)

var errStalled = errors.New("the session does not read what it has credit for, and others wait for the memory")

// flight divides flightBytes among the streams of sessions that have something to send, and leaves
// a part for one more. Each may have an equal part on its way, and at least one payload. What many
// slow streams keep for that reason others wait for, in turn, until the slow ones take it or are
// closed.
type flight struct {
	total int64

	mu      sync.Mutex
	free    int64
	busy    int // streams with something on its way
	streams map[*flightStream]struct{}
	waiting []*flightStream // for free, in turn
}

// flightStream is the part of one stream. One goroutine calls acquire.
type flightStream struct {
	f    *flight
	drop func() // closes the connection

	// Guarded by flight.mu.
	bytes int64 // on their way
	moved time.Time
	ended bool
	wake  chan struct{} // has room for one: look again
}

func newFlight(total int64) *flight {
	return &flight{total: total, free: total, streams: make(map[*flightStream]struct{})}
}

// join adds a stream. Its owner calls leave.
func (f *flight) join(drop func()) *flightStream {
	s := &flightStream{f: f, drop: drop, wake: make(chan struct{}, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams[s] = struct{}{}
	return s
}

// leave gives back what the stream has on its way.
func (s *flightStream) leave() {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	s.ended = true
	f.free += s.bytes
	if s.bytes > 0 {
		f.busy--
	}
	s.bytes = 0
	delete(f.streams, s)
	s.stepAsideLocked()
	f.wakeLocked()
}

// acquire waits until a payload of n bytes may be on its way. Sent gives them back; it may be
// called after leave.
func (s *flightStream) acquire(ctx context.Context, n int64) (sent func(), err error) {
	f := s.f
	n = min(n, f.total)
	f.mu.Lock()
	defer f.mu.Unlock()
	for !s.takesLocked(n) {
		if err := s.waitLocked(ctx); err != nil {
			s.stepAsideLocked()
			f.wakeLocked()
			return nil, err
		}
	}
	s.stepAsideLocked()
	if s.bytes == 0 && n > 0 {
		s.moved = time.Now()
		f.busy++
	}
	f.free -= n
	s.bytes += n
	f.wakeLocked()
	return sync.OnceFunc(func() { s.sent(n) }), nil
}

// takesLocked says whether n bytes more may be on their way now. If they are the stream's to have
// and only others keep them from it, it gets in line.
func (s *flightStream) takesLocked(n int64) bool {
	f := s.f
	if s.bytes > 0 && s.bytes+n > f.total/int64(min(len(f.streams), f.busy+len(f.waiting)+1)) {
		s.stepAsideLocked()
		f.wakeLocked()
		return false
	}
	at := slices.Index(f.waiting, s)
	if n <= f.free && (at == 0 || len(f.waiting) == 0) {
		return true
	}
	if at < 0 {
		f.waiting = append(f.waiting, s)
	}
	return false
}

// waitLocked lets go of the lock until something has changed, or for a second.
func (s *flightStream) waitLocked(ctx context.Context) error {
	f := s.f
	f.mu.Unlock()
	defer f.mu.Lock()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-s.wake:
	case <-timer.C:
		f.dropStalled(s)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// dropStalled closes the connections of streams that have taken nothing for long, when s is in
// line for memory.
func (f *flight) dropStalled(s *flightStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.waiting, s) {
		return
	}
	for other := range f.streams {
		if other != s && other.bytes > 0 && time.Since(other.moved) > stalledAfter {
			go other.drop()
		}
	}
}

// stepAsideLocked leaves the line.
func (s *flightStream) stepAsideLocked() {
	s.f.waiting = slices.DeleteFunc(s.f.waiting, func(x *flightStream) bool { return x == s })
}

// wakeLocked has the first in line look again.
func (f *flight) wakeLocked() {
	if len(f.waiting) > 0 {
		f.waiting[0].signal()
	}
}

func (s *flightStream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *flightStream) sent(n int64) {
	f := s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.ended {
		return
	}
	if s.bytes == n && n > 0 {
		f.busy--
	}
	s.bytes -= n
	f.free += n
	s.moved = time.Now()
	s.signal()
	f.wakeLocked()
}
