package queue

import (
	"context"
	"errors"
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
	// spaceRetry is how often a full disk is tried again.
	spaceRetry = time.Second
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
			if errors.Is(err, ErrNoSpace) {
				q.putBack(g, err)
				continue
			}
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
	if n := len(q.unspilled) + len(q.changes); n > 0 {
		q.cfg.Log.Warn("no space is left to write out what is in memory; it is read from Kafka again", "batches", len(q.unspilled), "changes", len(q.changes))
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
		s.endLocked()
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
	defer q.mu.Unlock()
	noSpace := false
	if !q.noSpaceUntil.IsZero() {
		if noSpace = everything || q.cfg.Now().Before(q.noSpaceUntil); noSpace && q.noSpaceForChanges {
			return nil
		}
	}
	g := &group{changes: q.changes}
	q.changes = nil
	size := int64(0)
	memoryBytes, memoryRecords := q.memoryBytes, q.memoryRecords
	for !noSpace && len(q.unspilled) > 0 && size < groupBytes {
		pc := q.unspilled[0]
		if pc.waiting > 0 {
			if q.spilling && below(memoryBytes, q.cfg.MemoryBytes, lowWatermarkPercent) && below(memoryRecords, q.cfg.MemoryRecords, lowWatermarkPercent) {
				q.spilling = false
			}
			if !everything && !q.spillDueLocked() {
				break
			}
			g.pieces = append(g.pieces, pc)
			size += int64(pc.size)
			memoryBytes -= int64(pc.size)
			memoryRecords -= int64(pc.records)
		}
		q.unspilled[0] = nil
		q.unspilled = q.unspilled[1:]
	}
	if len(g.changes)+len(g.pieces) == 0 {
		return nil
	}
	for _, pc := range g.pieces { // under the lock: settling takes the payload away
		g.entries = append(g.entries, Entry{Kind: BatchEntry, Payload: pc.payload, Meta: q.meta(pc)})
	}
	for _, c := range g.changes {
		for i := range c.Settle {
			c.Settle[i].First = q.partitions[c.Settle[i].Partition].first
		}
		g.entries = append(g.entries, Entry{Kind: ChangeEntry, Meta: mustJSON(c)})
	}
	return g
}

// putBack keeps a group for which there was no space. Changes are tried again without batches at once, and
// everything after a while: what is in memory waits, ingest is held back when memory is full, and acks
// free space.
func (q *Queue) putBack(g *group, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.noSpaceUntil.IsZero() {
		q.cfg.Log.Error("the disk is full; batches stay in memory until there is space", "error", err)
	}
	q.noSpaceUntil = q.cfg.Now().Add(spaceRetry)
	q.noSpaceForChanges = len(g.pieces) == 0
	q.unspilled = append(g.pieces, q.unspilled...)
	q.changes = append(g.changes, q.changes...)
	q.makeRoomLocked()
}

// spaceIsBackLocked ends what putBack began.
func (q *Queue) spaceIsBackLocked() {
	if !q.noSpaceUntil.IsZero() {
		q.cfg.Log.Info("there is space on the disk again")
		q.noSpaceUntil, q.noSpaceForChanges = time.Time{}, false
	}
}

// spillDueLocked says whether the oldest batch in memory is to be written.
func (q *Queue) spillDueLocked() bool {
	if q.aboveHighWatermark() {
		q.spilling = true
	}
	if q.spilling {
		return true
	}
	return len(q.unspilled) > 0 && q.clock()-q.unspilled[0].appended >= int64(q.cfg.SpillAfter)
}

func (q *Queue) aboveHighWatermark() bool {
	return !below(q.memoryBytes, q.cfg.MemoryBytes, highWatermarkPercent) || !below(q.memoryRecords, q.cfg.MemoryRecords, highWatermarkPercent)
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
		q.spilledRecords += int64(pc.records)
		q.freeLocked(pc)
		q.raiseSafeLocked(pc.part)
	}
	if len(g.pieces) > 0 || len(q.unspilled) == 0 {
		q.spaceIsBackLocked()
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
			slices.Sort(gone) // in the order of leasing: each takes those behind it along
			for _, id := range gone {
				if l := s.leases[id]; l != nil { // ordering may have taken it with an earlier one
					q.returnLeaseLocked(l, now)
				}
			}
			if len(gone) > 0 {
				q.cfg.Log.Warn("leases expired", "subscription", sub.Name, "session", s.ID, "consumer", s.Consumer, "leases", len(gone))
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
	q.paceLocked()
	q.refetchLocked()
	q.tellWatermarksLocked()
}
