package ingest

import (
	"context"
	"sync"
)

// budget bounds the bytes that were fetched and not yet accepted by the buffer, over all partitions.
// What a fetch may bring is acquired before it; what it brought is held instead afterwards, which may
// be more: one batch of Kafka's is always delivered whole, and it may be compressed.
type budget struct {
	limit int64

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed and replaced at every release
}

func newBudget(limit int64) *budget { return &budget{limit: limit, freed: make(chan struct{})} }

// try takes n bytes if they are there, or if nobody has any; otherwise it returns what is closed when
// some become free.
func (b *budget) try(n int64) (freed <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used > 0 && b.used+n > b.limit {
		return b.freed, false
	}
	b.used += n
	return nil, true
}

// acquire waits for n bytes. It returns ctx's error when that ends first.
func (b *budget) acquire(ctx context.Context, n int64) error {
	for {
		freed, ok := b.try(n)
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change takes n bytes without asking, or gives -n back.
func (b *budget) change(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	if n < 0 {
		close(b.freed)
		b.freed = make(chan struct{})
	}
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
