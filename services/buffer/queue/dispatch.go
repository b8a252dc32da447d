package queue

import (
	"container/heap"
	"slices"
)

const (
	// turnBytes is what a partition may have leased before it is the next one's turn, but for a
	// larger batch.
	turnBytes = 256 << 10
	// holdItems is how much is done at most, in leases or the like, before the queue's lock is
	// let go of.
	holdItems = 2000
)

// dispatchLocked leases what can be leased to the sessions that have credit. What is too much for
// one hold of the lock is leased when these ask for their events.
func (q *Queue) dispatchLocked(sub *subscription) {
	sub.undispatched = false
	if sub.paused || sub.moving > 0 || len(sub.sessions) == 0 {
		return
	}
	left := q.holdItems
	if q.unparkLocked(left) {
		q.laterLocked(sub)
	}
	for left > 0 {
		taker := sub.taker()
		if taker == nil {
			return // nobody has credit
		}
		busy := false
		if sub.ordered() {
			for _, s := range sub.sessions {
				if g, ok := s.ready.first(); ok && s.credit > 0 && left > 0 {
					busy = true
					left -= q.turnLocked(g, s, left)
				}
			}
			if taker = sub.taker(); taker == nil {
				return
			}
		}
		if g, ok := sub.ready.first(); ok && left > 0 {
			busy = true
			if h := g.holder(); sub.ordered() && h != nil {
				h.ready.push(&g.ready)
			} else {
				left -= q.turnLocked(g, taker, left)
			}
		}
		if !busy {
			return
		}
	}
	q.laterLocked(sub)
}

// laterLocked has the sessions that have credit go on with dispatchLocked.
func (q *Queue) laterLocked(sub *subscription) {
	sub.undispatched = true
	for _, s := range sub.sessions {
		if s.credit > 0 {
			s.signalLocked()
		}
	}
}

// turnLocked leases from the first partition in line to a session until its turn is over, at most
// so many batches. It returns how many it looked at.
func (q *Queue) turnLocked(g *progress, s *Session, most int) (n int) {
	ordered := g.sub.ordered()
	for s.credit > 0 && n < most {
		n++
		pc, again := q.nextLocked(g, ordered)
		if pc == nil {
			g.turn = 0
			g.ready.leave()
			return n
		}
		q.leaseLocked(g, pc, again, s)
		if g.turn += int64(pc.size); g.turn >= turnBytes {
			g.turn = 0
			g.ready.line.push(&g.ready)
			return n
		}
		if !ordered {
			if s = g.sub.taker(); s == nil {
				return n
			}
		}
	}
	return n
}

// takers is a heap of sessions, the one with the most credit first, and of those with as much the
// oldest.
type takers []*Session

func (h takers) Len() int { return len(h) }

func (h takers) Less(i, j int) bool {
	return h[i].credit > h[j].credit || h[i].credit == h[j].credit && h[i].joined < h[j].joined
}

func (h takers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i, j
}

// Push implements heap.Interface.
func (h *takers) Push(x any) {
	s := x.(*Session)
	s.slot = len(*h)
	*h = append(*h, s)
}

// Pop implements heap.Interface.
func (h *takers) Pop() any {
	n := len(*h) - 1
	s := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	return s
}

// taker is the session with the most credit, or nil when none has any.
func (s *subscription) taker() *Session {
	if len(s.takers) == 0 || s.takers[0].credit <= 0 {
		return nil
	}
	return s.takers[0]
}

// creditLocked changes what a session may be leased.
func (s *Session) creditLocked(bytes int64) {
	s.credit += bytes
	if s.live {
		heap.Fix(&s.sub.takers, s.slot)
	}
}

// joinLocked makes a session one of its subscription's.
func (q *Queue) joinLocked(s *Session) {
	q.joined++
	s.live, s.joined = true, q.joined
	s.sub.sessions = append(s.sub.sessions, s)
	heap.Push(&s.sub.takers, s)
	if s.ordered {
		s.sub.orderedSessions++
	}
}

