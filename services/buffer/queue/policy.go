package queue

import (
	"fmt"
	"slices"
	"time"
)

// What happens when a limit is reached. A subscription that blocks holds back the ingest; one that
// drops or defers gives way, so that it holds back nobody.

const (
	// givenWayPercent of its limit is what a subscription that gave way has left: a bit less than the limit,
	// so that this happens once in a while and not with every batch.
	givenWayPercent = 90
	// giveWayPause is the time between two attempts to make room on a full disk: space comes back only
	// when whole segments are released.
	giveWayPause = time.Second
)

const (
	reasonLimit = "the backlog reached the subscription's limit"
	reasonDisk  = "the disk was full"
)

// limit bounds a subscription's backlog; 0 is no bound of its own.
func (q *Queue) limit(sub *subscription) int64 {
	if sub.Limit > 0 || sub.OnFull == Block {
		return sub.Limit
	}
	return q.cfg.DiskBytes / 100 * policyPercent
}

// fullLocked is why a batch of that partition, which may be nil, cannot be taken now.
func (q *Queue) fullLocked(p *partition, refetched bool) error {
	switch {
	case q.storeStats.DiskBytes >= q.cfg.DiskBytes:
		q.makeRoomLocked()
		return fmt.Errorf("%w: the store uses %d bytes of disk, at most %d", ErrFull, q.storeStats.DiskBytes, q.cfg.DiskBytes)
	case q.pendingRecords >= q.cfg.DiskRecords:
		q.makeRoomLocked()
		return fmt.Errorf("%w: %d records are pending, at most %d", ErrFull, q.pendingRecords, q.cfg.DiskRecords)
	case !q.noSpaceUntil.IsZero() && q.aboveHighWatermark():
		return fmt.Errorf("%w: no space is left on the device", ErrFull)
	}
	if p == nil || refetched {
		return nil
	}
	for _, g := range p.progress {
		if limit := q.limit(g.sub); g.sub.OnFull == Block && limit > 0 && g.sub.pendingBytes >= limit {
			return fmt.Errorf("%w: subscription %s has a backlog of %d bytes, at most %d", ErrFull, g.sub.Name, g.sub.pendingBytes, limit)
		}
	}
	return nil
}

// defersLocked says whether a new piece is not kept for a subscription. Once something is deferred, what
// comes after it is, too, until the rest is small: else the order in which it is delivered would suffer.
func (q *Queue) defersLocked(g *progress, size int64) bool {
	limit := q.limit(g.sub)
	if g.sub.OnFull != Defer || g.sub.pendingBytes == 0 && len(g.deferred) == 0 {
		return false
	}
	if len(g.deferred) > 0 {
		return g.sub.pendingBytes+g.deferredBytes+size > limit/2
	}
	return g.sub.pendingBytes+size > limit
}

// keepWithinLocked drops what exceeds the limit of a subscription that drops.
func (q *Queue) keepWithinLocked(sub *subscription) {
	if limit := q.limit(sub); sub.OnFull == DropOldest && sub.pendingBytes-sub.droppingBytes > limit {
		q.dropOldestLocked(sub, limit/100*givenWayPercent, reasonLimit)
	}
}

// makeRoomLocked lets the subscriptions that drop or defer give way to a full disk. What a required
// one has on disk is safe, and Kafka may have forgotten it: it is not deferred any more.
func (q *Queue) makeRoomLocked() {
	now := q.cfg.Now()
	if now.Sub(q.roomMade) < giveWayPause {
		return
	}
	q.roomMade = now
	for _, sub := range q.subs {
		left := sub.pendingBytes / 100 * givenWayPercent
		switch {
		case sub.OnFull == DropOldest:
			q.dropOldestLocked(sub, left, reasonDisk)
		case sub.OnFull == Defer && !sub.Required:
			q.deferNewestLocked(sub, left)
		}
	}
}

// dropOldestLocked settles the oldest batches as dropped until a backlog of left is all there will be.
// What is leased stays: it may be delivered at this moment.
func (q *Queue) dropOldestLocked(sub *subscription, left int64, reason string) {
	c := &change{Subscription: sub.id}
	type drop struct {
		g   *progress
		own Range
	}
	var drops []drop
	bytes := int64(0)
	for sub.pendingBytes-sub.droppingBytes > left {
		g, pc := sub.oldestFree()
		if pc == nil {
			break
		}
		g.dropping.Add(pc.own)
		drops = append(drops, drop{g, pc.own})
		sub.droppingBytes += int64(pc.size)
		bytes += int64(pc.size)
		if n := len(c.Settle); n > 0 && c.Settle[n-1].Partition == g.part.id && c.Settle[n-1].Range.Next == pc.own.First {
			c.Settle[n-1].Range.Next = pc.own.Next
			c.Settle[n-1].Except[0].Next = pc.own.Next
			continue
		}
		c.Settle = append(c.Settle, settleChange{Partition: g.part.id, Range: pc.own, Except: []Interval{{pc.own, Dropped}},
			Reason: reason, AtMs: q.cfg.Now().UnixMilli()})
	}
	if len(drops) == 0 {
		return
	}
	q.cfg.Log.Warn("oldest batches are dropped", "subscription", sub.Name, "reason", reason, "batches", len(drops), "bytes", bytes)
	c.done = func(q *Queue) {
		sub.droppingBytes -= bytes
		for _, d := range drops {
			d.g.dropping.Remove(d.own)
			q.readyLocked(d.g)
		}
		q.dispatchLocked(sub)
	}
	q.enqueueLocked(c)
}

// oldestFree is the piece that the subscription has needed for longest and that is neither leased nor
// being dropped.
func (s *subscription) oldestFree() (oldestOf *progress, oldest *piece) {
	for _, g := range s.progress {
		for i := g.part.pieceIndex(g.dropping.Until(g.settled.Floor)); i < len(g.part.pieces); i++ {
			pc := g.part.pieces[i]
			if oldest != nil && oldest.appended <= pc.appended {
				break
			}
			if g.isFree(pc) {
				oldestOf, oldest = g, pc
				break
			}
		}
	}
	return oldestOf, oldest
}

// deferNewestLocked stops holding the newest batches for a subscription until a backlog of left remains.
func (q *Queue) deferNewestLocked(sub *subscription, left int64) {
	batches := 0
	for sub.pendingBytes > left {
		var newestOf *progress
		var newest *piece
		for _, g := range sub.progress {
			for _, pc := range slices.Backward(g.part.pieces) {
				if newest != nil && newest.appended >= pc.appended {
					break
				}
				if g.isFree(pc) {
					newestOf, newest = g, pc
					break
				}
			}
		}
		if newest == nil {
			break
		}
		q.deferLocked(newestOf, newest)
		batches++
	}
	if batches > 0 {
		q.cfg.Log.Warn("newest batches are deferred, to be refetched from Kafka", "subscription", sub.Name, "reason", reasonDisk, "batches", batches)
	}
}

// isFree says whether the subscription needs a piece and nothing is happening to it.
func (g *progress) isFree(pc *piece) bool {
	if g.dropping.Until(pc.own.First) > pc.own.First || !g.needs(pc.own) {
		return false
	}
	_, leased := g.leaseIndex(pc.own.First)
	return !leased
}

// deferLocked stops holding a piece for a subscription.
func (q *Queue) deferLocked(g *progress, pc *piece) {
	g.deferRange(pc.own, int64(pc.size))
	q.letGoLocked(g, pc)
}
