package queue

import (
	"cmp"
	"slices"
	"sort"
)

// How a ledger is settled. One change may settle a million batches, or name a million dead
// letters, so that it is applied in parts.

// settleLocked settles a range of one ledger, and lets go of the batches that nobody needs any
// more.
func (q *Queue) settleLocked(g *progress, s *settleChange) {
	if s.Deferred {
		q.settleDeferredLocked(g, s)
		return
	}
	if !s.sorted() { // as older versions have written it
		s = s.inOrder()
	}
	if g.unwanted {
		if s, _ = s.split(g.until); s == nil {
			return
		}
	}
	records, undelivered := int64(0), int64(0)
	for s != nil {
		var part *settleChange
		part, s = s.split(g.cut(s, q.holdItems))
		n, other := q.settlePartLocked(g, part)
		records, undelivered = records+n, undelivered+other
		if s != nil {
			q.letOthersIn(q.holdItems)
		}
	}
	g.sub.delivered += max(records-undelivered, 0)
	q.replayDoneLocked(g.sub)
}

// settleDeferredLocked settles what of a range is deferred when it comes to it: what others bring
// meanwhile is delivered.
func (q *Queue) settleDeferredLocked(g *progress, s *settleChange) {
	for o := s.Range.First; ; {
		r := Range{g.deferred.NextIn(o, s.Range.Next), 0}
		if r.First >= s.Range.Next {
			return
		}
		r.Next = min(g.deferred.Until(r.First), s.Range.Next)
		one := *s
		one.Deferred, one.Range, one.Except = false, r, []Interval{{r, s.Except[0].Outcome}}
		q.settleLocked(g, &one)
		q.letOthersIn(1)
		o = r.Next
	}
}

// settlePartLocked settles a range in one go. It returns the records of the batches that are
// settled as a whole by that, and how many offsets were not delivered.
func (q *Queue) settlePartLocked(g *progress, s *settleChange) (records, undelivered int64) {
	q.freezeLocked(g)
	var needed []*piece
	p := g.part
	for pc := range p.pieces.from(p.pieces.over(s.Range.First)) {
		if pc.own.First >= s.Range.Next {
			break
		}
		if g.needs(pc.own) {
			needed = append(needed, pc)
		}
	}
	if s.Keep {
		g.countAgain(func() { g.settled.unrepeat(s.Range) })
	} else {
		q.relistLocked(g, s.Range)
		undelivered = q.endLocked(g, s)
	}
	g.undefer(s.Range)
	for _, pc := range needed {
		if !g.needs(pc.own) {
			if !s.Keep {
				records += int64(pc.records)
			}
			q.letGoLocked(g, pc)
		}
	}
	return records, undelivered
}

// endLocked settles a range in the ledger, and lists what was not delivered. It returns how many
// offsets these are.
func (q *Queue) endLocked(g *progress, s *settleChange) (undelivered int64) {
	except := func(r Range, o Outcome, reason string) {
		for _, part := range g.settled.Unsettled(r) {
			undelivered += part.Len()
			g.sub.count(o, part.Len())
			if o != Filtered {
				g.sub.note(Undelivered{Partition: g.part.id, Range: part, Outcome: o, Reason: reason, AtMs: s.AtMs})
			}
		}
		g.settle(r, o)
	}
	for i := range s.DeadLetters {
		except(s.DeadLetters[i].offsets(), DeadLettered, s.DeadLetters[i].Reason)
	}
	for _, e := range s.Except {
		except(e.Range, e.Outcome, s.Reason)
	}
	g.settle(s.Range, Delivered)
	return undelivered
}

// cut is where a change is to be split so that its first part takes about so many steps.
func (g *progress) cut(s *settleChange, steps int) int64 {
	cut := s.Range.Next
	if len(s.Except) > steps {
		cut = min(cut, s.Except[steps].First)
	}
	if len(s.DeadLetters) > steps {
		cut = min(cut, s.DeadLetters[steps].Offset)
	}
	n := 0
	for pc := range g.part.pieces.from(g.part.pieces.over(s.Range.First)) {
		if pc.own.First >= cut {
			break
		}
		if n++; n > steps {
			cut = pc.own.First
			break
		}
	}
	if cut <= s.Range.First {
		return s.Range.Next
	}
	return cut
}

func byFirst(a, b Interval) int    { return cmp.Compare(a.First, b.First) }
func byOffset(a, b DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) }

// sorted says whether what the change names is in order.
func (s *settleChange) sorted() bool {
	return slices.IsSortedFunc(s.Except, byFirst) && slices.IsSortedFunc(s.DeadLetters, byOffset)
}

// inOrder is the change with what it names in order.
func (s *settleChange) inOrder() *settleChange {
	c := *s
	c.Except, c.DeadLetters = slices.Clone(s.Except), slices.Clone(s.DeadLetters)
	slices.SortStableFunc(c.Except, byFirst)
	slices.SortStableFunc(c.DeadLetters, byOffset)
	return &c
}

// split returns what a change settles before an offset, and from there on; nil is nothing.
func (s *settleChange) split(o int64) (before, behind *settleChange) {
	switch {
	case s.Range.Next <= o:
		return s, nil
	case s.Range.First >= o:
		return nil, s
	}
	first, rest := *s, *s
	first.Range.Next, rest.Range.First = o, o
	first.Except, rest.Except = nil, nil
	i := sort.Search(len(s.Except), func(i int) bool { return s.Except[i].Next > o })
	first.Except, rest.Except = s.Except[:i:i], s.Except[i:]
	if len(rest.Except) > 0 && rest.Except[0].First < o {
		e := rest.Except[0]
		first.Except = append(first.Except, Interval{Range{e.First, o}, e.Outcome})
		rest.Except = slices.Clone(rest.Except)
		rest.Except[0].First = o
	}
	i = sort.Search(len(s.DeadLetters), func(i int) bool { return s.DeadLetters[i].offsets().Next > o })
	first.DeadLetters, rest.DeadLetters = s.DeadLetters[:i:i], s.DeadLetters[i:]
	if len(rest.DeadLetters) > 0 && rest.DeadLetters[0].Offset < o {
		d := rest.DeadLetters[0]
		first.DeadLetters = append(first.DeadLetters, DeadLetter{Offset: d.Offset, Next: o, Reason: d.Reason})
		rest.DeadLetters = slices.Clone(rest.DeadLetters)
		rest.DeadLetters[0].Offset = o
	}
	return &first, &rest
}

// count adds to the counters since Open. Delivered is counted in records, not here.
func (s *subscription) count(o Outcome, offsets int64) {
	switch o {
	case DeadLettered:
		s.deadLettered += offsets
	case Dropped:
		s.dropped += offsets
	case Lost:
		s.lost += offsets
	}
}
