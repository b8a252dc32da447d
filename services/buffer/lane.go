package buffer

import (
	"context"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
)

// heldOverhead is what a message that is held counts beside its payload.
const heldOverhead = 256

// lane holds the messages of those partitions of an Append stream that are ahead of the
// deliveries, so that the others need not wait behind them. One goroutine puts messages in,
// another takes them out, in order.
type lane struct {
	q *queue.Queue

	mu      sync.Mutex
	waiting []heldMessage
	of      map[queue.Partition]int // how many are of a partition, in whatever incarnation
	refused map[queue.Partition]bool
	bytes   int64
	closed  bool
	more    chan struct{} // has room for one: something waits
}

type heldMessage struct {
	key     queue.Partition
	bytes   int64
	message *spillwayv1.AppendRequest
	refused bool // its payload is gone; the answer has its turn
}

func newLane(q *queue.Queue) *lane {
	return &lane{q: q, of: make(map[queue.Partition]int), refused: make(map[queue.Partition]bool), more: make(chan struct{}, 1)}
}

// has says whether a message of the partition is held, or was and is being handled.
func (l *lane) has(key queue.Partition) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[key] > 0
}

// put holds a message. When the queue holds as much as it may, a batch is refused, in its turn,
// and so is what follows it: the stream must not wait, for the messages of quiet partitions come
// behind it.
func (l *lane) put(ctx context.Context, key queue.Partition, m *spillwayv1.AppendRequest) error {
	h := heldMessage{key: key, bytes: heldOverhead, message: m}
	b := m.GetBatch()
	if b != nil && !l.refuses(key) && l.q.TryHold(h.bytes+int64(len(b.Payload))) {
		h.bytes += int64(len(b.Payload))
	} else {
		if b != nil {
			b.Payload, h.refused = nil, true
		}
		if err := l.q.Hold(ctx, h.bytes); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.refused {
		l.refused[key] = true
	}
	if l.closed {
		l.q.LetGo(h.bytes)
		return context.Canceled
	}
	l.bytes += h.bytes
	l.of[key]++
	l.waiting = append(l.waiting, h)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return nil
}

func (l *lane) refuses(key queue.Partition) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused[key]
}

// run hands over message by message, each as soon as the queue takes it, until ctx ends or an
// error of handle.
func (l *lane) run(ctx context.Context, handle func(*spillwayv1.AppendRequest) error, refuse func(*spillwayv1.Batch) error) error {
	for {
		l.mu.Lock()
		var h heldMessage
		if len(l.waiting) > 0 {
			h = l.waiting[0]
		}
		l.mu.Unlock()
		if h.message == nil {
			select {
			case <-l.more:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		b := h.message.GetBatch()
		if b != nil && h.message.MayWait && !h.refused {
			if err := l.q.Pace(ctx, b.MaxTimestampMs); err != nil {
				return err
			}
		}
		l.letGo(h.bytes) // Append counts it now
		var err error
		if h.refused {
			err = refuse(b)
		} else {
			err = handle(h.message)
		}
		if err != nil {
			return err
		}
		l.handled(h.key)
	}
}

func (l *lane) letGo(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.bytes -= bytes
		l.q.LetGo(bytes)
	}
}

func (l *lane) handled(key queue.Partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.waiting[0] = heldMessage{}
	l.waiting = l.waiting[1:]
	if l.of[key]--; l.of[key] == 0 {
		delete(l.of, key)
		delete(l.refused, key)
	}
}

// close lets go of what is held.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.q.LetGo(l.bytes)
	l.waiting = nil
}
