package queue

import (
	"fmt"
	"time"
)

// What happens when a limit is reached. A subscription that blocks holds back the ingest; one that
// drops or defers gives way, so that it holds back nobody.

const (
	// givenWayPercent of its limit is what a subscription that gave way has left: a bit less than
	// the limit, so that this happens once in a while and not with every batch.
	givenWayPercent = 90
	// giveWayPause is the time between two attempts to make room on a full disk: space comes back
	// only when whole segments are released.
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
	return percentOf(q.cfg.DiskBytes, policyPercent)
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
	case q.overheadLocked() > q.cfg.MemoryBytes/2:
		q.makeRoomLocked()
		return fmt.Errorf("%w: %d batches are held, which is all that memory allows; larger ones (batch.linger) or more memory hold more records", ErrFull, q.pendingBatches)
	case !q.noSpaceUntil.IsZero() && q.aboveHighWatermark():
		return fmt.Errorf("%w: no space is left on the device", ErrFull)
	}
	if p == nil || refetched {
		return nil
	}
	for _, g := range p.progress {
		if limit := q.limit(g.sub); !g.unwanted && g.sub.OnFull == Block && limit > 0 && q.backlogLocked(g.sub) >= limit {
			return fmt.Errorf("%w: subscription %s has a backlog of %d bytes, at most %d", ErrFull, g.sub.Name, q.backlogLocked(g.sub), limit)
		}
	}
	return nil
}

// defersLocked says whether a new piece is not kept for a subscription. Once something is
// deferred, what comes after it is, too, until the rest is small: else the order in which it is
// delivered would suffer.
func (q *Queue) defersLocked(g *progress, size int64) bool {
	limit := q.limit(g.sub)
	if g.sub.OnFull != Defer || g.sub.pendingBytes == 0 && g.deferred.Empty() {
		return false
	}
	if !g.deferred.Empty() {
		return g.sub.pendingBytes+g.deferredBytes+size > limit/2
	}
	return g.sub.pendingBytes+size > limit
}

// keepWithinLocked drops what exceeds the limit of a subscription that drops, and says whether
// there was anything to do.
func (q *Queue) keepWithinLocked(sub *subscription) bool {
	limit := q.limit(sub)
	if sub.OnFull != DropOldest || sub.pendingBytes-sub.droppingBytes <= limit || q.clock() < sub.allLeased {
		return false
	}
	before := sub.droppingBytes
	q.dropOldestLocked(sub, percentOf(limit, givenWayPercent), reasonLimit)
	if sub.droppingBytes == before { // not looked at again with every batch
		sub.allLeased = q.clock() + int64(tick)
	}
	return true
}

// makeRoomLocked lets the subscriptions that drop or defer give way to a full disk. What a
// required one has on disk is safe, and Kafka may have forgotten it: it is not deferred any more.
func (q *Queue) makeRoomLocked() {
	now := q.cfg.Now()
	if now.Sub(q.roomMade) < giveWayPause {
		return
	}
	// Each looks at all of its partitions: what is too much for one hold of the lock follows with
	// the next call.
	for left := roomItems; q.roomNext < len(q.subs) && left > 0; q.roomNext++ {
		sub := q.subs[q.roomNext]
		left -= 1 + len(sub.progress)
		q.giveWayLocked(sub)
	}
	if q.roomNext >= len(q.subs) {
		q.roomMade, q.roomNext = now, 0
	}
}

// roomItems is how many partitions of subscriptions give way in one hold of the lock.
const roomItems = 50_000

// giveWayLocked drops or defers a tenth of what a subscription has pending, as its policy is.
func (q *Queue) giveWayLocked(sub *subscription) {
	left := percentOf(sub.pendingBytes, givenWayPercent)
	switch {
	case sub.OnFull == DropOldest:
		q.dropOldestLocked(sub, left, reasonDisk)
	case sub.OnFull == Defer && !sub.Required:
		q.deferNewestLocked(sub, left)
	}
}

// dropOldestLocked settles the oldest batches as dropped until a backlog of left is all there
// will be, at most holdItems of them: it is called again as long as there are more. What is
// leased stays: it may be delivered at this moment.
func (q *Queue) dropOldestLocked(sub *subscription, left int64, reason string) {
	c := &change{Subscription: sub.id}
	type drop struct {
		g   *progress
		own Range
	}
	var drops []drop
	bytes := int64(0)
	oldest := sub.byAge(oldestFirst)
	for sub.pendingBytes-sub.droppingBytes > left && len(drops) < q.holdItems {
		g, pc := oldest.next()
		if pc == nil {
			break
		}
		g.dropping.Add(pc.own)
		if r, ok := g.back.at(g.back.seek(pc.own.First)); ok && r.piece == pc {
			q.takeBackLocked(r)
		}
		drops = append(drops, drop{g, pc.own})
		sub.droppingBytes += int64(pc.size)
		bytes += int64(pc.size)
		if n := len(c.Settle); n > 0 && c.Settle[n-1].Partition == g.part.id && c.Settle[n-1].Range.Next == pc.own.First {
			c.Settle[n-1].Range.Next = pc.own.Next
			c.Settle[n-1].Except[0].Next = pc.own.Next
			continue
		}
		c.Settle = append(c.Settle, settleChange{Partition: g.part.id, First: g.part.first, Range: pc.own, Except: []Interval{{pc.own, Dropped}},
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
