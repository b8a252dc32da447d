package buffer

import (
	"fmt"
	"sync/atomic"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// arrivalBytes bounds the payloads of batches that were received and wait for room in a queue. It
// has room for several of the largest.
const arrivalBytes = 64 << 20

// arrivals counts the payloads that wait for room, of all Append streams on all ports. Without a
// bound each stream would hold a batch of any size while a queue is full.
type arrivals struct{ bytes atomic.Int64 }

// wait adds a payload; leave takes it out again. Above the bound it is refused as by a full
// queue, so that the ingest sends it again later. A payload that is alone is never refused.
func (a *arrivals) wait(n int) (leave func(), err error) {
	if all := a.bytes.Add(int64(n)); all > arrivalBytes && all > int64(n) {
		a.bytes.Add(-int64(n))
		return nil, fmt.Errorf("%w: %d MiB of batches wait for room already", queue.ErrFull, (all-int64(n))>>20)
	}
	return func() { a.bytes.Add(-int64(n)) }, nil
}
