package queue

import "slices"

// returnLeaseLocked ends a lease whose batch is to be leased again at due, on the queue's clock.
// With ordering, the later leases of the partition go back with it: delivered after it, they
// would be out of order.
func (q *Queue) returnLeaseLocked(l *lease, due int64) {
	q.returnOneLocked(l, due)
	g, first := l.progress, l.piece.own.First
	switch last, more := g.leases.last(); {
	case !g.sub.ordered() && !l.session.ordered:
	case g.tail != nil:
		g.tail.first, g.tail.due = min(g.tail.first, first), max(g.tail.due, due)
	case more && last.piece.own.First > first:
		g.tail = &tail{progress: g, first: first, due: due}
		if q.returnTailLocked(g.tail, q.holdItems) {
			q.tails = append(q.tails, g.tail)
		}
	}
}

// returnOneLocked is returnLeaseLocked for a lease alone.
func (q *Queue) returnOneLocked(l *lease, due int64) {
	q.endLeaseLocked(l)
	q.giveBackLocked(l.progress, l.piece, l.attempt, due)
}

// tail is the leases of a partition behind one that went back. They go back, too, from the last
// to the first, and their session is told. They may be too many for one hold of the lock: nothing
// of the partition is leased meanwhile.
type tail struct {
	progress *progress
	first    int64 // where the one begins that went back, or beforeAll
	due      int64
}

// beforeAll is tail.first when all leases of the partition go back.
const beforeAll = -1

// goesBack says whether the lease is one of a tail: the session must not ack it any more.
func (l *lease) goesBack() bool {
	t := l.progress.tail
	return t != nil && l.piece.own.First > t.first && !l.acking
}

// returnTailLocked gives back so many leases of a tail at most, and says whether there are more.
// Those whose ack is being made durable stay.
func (q *Queue) returnTailLocked(t *tail, most int) (more bool) {
	g := t.progress
	var revoked []uint64
	var owner *Session
	tell := func() {
		if len(revoked) > 0 {
			slices.Sort(revoked)
			owner.tellLocked(Event{Revoked: revoked})
		}
		revoked = nil
	}
	p := g.leases.prev(g.leases.end())
	for x, ok := g.leases.at(p); ok && x.piece.own.First > t.first; x, ok = g.leases.at(p) {
		if x.acking {
			x.revoked = x.revoked || t.first == beforeAll
			p = g.leases.prev(p)
			continue
		}
		if len(revoked) == most {
			tell()
			return true
		}
		if x.session != owner {
			tell()
			owner = x.session
		}
		q.returnOneLocked(x, t.due)
		revoked = append(revoked, x.id)
		p = g.leases.prev(g.leases.seek(x.piece.own.First))
	}
	tell()
	g.tail = nil
	q.readyLocked(g)
	return false
}

// returnTailsLocked goes on with the tails that are too long for one hold of the lock, and says
// whether there are more.
func (q *Queue) returnTailsLocked() (more bool) {
	if len(q.tails) == 0 {
		return false
	}
	t := q.tails[0]
	if t.progress.tail == t && q.returnTailLocked(t, q.holdItems) {
		return true
	}
	q.tails[0] = nil
	q.tails = q.tails[1:]
	q.dispatchLocked(t.progress.sub)
	return len(q.tails) > 0
}
