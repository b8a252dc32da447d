package queue

import "container/heap"

// returned is a piece to be leased, again or out of turn.
type returned struct {
	progress *progress
	piece    *piece
	attempt  int   // of the last lease, 0 when it never was leased
	due      int64 // on the queue's clock
	why      string
	slot     int // in Queue.parked; -1 when it is due
}

func (r *returned) offsets() Range { return r.piece.own }

// parked says whether it may not be leased yet.
func (r *returned) parked() bool { return r.slot >= 0 }

// parked is a heap of what is to be leased later, the earliest first.
type parked []*returned

func (h parked) Len() int           { return len(h) }
func (h parked) Less(i, j int) bool { return h[i].due < h[j].due }

func (h parked) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].slot, h[j].slot = i, j
}

// Push implements heap.Interface.
func (h *parked) Push(x any) {
	r := x.(*returned)
	r.slot = len(*h)
	*h = append(*h, r)
}

// Pop implements heap.Interface.
func (h *parked) Pop() any {
	n := len(*h) - 1
	r := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	r.slot = -1
	return r
}

// giveBackLocked makes a piece leasable again at a time on the queue's clock. It replaces what is
// there of the same piece, or of one that was refetched since.
func (q *Queue) giveBackLocked(g *progress, pc *piece, attempt int, due int64) {
	p := g.back.seek(pc.own.First)
	if old, ok := g.back.at(p); ok && old.piece.own.First == pc.own.First {
		q.takeBackLocked(old)
	}
	r := &returned{progress: g, piece: pc, attempt: attempt, due: due, slot: -1}
	g.back.add(r)
	if due > q.clock() {
		heap.Push(&q.parked, r)
		g.sub.parked++
		return
	}
	g.due.add(r)
}

// takeBackLocked takes out what is not to be leased again, or is being leased.
func (q *Queue) takeBackLocked(r *returned) {
	g := r.progress
	if r.parked() {
		q.unparkOneLocked(r)
	} else {
		g.due.remove(g.due.seek(r.piece.own.First))
	}
	g.back.remove(g.back.seek(r.piece.own.First))
}

// unparkOneLocked takes a piece out of parked.
func (q *Queue) unparkOneLocked(r *returned) {
	heap.Remove(&q.parked, r.slot)
	r.progress.sub.parked--
}

// takeAllBackLocked takes out everything of a partition.
func (q *Queue) takeAllBackLocked(g *progress) {
	for r, ok := g.back.first(); ok; r, ok = g.back.first() {
		q.takeBackLocked(r)
		q.letOthersIn(1)
	}
}

// firstBackLocked is the lowest of a partition's back or due that is still to be leased, or nil.
// What was settled, deferred or refetched meanwhile leaves.
func (q *Queue) firstBackLocked(g *progress, of *list[*returned]) *returned {
	for {
		r, ok := of.first()
		if !ok {
			return nil
		}
		if g.needs(r.piece.own) && g.part.pieceAt(r.piece.own.First) == r.piece {
			return r
		}
		q.takeBackLocked(r)
	}
}

// unparkLocked makes leasable what is due by now, and its partitions ready. It says whether there
// is more.
func (q *Queue) unparkLocked(most int) (more bool) {
	now := q.clock()
	for n := 0; len(q.parked) > 0 && q.parked[0].due <= now; n++ {
		if n == most {
			return true
		}
		r := q.parked[0]
		q.unparkOneLocked(r)
		r.progress.due.add(r)
		q.readyLocked(r.progress)
	}
	return false
}

// waitsBeforeLocked says whether something before o is to be leased again, or to be refetched.
func (q *Queue) waitsBeforeLocked(g *progress, o int64) bool {
	if !g.deferred.Empty() && g.deferred.First().First < o {
		return true
	}
	r := q.firstBackLocked(g, &g.back)
	return r != nil && r.piece.own.First < o
}
