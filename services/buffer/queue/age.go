package queue

import "container/heap"

// byAge goes through the pieces that a subscription needs and to which nothing happens, in the
// order in which they were appended, or against it. The lock must be held all the time; a piece
// that was returned may be dropped or deferred.
type byAge struct {
	direction ageDirection
	heads     []ageHead // a heap: of every partition the next piece
}

type ageDirection int

const (
	oldestFirst ageDirection = 1
	newestFirst ageDirection = -1
)

type ageHead struct {
	g  *progress
	pc *piece
}

func (s *subscription) byAge(direction ageDirection) *byAge {
	a := &byAge{direction: direction}
	if s.moving > 0 {
		return a // it will need others
	}
	for _, g := range s.progress {
		var pc *piece
		if direction == oldestFirst {
			pc = g.freeFrom(g.part.pieces.over(g.settled.lowest()))
		} else {
			pc = g.freeBefore(g.part.pieces.end())
		}
		if pc != nil {
			a.heads = append(a.heads, ageHead{g, pc})
		}
	}
	heap.Init(a)
	return a
}

// next is the piece that is next, or nil.
func (a *byAge) next() (*progress, *piece) {
	if len(a.heads) == 0 {
		return nil, nil
	}
	h := a.heads[0]
	at := h.g.part.pieces.seek(h.pc.own.First)
	if a.direction == oldestFirst {
		a.heads[0].pc = h.g.freeFrom(h.g.part.pieces.next(at))
	} else {
		a.heads[0].pc = h.g.freeBefore(at)
	}
	if a.heads[0].pc == nil {
		heap.Pop(a)
	} else {
		heap.Fix(a, 0)
	}
	return h.g, h.pc
}

// freeFrom is the first free piece at a place or behind it, or nil.
func (g *progress) freeFrom(at place) *piece {
	for pc := g.needed(at); pc != nil; pc = g.needed(at) {
		dropping := g.dropping.Until(pc.own.First)
		switch {
		case dropping > pc.own.First:
			at = g.part.pieces.over(dropping)
		case g.leaseOf(pc.own.First) != nil:
			at = g.part.pieces.next(g.part.pieces.seek(pc.own.First))
		default:
			return pc
		}
	}
	return nil
}

// freeBefore is the last free piece before a place, or nil.
func (g *progress) freeBefore(at place) *piece {
	for at = g.part.pieces.prev(at); ; at = g.part.pieces.prev(at) {
		pc, ok := g.part.pieces.at(at)
		if !ok || pc.own.Next <= g.settled.lowest() {
			return nil
		}
		if g.isFree(pc) {
			return pc
		}
		// What was deferred lately is long: go to where it begins.
		if r, ok := g.deferred.Around(pc.own.First); ok && r.First < pc.own.First {
			at = g.part.pieces.over(r.First)
			if before, ok := g.part.pieces.at(at); ok && before.own.First < r.First { // it begins inside a piece
				at = g.part.pieces.next(at)
			}
		}
	}
}

// Len implements heap.Interface.
func (a *byAge) Len() int { return len(a.heads) }

// Less implements heap.Interface.
func (a *byAge) Less(i, j int) bool {
	x, y := a.heads[i].pc.appended, a.heads[j].pc.appended
	if a.direction == newestFirst {
		x, y = y, x
	}
	return x < y
}

// Swap implements heap.Interface.
func (a *byAge) Swap(i, j int) { a.heads[i], a.heads[j] = a.heads[j], a.heads[i] }

// Push implements heap.Interface.
func (a *byAge) Push(x any) { a.heads = append(a.heads, x.(ageHead)) }

// Pop implements heap.Interface.
func (a *byAge) Pop() any {
	n := len(a.heads) - 1
	h := a.heads[n]
	a.heads = a.heads[:n]
	return h
}
