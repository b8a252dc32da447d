package ingest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// memory bounds what the sources of one queue hold: ingest.memory, divided by the number of
// queues. It has three parts, so that a step never waits for memory that only a later step gives
// back:
//
//	arrived (half) → unpacked (an eighth) → batches (the rest) → the buffer's answers
//
// A holder of one part may wait for the parts to its right, never for its own or one to its left.
type memory struct {
	arrived  *budget // records as they came from Kafka
	unpacked *budget // decompressors and what they have in memory
	batches  *budget // payloads in the making, and those without an answer of the buffer
	kept     atomic.Int64

	waiters atomic.Int32 // for room
	mu      sync.Mutex
	free    chan struct{} // closed when the queue takes something; nil: nobody waits
}

// oversize are the slots of the process. Each part has its own: what arrived and is larger than
// its part is often larger than the next one when it is unpacked.
type oversize struct{ arrived, unpacked *slot }

func newMemory(limit int64, o oversize) *memory {
	return &memory{
		arrived:  newBudget(limit/2, o.arrived),
		unpacked: newBudget(limit/8, o.unpacked),
		batches:  newBudget(limit-limit/2-limit/8, nil),
	}
}

func (m *memory) held() int64 { return m.arrived.held() + m.unpacked.held() + m.batches.held() }

// keep says whether a refused batch may be kept until the buffer takes it. Those that are kept
// leave room for the partitions that are not refused.
func (m *memory) keep(bytes int64) bool {
	for {
		kept := m.kept.Load()
		if kept > 0 && kept+bytes > m.batches.limit/2 {
			return false
		}
		if m.kept.CompareAndSwap(kept, kept+bytes) {
			return true
		}
	}
}

func (m *memory) unkeep(bytes int64) { m.kept.Add(-bytes) }

// room says that the queue has taken something.
func (m *memory) room() {
	if m.waiters.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.free != nil {
		close(m.free)
		m.free = nil
	}
}

// awaitRoom waits until the queue takes something, but not less and not more than the times
// given, or until ctx ends.
func (m *memory) awaitRoom(ctx context.Context, least, most time.Duration) {
	m.waiters.Add(1)
	defer m.waiters.Add(-1)
	m.mu.Lock()
	if m.free == nil {
		m.free = make(chan struct{})
	}
	free := m.free
	m.mu.Unlock()
	timer := time.NewTimer(most)
	defer timer.Stop()
	sleep(ctx, least)
	select {
	case <-free:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// slot is had by one at a time in the process: by what is larger than its whole budget.
type slot struct {
	free    chan struct{} // has room for one
	waiting atomic.Int32
}

func newSlot() *slot { return &slot{free: make(chan struct{}, 1)} }

// take waits for the slot.
func (s *slot) take(ctx context.Context, interrupt <-chan struct{}) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	select {
	case s.free <- struct{}{}:
		return nil
	case <-interrupt:
		return errInterrupted
	case <-ctx.Done():
		return ctx.Err()
	}
}

// budget bounds bytes. Those who wait are served in turn, so that none starves beside a busy one.
// What is larger than the whole budget gets it alone, and takes oversize.
type budget struct {
	limit    int64
	oversize *slot // nil: no such bound

	mu      sync.Mutex
	used    int64
	waiting []waiter
}

type waiter struct {
	bytes   int64
	granted chan struct{}
}

var errInterrupted = errors.New("interrupted")

func newBudget(limit int64, oversize *slot) *budget {
	return &budget{limit: max(limit, 1), oversize: oversize}
}

// fitsLocked also says so when nobody has any: a budget below n must not stop everything.
func (b *budget) fitsLocked(n int64) bool { return b.used <= 0 || b.used+n <= b.limit }

// try takes n bytes if they are there and nobody waits for some.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || !b.fitsLocked(n) {
		return false
	}
	b.used += n
	return true
}

// acquire waits for n bytes. It returns ctx's error when that ends first, and errInterrupted when
// interrupt is closed.
func (b *budget) acquire(ctx context.Context, interrupt <-chan struct{}, n int64) error {
	if b.try(n) {
		return nil
	}
	w := waiter{n, make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, w)
	b.grantLocked() // some may have become free since try
	b.mu.Unlock()
	err := errInterrupted
	select {
	case <-w.granted:
		return nil
	case <-interrupt:
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, w); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	} else {
		b.used -= n
	}
	b.grantLocked()
	return err
}

// reserve waits for n bytes and returns what gives them back.
func (b *budget) reserve(ctx context.Context, interrupt <-chan struct{}, n int64) (release func(), err error) {
	large := n > b.limit && b.oversize != nil
	if large {
		if err := b.oversize.take(ctx, interrupt); err != nil {
			return nil, err
		}
	}
	err = b.acquire(ctx, interrupt, n)
	release = func() {
		if err == nil {
			b.change(-n)
		}
		if large {
			<-b.oversize.free
		}
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// change takes n bytes without asking, or gives -n back.
func (b *budget) change(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	b.grantLocked()
}

func (b *budget) grantLocked() {
	for len(b.waiting) > 0 && b.fitsLocked(b.waiting[0].bytes) {
		b.used += b.waiting[0].bytes
		close(b.waiting[0].granted)
		b.waiting = b.waiting[1:]
	}
}

func (b *budget) held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// pressed says whether somebody waits.
func (b *budget) pressed() bool {
	if b.oversize != nil && b.oversize.waiting.Load() > 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting) > 0
}
