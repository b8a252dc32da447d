package queue

import (
	"sync"
	"sync/atomic"
	"time"
)

// lock is a mutex that knows how long it was held at most lately.
type lock struct {
	mu      sync.Mutex
	now     func() time.Duration
	since   time.Duration // when it was locked
	from    time.Duration // when current began
	current atomic.Int64  // nanoseconds, the most since from
	before  atomic.Int64  // the most in the lockPeriod before
}

// lockPeriod is how long a hold is remembered at least.
const lockPeriod = time.Minute

var started = time.Now()

// sinceStart is a clock that never jumps.
func sinceStart() time.Duration { return time.Since(started) }

// Lock implements sync.Locker.
func (l *lock) Lock() {
	l.mu.Lock()
	l.since = l.now()
}

// Unlock implements sync.Locker.
func (l *lock) Unlock() {
	now := l.now()
	if now-l.from > lockPeriod {
		l.before.Store(l.current.Load())
		l.current.Store(0)
		l.from = now
	}
	if held := int64(now - l.since); held > l.current.Load() {
		l.current.Store(held)
	}
	l.mu.Unlock()
}

// longest is the longest hold of the last lockPeriod, or the last two.
func (l *lock) longest() time.Duration {
	return time.Duration(max(l.current.Load(), l.before.Load()))
}

// forget forgets how long it was held so far.
func (l *lock) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current.Store(0)
	l.before.Store(0)
}

// LongestHold is how long the queue's lock was held at most in the last minute or two.
func (q *Queue) LongestHold() time.Duration { return q.mu.longest() }