// partLocked ends what joinLocked began.
func (q *Queue) partLocked(s *Session) {
	sub := s.sub
	sub.sessions = slices.DeleteFunc(sub.sessions, func(x *Session) bool { return x == s })
	heap.Remove(&sub.takers, s.slot)
	if s.ordered {
		if sub.orderedSessions--; sub.orderedSessions == 0 {
			sub.ready.take(&s.ready)
			for _, other := range sub.sessions {
				sub.ready.take(&other.ready)
			}
		}
	}
}

func (q *Queue) leaseLocked(g *progress, pc *piece, again *returned, s *Session) {
	attempt := 1
	g.again = again != nil
	if again != nil {
		attempt = again.attempt + 1
		q.takeBackLocked(again)
	} else {
		g.moveCursor(pc.own.Next)
		g.sub.taken += int64(pc.size)
	}
	if attempt > 1 {
		g.sub.redelivered++
	}
	q.nextLease++
	l := &lease{id: q.nextLease, piece: pc, progress: g, session: s, attempt: attempt}
	l.expiry.value = l
	g.leases.add(l)
	if len(s.leases) == 0 {
		q.leasing++
	}
	s.leases[l.id] = l
	q.leased++
	q.extendLocked(l)
	s.creditLocked(-int64(pc.size))
	g.sub.leased++
	g.sub.leasedBytes += int64(pc.size)
	g.sub.leasedRecords += int64(pc.records)
	if q.paced {
		q.roomLocked()
	}
	if g.ready.waits() {
		q.readyLocked(g) // with ordering, it is in the session's line now
	}

	out := &Lease{ID: l.id, Batch: pc.out(), Attempt: attempt, Settled: g.skip(pc), Epoch: g.settled.Epoch,
		Last: g.sub.leasedRecords >= g.sub.pendingRecords-g.sub.keptRecords, piece: pc, lease: l}
	s.tellLocked(Event{Lease: out})
	q.withholdLocked(s)
}

// extendLocked moves a lease's deadline to the lease duration from now.
func (q *Queue) extendLocked(l *lease) {
	l.deadline = q.clock() + int64(q.cfg.LeaseDuration)
	l.session.expiry.push(&l.expiry)
}

// endLeaseLocked forgets a lease.
func (q *Queue) endLeaseLocked(l *lease) {
	g := l.progress
	delete(l.session.leases, l.id)
	q.leased--
	if len(l.session.leases) == 0 {
		q.leasing--
	}
	q.giveCreditLocked(l.session)
	l.expiry.leave()
	g.removeLease(l)
	g.sub.leased--
	g.sub.leasedBytes -= int64(l.piece.size)
	g.sub.leasedRecords -= int64(l.piece.records)
	q.readyLocked(g)
}

// keepLeaseLocked goes on with a lease of which a part was settled. When meanwhile the session
// died, or with ordering something before it was given back, it follows the others.
func (q *Queue) keepLeaseLocked(l *lease) {
	l.acking = false
	q.extendLocked(l)
	g := l.progress
	q.readyLocked(g) // its ledger may be less scattered
	overtaken := (g.sub.ordered() || l.session.ordered) && q.waitsBeforeLocked(g, l.piece.own.First)
	if !l.session.live || overtaken || l.revoked {
		q.returnLeaseLocked(l, q.clock())
		l.session.tellLocked(Event{Revoked: []uint64{l.id}})
	}
}

// readyLocked puts g in line for dispatch: with ordering, in that of the session that holds
// leases of it.
func (q *Queue) readyLocked(g *progress) {
	if g.slot < 0 || g.unwanted {
		return // detached, or kept; an ack that was under way then ended its last lease
	}
	to := &g.sub.ready
	if h := g.holder(); g.sub.ordered() && h != nil {
		to = &h.ready
	}
	if g.ready.line != to {
		to.push(&g.ready)
	}
}
