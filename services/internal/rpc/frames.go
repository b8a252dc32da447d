package rpc

import "sync"

const (
	// frameBytes is gRPC's largest frame.
	frameBytes = 16 << 10
	// ioBytes is what is read or written with one system call.
	ioBytes = 128 << 10
)

// frames is a pool for what is received. gRPC's own clears each buffer before it is filled, which is a tenth of
// all time when batches flow.
var frames = &framePool{pool: sync.Pool{New: func() any { b := make([]byte, frameBytes); return &b }}}

type framePool struct{ pool sync.Pool }

// Get implements mem.BufferPool.
func (p *framePool) Get(n int) *[]byte {
	if n > frameBytes {
		b := make([]byte, n)
		return &b
	}
	b := p.pool.Get().(*[]byte)
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *framePool) Put(b *[]byte) {
	if cap(*b) == frameBytes {
		p.pool.Put(b)
	}
}
