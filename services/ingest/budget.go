package ingest

import (
	"context"
	"slices"
	"sync"
)

// budget bounds the bytes that were fetched and not yet accepted by the buffer, over all partitions
// that feed a queue. What a fetch may bring is acquired before it; what it brought is held instead afterwards, which may
// be more: one batch of Kafka's is always delivered whole, and it may be compressed. Those who wait are
// served in turn, so that no partition starves beside a busy one.
type budget struct {
	limit int64

	mu      sync.Mutex
	used    int64
	waiting []waiter
}

type waiter struct {
	bytes   int64
	granted chan struct{}
}

func newBudget(limit int64) *budget { return &budget{limit: limit} }

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

// acquire waits for n bytes. It returns ctx's error when that ends first.
func (b *budget) acquire(ctx context.Context, n int64) error {
	if b.try(n) {
		return nil
	}
	w := waiter{n, make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, w)
	b.grantLocked() // some may have become free since try
	b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, w); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	} else {
		b.used -= n
	}
	b.grantLocked()
	return ctx.Err()
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

// gate is passed while it is open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil when open
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case closed && g.opened == nil:
		g.opened = make(chan struct{})
	case !closed && g.opened != nil:
		close(g.opened)
		g.opened = nil
	}
}

func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened != nil
}

// pass waits until the gate is open, or for ctx's error.
func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened == nil {
		return ctx.Err()
	}
	select {
	case <-opened:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
