package queue

import (
	"slices"
	"time"
)

// turnBytes is what a partition may have leased before it is the next one's turn, but for a larger batch.
const turnBytes = 256 << 10

// dispatchLocked leases what can be leased to the sessions that have credit.
func (q *Queue) dispatchLocked(sub *subscription) {
	if sub.paused || len(sub.sessions) == 0 {
		return
	}
	now, ordered := q.cfg.Now(), sub.ordered()
	for waiting := 0; waiting < len(sub.ready); {
		g := sub.ready[0]
		s := sub.taker(g, ordered)
		if s == nil && !ordered {
			return // nobody has credit
		}
		pc, fromBack := g.next(now, ordered)
		if pc != nil && s != nil {
			q.leaseLocked(g, pc, fromBack, s, now)
			waiting = 0
			if g.turn += int64(pc.size); g.turn < turnBytes {
				continue
			}
		}
		g.turn = 0
		sub.ready = sub.ready[1:]
		if pc == nil {
			g.inReady = false
			continue
		}
		if s == nil {
			waiting++
		}
		sub.ready = append(sub.ready, g)
	}
}

// taker is the session to lease from g to: the one that holds the partition when ordered, else the
// one with most credit.
func (s *subscription) taker(g *progress, ordered bool) *Session {
	if h := g.holder(); ordered && h != nil {
		if h.live && h.credit > 0 {
			return h
		}
		return nil
	}
	var best *Session
	for _, x := range s.sessions {
		if x.credit > 0 && (best == nil || x.credit > best.credit) {
			best = x
		}
	}
	return best
}

func (q *Queue) leaseLocked(g *progress, pc *piece, fromBack int, s *Session, now time.Time) {
	attempt := 1
	g.again = fromBack >= 0
	if fromBack >= 0 {
		attempt = g.back[fromBack].attempt + 1
		g.back = slices.Delete(g.back, fromBack, fromBack+1)
	} else {
		g.cursor = pc.own.Next
		g.sub.taken += int64(pc.size)
	}
	if attempt > 1 {
		g.sub.redelivered++
	}
	q.nextLease++
	l := &lease{id: q.nextLease, piece: pc, progress: g, session: s, attempt: attempt, deadline: now.Add(q.cfg.LeaseDuration)}
	g.addLease(l)
	s.leases[l.id] = l
	s.credit -= int64(pc.size)
	g.sub.leased++
	g.sub.leasedBytes += int64(pc.size)
	g.sub.leasedRecords += int64(pc.records)
	if q.paced {
		q.roomLocked()
	}

	out := &Lease{ID: l.id, Batch: pc.out(), Attempt: attempt, Settled: g.skip(pc), Epoch: g.settled.Epoch,
		Last: g.sub.leasedRecords >= g.sub.pendingRecords, ref: pc.ref}
	s.tellLocked(Event{Lease: out})
}

// endLeaseLocked forgets a lease.
func (q *Queue) endLeaseLocked(l *lease) {
	delete(l.session.leases, l.id)
	l.progress.removeLease(l)
	l.progress.sub.leased--
	l.progress.sub.leasedBytes -= int64(l.piece.size)
	l.progress.sub.leasedRecords -= int64(l.piece.records)
	q.readyLocked(l.progress)
}

// keepLeaseLocked goes on with a lease of which a part was settled. When meanwhile the session died, or with ordering
// something before it was given back, it follows the others.
func (q *Queue) keepLeaseLocked(l *lease) {
	now := q.cfg.Now()
	l.acking, l.deadline = false, now.Add(q.cfg.LeaseDuration)
	g := l.progress
	q.readyLocked(g) // its ledger may be less scattered
	overtaken := (g.sub.ordered() || l.session.ordered) && g.waitsBefore(l.piece.own.First)
	if !l.session.live || overtaken {
		q.returnLeaseLocked(l, now)
		l.session.tellLocked(Event{Revoked: []uint64{l.id}})
	}
}

// returnLeaseLocked ends a lease whose batch is to be leased again at due. With ordering, the later
// leases of the partition go back with it: delivered after it, they would be out of order.
func (q *Queue) returnLeaseLocked(l *lease, due time.Time) {
	g := l.progress
	gone := []*lease{l}
	if g.sub.ordered() || l.session.ordered {
		for _, later := range g.leases {
			if later.piece.own.First > l.piece.own.First && !later.acking {
				gone = append(gone, later)
			}
		}
	}
	var revoked []uint64
	for _, x := range gone {
		q.endLeaseLocked(x)
		g.giveBack(returned{piece: x.piece, attempt: x.attempt, due: due})
		if x != l {
			revoked = append(revoked, x.id)
		}
	}
	if len(revoked) > 0 {
		l.session.tellLocked(Event{Revoked: revoked})
	}
}

// readyLocked puts g in line for dispatch.
func (q *Queue) readyLocked(g *progress) {
	if !g.inReady {
		g.inReady = true
		g.sub.ready = append(g.sub.ready, g)
	}
}
