package queue

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// groupBytes is where a group ends: large enough for one fsync to carry much, small enough for an
	// ack not to wait long behind it.
	groupBytes = 2 << 20
	// tick is how often deadlines are looked at.
	tick = 100 * time.Millisecond
	// When memory passes the high watermark, batches are written until it is below the low one.
	highWatermarkPercent, lowWatermarkPercent = 70, 50
)

// group is what goes to the store in one durable write.
type group struct {
	changes []*change
	pieces  []*piece
	entries []Entry
}

// Run writes to the store until ctx ends; then it writes out what is in memory, closes the store and
// returns nil. An error is the store's: the queue is closed, and what was not answered is unknown.
func (q *Queue) Run(ctx context.Context) (err error) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	draining := false
	for !draining {
		select {
		case <-ctx.Done():
			draining = true
			q.close(ErrClosed)
		case <-q.kick:
		case <-ticker.C:
			q.expire()
		}
		for g := q.take(draining); g != nil; g = q.take(draining) {
			refs, err := q.store.Append(g.entries)
			if err != nil {
				err = fmt.Errorf("append group to store: %w", err)
				q.close(fmt.Errorf("%w: %w", ErrClosed, err))
				_ = q.store.Close() // the store is in an unknown state: opening it again tells
				return err
			}
			q.commit(g, refs)
			q.release()
		}
	}
	if err := q.store.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

func (q *Queue) wake() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// enqueueLocked adds a change to the next group.
func (q *Queue) enqueueLocked(c *change) {
	q.changes = append(q.changes, c)
	q.wake()
}

// close refuses everything from now on and ends the sessions.
func (q *Queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return
	}
	q.closed = why
	close(q.done)
	for _, s := range q.sessions {
		s.live, s.events = false, nil
		select {
		case s.signal <- struct{}{}:
		default:
		}
	}
	for w := range q.watchers {
		w.signalLocked()
	}
}

// Done is closed when the queue takes nothing more.
func (q *Queue) Done() <-chan struct{} { return q.done }

// take collects what is to be written now; nil means nothing.
func (q *Queue) take(everything bool) *group {
	q.mu.Lock()
	g := &group{changes: q.changes}
	q.changes = nil
	now, size := q.cfg.Now(), int64(0)
	memoryBytes, memoryRecords := q.memoryBytes, q.memoryRecords
	for len(q.unspilled) > 0 && size < groupBytes {
		pc := q.unspilled[0]
		if pc.waiting > 0 {
			if q.spilling && below(memoryBytes, q.cfg.MemoryBytes, lowWatermarkPercent) && below(memoryRecords, q.cfg.MemoryRecords, lowWatermarkPercent) {
				q.spilling = false
			}
			if !everything && !q.spillDueLocked(now) {
				break
			}
			g.pieces = append(g.pieces, pc)
			size += pc.size
			memoryBytes -= pc.size
			memoryRecords -= int64(pc.batch.Records)
		}
		q.unspilled[0] = nil
		q.unspilled = q.unspilled[1:]
	}
	for _, pc := range g.pieces { // under the lock: settling takes the payload away
		g.entries = append(g.entries, Entry{Kind: BatchEntry, Payload: pc.batch.Payload})
	}
	q.mu.Unlock()
	if len(g.changes)+len(g.pieces) == 0 {
		return nil
	}
	for i, pc := range g.pieces {
		g.entries[i].Meta = pc.meta()
	}
	for _, c := range g.changes {
		g.entries = append(g.entries, Entry{Kind: ChangeEntry, Meta: mustJSON(c)})
	}
	return g
}

// spillDueLocked says whether the oldest batch in memory is to be written.
func (q *Queue) spillDueLocked(now time.Time) bool {
	if !below(q.memoryBytes, q.cfg.MemoryBytes, highWatermarkPercent) || !below(q.memoryRecords, q.cfg.MemoryRecords, highWatermarkPercent) {
		q.spilling = true
	}
	if q.spilling {
		return true
	}
	return len(q.unspilled) > 0 && now.Sub(q.unspilled[0].appended) >= q.cfg.SpillAfter
}

