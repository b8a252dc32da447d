package queue

import "math"

// How a subscription begins with a partition, is moved in it, and ends with it. A million batches
// may be held, so that each is done in parts. At any time in between, what the subscription needs
// is held for it or deferred.

// attachLocked makes a subscription need what is held of a partition, and defers what is not.
// Nothing of it is needed yet, unless it was before.
func (q *Queue) attachLocked(g *progress) {
	low := g.settled.lowest()
	if pc := g.part.pieceAt(low); pc != nil {
		g.moveCursor(pc.own.First) // what is leased first is the rest of it
	}
	for at := g.part.pieces.over(low); ; {
		pc, ok := g.part.pieces.at(at)
		if !ok {
			break
		}
		own := pc.own
		if !g.needs(own) {
			if g.undefer(own); g.needs(own) {
				q.needLocked(g, pc)
			}
		}
		q.letOthersIn(1)
		at = g.part.pieces.over(own.Next) // others may have changed the list
	}
	q.readyLocked(g)
}

// beginLocked is attachLocked with a new ledger.
func (q *Queue) beginLocked(g *progress) {
	q.deferRangeLocked(g, Range{g.settled.Floor, g.end()}, 0)
	q.attachLocked(g)
}

// rewindLocked makes a subscription go on at an offset.
func (q *Queue) rewindLocked(g *progress, start, epoch int64) {
	q.revokeLocked(g)
	atMs := epoch
	q.forgetRepeatsLocked(g, atMs)
	q.letGoBeforeLocked(g, start)
	epoch = max(epoch, g.settled.Epoch+1) // the clock may have been set back
	settled := NewSettled(start, epoch)
	if start > g.settled.Floor {
		settled = q.skipLocked(g, start, epoch, atMs)
	}
	q.takeAllBackLocked(g)
	lacking := g.notNeeded(Range{start, g.end()})
	q.freezeLocked(g)
	g.restart(settled)
	for _, r := range lacking {
		q.deferRangeLocked(g, r, 0)
	}
	q.attachLocked(g)
}

// notNeeded is the parts of r that no piece answers for that the subscription needs.
func (g *progress) notNeeded(r Range) []Range {
	return g.trimNeeded(append(g.settled.Within(r), g.deferred.Within(r)...))
}

// detachLocked ends the interest in a partition of a subscription that is deleted.
func (q *Queue) detachLocked(g *progress) {
	q.revokeLocked(g)
	q.takeAllBackLocked(g)
	q.letGoBeforeLocked(g, math.MaxInt64)
	q.removeProgress(g)
}

// letGoBeforeLocked defers what is held for the subscription and ends before an offset.
func (q *Queue) letGoBeforeLocked(g *progress, o int64) {
	for pc := g.oldestPending(); pc != nil && pc.own.Next <= o; pc = g.oldestPending() {
		q.deferLocked(g, pc)
		q.letOthersIn(1)
	}
}

// revokeLocked takes back the leases in a partition. Those whose ack is being written end with it.
func (q *Queue) revokeLocked(g *progress) {
	revoked := make(map[*Session][]uint64)
	for at := (place{}); ; {
		l, ok := g.leases.at(at)
		if !ok {
			break
		}
		if l.acking {
			l.revoked = true
			at = g.leases.next(at)
			continue
		}
		q.endLeaseLocked(l)
		revoked[l.session] = append(revoked[l.session], l.id)
		q.letOthersIn(1)
		at = g.leases.seek(l.piece.own.First)
	}
	for s, ids := range revoked {
		s.tellLocked(Event{Revoked: ids})
	}
}

// revokeManyLocked is revokeLocked for many partitions. The sessions cannot ack the leases from
// now on; what is too much for one hold of the lock is taken back afterwards.
func (q *Queue) revokeManyLocked(all []*progress) {
	left := q.holdItems
	for _, g := range all {
		n := g.leases.size()
		if left -= n; left >= 0 || n == 0 {
			q.revokeLocked(g)
			continue
		}
		if g.tail == nil {
			g.tail = &tail{progress: g}
			q.tails = append(q.tails, g.tail)
		}
		g.tail.first, g.tail.due = beforeAll, q.clock()
	}
}
