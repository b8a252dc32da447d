package queue

import (
	"math"
)

// progress is a subscription's way through one partition: what it has settled, what it has
// leased, and what is to be leased next.
//
// When the subscription ceases to want the topic, by a mistake maybe, nothing is given up: what
// is pending before until is held as before, and leased to nobody. What comes later is not the
// subscription's, unless it wants the topic again: then it goes on where it was.
type progress struct {
	sub      *subscription
	part     *partition
	slot     int // in sub.progress
	settled  Settled
	snapshot uint32 // the number of the one that has it, or that was begun before it
	unwanted bool
	until    int64 // with unwanted
	// deferred is pending and not held: to be refetched. It is not written down, since it follows
	// from the ledger and what is held.
	deferred                     Set
	deferredBytes                int64           // about what deferred has
	dropping                     Set             // its drop is being written
	cursor                       int64           // pieces that begin before it have been leased, or are in back
	pendingRecords, pendingBytes int64           // of the pieces it needs
	ready                        node[*progress] // in sub.ready or Session.ready
	turn                         int64           // bytes that were leased since it is first in line
	again                        bool            // what was leased last had been leased before
	tail                         *tail           // leases that go back: nothing is leased until they are
	leases                       list[*lease]    // held
	back                         list[*returned] // to be leased again
	due                          list[*returned] // those of back that may be leased now
}

// lease is a piece on loan to a session.
type lease struct {
	id       uint64
	piece    *piece
	progress *progress
	session  *Session
	attempt  int
	deadline int64        // on the queue's clock
	expiry   node[*lease] // in Session.expiry
	acking   bool         // its ack is being made durable: neither expires nor is revoked
	revoked  bool         // it is, once its ack is durable
}

func (l *lease) offsets() Range { return l.piece.own }

// settle settles offsets in the ledger.
func (g *progress) settle(r Range, o Outcome) {
	before := g.settled.behind
	g.countAgain(func() { g.settled.Add(r, o) })
	g.sub.scattered += g.settled.behind - before
}

// moveCursor says that pieces that begin before o have been leased, or are in back.
func (g *progress) moveCursor(o int64) {
	before := g.settled.behind
	g.cursor = o
	g.settled.setMark(o)
	g.sub.scattered += g.settled.behind - before
}

// restart begins another ledger, of which nothing is leased and nothing deferred.
func (g *progress) restart(settled Settled) {
	g.sub.scattered -= g.settled.behind
	g.countAgain(func() { g.settled = settled })
	g.forgetDeferred()
	g.dropping, g.tail = Set{}, nil
	g.moveCursor(settled.Floor)
}

// doneUntil returns the first offset at or after o that is neither settled nor deferred, or one
// from limit on.
func (g *progress) doneUntil(o, limit int64) int64 {
	for o < limit {
		next := g.deferred.Until(g.settledUntil(o))
		if next == o {
			return o
		}
		o = next
	}
	return o
}

// needs says whether something in r has to be held for the subscription.
func (g *progress) needs(r Range) bool { return g.doneUntil(r.First, r.Next) < r.Next }

// needed returns the first piece at a place or behind it that is needed. It skips what is settled
// or deferred range by range, not piece by piece.
func (g *progress) needed(at place) *piece {
	for {
		pc, ok := g.part.pieces.at(at)
		if !ok {
			return nil
		}
		done := g.doneUntil(pc.own.First, math.MaxInt64)
		if done < pc.own.Next {
			return pc
		}
		at = g.part.pieces.over(done)
	}
}

// oldestPending is the first piece the subscription has not settled.
func (g *progress) oldestPending() *piece { return g.needed(g.part.pieces.over(g.settled.lowest())) }

// nextLocked finds what to lease next, without taking it. What was given back, again and again
// maybe, takes turns with what was never leased, so that neither holds up the other. With
// ordered, that is the lowest pending piece or nothing: a deferred range below it has to come
// back first, and a drop has to be on disk.
func (q *Queue) nextLocked(g *progress, ordered bool) (pc *piece, again *returned) {
	if g.tail != nil {
		return nil, nil
	}
	barrier := int64(math.MaxInt64)
	if ordered {
		if !g.deferred.Empty() {
			barrier = g.deferred.First().First
		}
		if !g.dropping.Empty() {
			barrier = min(barrier, g.dropping.First().First-1)
		}
		if r := q.firstBackLocked(g, &g.back); r != nil {
			if r.piece.own.First > barrier || r.parked() {
				return nil, nil
			}
			return r.piece, r
		}
		return g.fresh(barrier), nil
	}
	r := q.firstBackLocked(g, &g.due)
	if r == nil || g.again {
		if pc := g.fresh(barrier); pc != nil {
			return pc, nil
		}
	}
	if r != nil {
		return r.piece, r
	}
	return nil, nil
}

// fresh is the next piece that was never leased, if it may be.
func (g *progress) fresh(barrier int64) *piece {
	if g.sub.scattered > maxScattered {
		return nil
	}
	for {
		pc := g.needed(g.part.pieces.seek(g.cursor))
		if pc == nil {
			if last, ok := g.part.pieces.last(); ok {
				g.moveCursor(max(g.cursor, last.own.Next))
			}
			return nil
		}
		g.moveCursor(pc.own.First)
		switch {
		case pc.own.First > barrier:
			return nil
		case g.dropping.Until(pc.own.First) == pc.own.First:
			return pc
		}
		g.moveCursor(pc.own.Next)
	}
}

// maxScattered bounds the ledger of a subscription, whose acks may settle every other record of
// what they lease while the rest waits for long. When so many ranges are settled above some that
// are not, nothing more is leased but what has been leased before. What was settled ahead of the
// leases, as there are no records, does not count.
const maxScattered = 100_000

// holder is the session that holds leases of the partition, if any.
func (g *progress) holder() *Session {
	if l, ok := g.leases.first(); ok {
		return l.session
	}
	return nil
}

// leaseOf is a lease of a piece that begins at o, or nil.
func (g *progress) leaseOf(o int64) *lease {
	if l, ok := g.leases.at(g.leases.seek(o)); ok && l.piece.own.First == o {
		return l
	}
	return nil
}

func (g *progress) removeLease(l *lease) {
	for p := g.leases.seek(l.piece.own.First); ; p = g.leases.next(p) {
		switch x, ok := g.leases.at(p); {
		case !ok:
			return
		case x == l:
			g.leases.remove(p)
			return
		}
	}
}

// isFree says whether the subscription needs a piece and nothing is happening to it.
func (g *progress) isFree(pc *piece) bool {
	return g.dropping.Until(pc.own.First) == pc.own.First && g.needs(pc.own) && g.leaseOf(pc.own.First) == nil
}

// skip is what of a batch is not to be delivered: what is settled, and what other batches answer
// for.
func (g *progress) skip(pc *piece) []Range {
	var skip []Range
	if pc.own.First > pc.batch.First {
		skip = append(skip, Range{pc.batch.First, pc.own.First})
	}
	skip = append(skip, g.settled.Within(pc.own)...)
	if pc.own.Next < pc.batch.Next {
		skip = append(skip, Range{pc.own.Next, pc.batch.Next})
	}
	return skip
}