func below(used, limit, percent int64) bool { return used < limit/100*percent }

// commit applies a group that is durable.
func (q *Queue) commit(g *group, refs []Ref) {
	stats := q.store.Stats()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.storeStats = stats
	for i, pc := range g.pieces {
		if pc.waiting == 0 { // settled while it was being written
			q.settledRefs = append(q.settledRefs, refs[i])
			continue
		}
		pc.ref, pc.stored = refs[i], true
		q.spilledRecords += int64(pc.batch.Records)
		q.freeLocked(pc)
		q.raiseSafeLocked(q.partitions[pc.batch.Partition])
	}
	for _, c := range g.changes {
		q.applyLocked(c)
		if c.done != nil {
			c.done(q)
		}
	}
}

// release lets go of the stored payloads that everyone has settled. Only once the acks that settled
// them are on disk are they in the list.
func (q *Queue) release() {
	q.mu.Lock()
	refs := q.settledRefs
	q.settledRefs = nil
	q.mu.Unlock()
	if len(refs) > 0 {
		q.store.Release(refs)
	}
}

// expire gives back leases whose deadline has passed, and what is due again.
func (q *Queue) expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.cfg.Now()
	q.unspilled = slices.DeleteFunc(q.unspilled, func(pc *piece) bool { return pc.waiting == 0 })
	for _, sub := range q.subs {
		for _, s := range sub.sessions {
			var gone []uint64
			for id, l := range s.leases {
				if !l.acking && l.deadline.Before(now) {
					gone = append(gone, id)
				}
			}
			for _, id := range gone {
				if l := s.leases[id]; l != nil { // ordering may have taken it with an earlier one
					q.returnLeaseLocked(l, now)
				}
			}
			if len(gone) > 0 {
				q.cfg.Log.Warn("leases expired", "subscription", sub.name, "session", s.ID, "consumer", s.Consumer, "leases", len(gone))
				s.tellLocked(Event{Revoked: gone})
			}
		}
		for _, g := range sub.progress {
			if len(g.back) > 0 {
				q.readyLocked(g)
			}
		}
		q.dispatchLocked(sub)
	}
}

// Watcher hears of safe offsets that rise.
type Watcher struct {
	q          *Queue
	partitions map[Partition]bool
	risen      map[Partition]int64
	signal     chan struct{}
}

// Watch returns a Watcher of no partitions. Close it.
func (q *Queue) Watch() *Watcher {
	w := &Watcher{q: q, partitions: make(map[Partition]bool), risen: make(map[Partition]int64), signal: make(chan struct{}, 1)}
	q.mu.Lock()
	q.watchers[w] = struct{}{}
	q.mu.Unlock()
	return w
}

// Add begins to watch a partition, Remove ends it.
func (w *Watcher) Add(id Partition) {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	w.partitions[id] = true
}

// Remove ends watching a partition.
func (w *Watcher) Remove(id Partition) {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	delete(w.partitions, id)
	delete(w.risen, id)
}

// Close ends watching.
func (w *Watcher) Close() {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	delete(w.q.watchers, w)
}

// Risen waits for safe offsets that rose since the last call, and returns the newest of each partition.
func (w *Watcher) Risen(ctx context.Context) (map[Partition]int64, error) {
	for {
		w.q.mu.Lock()
		closed := w.q.closed
		if len(w.risen) > 0 {
			risen := w.risen
			w.risen = make(map[Partition]int64)
			w.q.mu.Unlock()
			return risen, nil
		}
		w.q.mu.Unlock()
		if closed != nil {
			return nil, closed
		}
		select {
		case <-w.signal:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *Watcher) tellLocked(p *partition) {
	if w.partitions[p.id] {
		w.risen[p.id] = p.safe
		w.signalLocked()
	}
}

func (w *Watcher) signalLocked() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}
