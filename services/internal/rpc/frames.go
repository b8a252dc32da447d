package rpc

import (
	"math/bits"
	"sync"
)

const (
	// frameBytes is gRPC's largest frame.
	frameBytes = 16 << 10
	// ioBytes is what is read or written with one system call.
	ioBytes = 128 << 10
)

// frames is a pool for what is received. gRPC's own clears each buffer before it is filled, which
// is a tenth of all time when batches flow. A buffer has less than twice the bytes that were
// asked for.
var frames = newFramePool()

// framePool has buffers of 1, 2, 4, 8 and 16 KiB.
type framePool struct{ pools [5]sync.Pool }

const smallestFrame = frameBytes >> 4

func newFramePool() *framePool {
	p := &framePool{}
	for i := range p.pools {
		p.pools[i].New = func() any { b := make([]byte, smallestFrame<<i); return &b }
	}
	return p
}

// Get implements mem.BufferPool.
func (p *framePool) Get(n int) *[]byte {
	if n > frameBytes {
		b := make([]byte, n)
		return &b
	}
	i := bits.Len(uint(max(n-1, 0) / smallestFrame))
	b := p.pools[i].Get().(*[]byte)
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (p *framePool) Put(b *[]byte) {
	for i := range p.pools {
		if cap(*b) == smallestFrame<<i {
			p.pools[i].Put(b)
			return // it is somebody else's now
		}
	}
}
