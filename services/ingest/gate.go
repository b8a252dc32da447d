package ingest

import (
	"context"
	"sync"
)

// gate is passed while it is open. The zero gate is open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed when the gate is opened; nil while it is open
	shut   chan struct{} // closed while the gate is closed; nil: nobody has asked
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case closed && g.opened == nil:
		g.opened = make(chan struct{})
		if g.shut != nil {
			close(g.shut)
		}
	case !closed && g.opened != nil:
		close(g.opened)
		g.opened, g.shut = nil, nil
	}
}

func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened != nil
}

// whenClosed is closed as soon as the gate is.
func (g *gate) whenClosed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == nil {
		g.shut = make(chan struct{})
		if g.opened != nil {
			close(g.shut)
		}
	}
	return g.shut
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
