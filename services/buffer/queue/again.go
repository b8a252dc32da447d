package queue

import (
	"encoding/json"
	"slices"
)

// repeats is the part of a ledger that is settled, and is to be delivered once more: by a replay,
// or because what ended otherwise than delivered is redriven. The ledger keeps what it says of
// these offsets until they are settled again, so that nothing that follows from it goes back: not
// the safe offset, not the time of records, not an audit. A version of Spillway that knows no
// repeats leaves them out, and delivers nothing again.
type repeats struct {
	set Set
	// list is the same offsets, each with the outcome that the next one replaces. 0 leaves the
	// ledger as it is: a replay does not know how each offset ended.
	list    list[Interval]
	replays int64 // offsets in list whose outcome is 0
}

// counts returns how many offsets a replay and redriving have left.
func (r *repeats) counts() (replays, redriven int64) {
	if r == nil {
		return 0, 0
	}
	return r.replays, r.set.Len() - r.replays
}

// add adds offsets, none of which is there, joined with neighbours of the same outcome.
func (r *repeats) add(v Interval) {
	if v.Outcome == 0 {
		r.replays += v.Len()
	}
	r.set.Add(v.Range)
	p := r.list.seek(v.First)
	if behind, ok := r.list.at(p); ok && behind.First == v.Next && behind.Outcome == v.Outcome {
		v.Next = behind.Next
		p = r.list.remove(p)
	}
	if before, ok := r.list.at(r.list.prev(p)); ok && before.Next == v.First && before.Outcome == v.Outcome {
		v.First = before.First
		r.list.set(r.list.prev(p), v)
		return
	}
	r.list.insert(p, v)
}

// take takes out what is in x, and returns it.
func (r *repeats) take(x Range) []Interval {
	var taken []Interval
	for {
		p := r.list.over(x.First)
		v, ok := r.list.at(p)
		if !ok || v.First >= x.Next {
			break
		}
		r.list.remove(p)
		if v.First < x.First {
			r.list.add(Interval{Range{v.First, x.First}, v.Outcome})
		}
		if v.Next > x.Next {
			r.list.add(Interval{Range{x.Next, v.Next}, v.Outcome})
		}
		one := Interval{Range{max(v.First, x.First), min(v.Next, x.Next)}, v.Outcome}
		if taken = append(taken, one); one.Outcome == 0 {
			r.replays -= one.Len()
		}
	}
	r.set.Remove(x)
	return taken
}

// MarshalJSON encodes an array of intervals.
func (r *repeats) MarshalJSON() ([]byte, error) { return json.Marshal(r.list) }

// UnmarshalJSON decodes an array of intervals.
func (r *repeats) UnmarshalJSON(b []byte) error {
	var all list[Interval]
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	*r = repeats{}
	for v := range all.all() {
		r.add(v)
	}
	return nil
}

// Repeat has the settled offsets of v be delivered again, but those that are to be already. It
// returns the parts that are new.
func (s *Settled) Repeat(v Interval) []Range {
	var parts []Range
	for _, part := range s.within(v.Range) {
		if s.Again != nil {
			parts = append(parts, s.Again.set.Without(part)...)
			continue
		}
		parts = append(parts, part)
	}
	if len(parts) > 0 && s.Again == nil {
		s.Again = &repeats{}
	}
	for _, part := range parts {
		s.Again.add(Interval{part, v.Outcome})
	}
	return parts
}

// repeats says whether an offset is to be delivered again.
func (s *Settled) repeats(o int64) bool { return s.Again != nil && s.Again.set.Until(o) > o }

// lowest is the first offset that may have to be delivered; everything before it is settled.
func (s *Settled) lowest() int64 {
	if s.Again == nil {
		return s.Floor
	}
	return min(s.Floor, s.Again.set.First().First)
}

// settleAgain settles what of r was to be delivered again.
func (s *Settled) settleAgain(r Range, o Outcome) {
	for _, v := range s.Again.take(r) {
		if v.Outcome != 0 && v.Outcome != o {
			s.replace(v, o)
		}
	}
	if s.Again.set.Empty() {
		s.Again = nil
	}
}

// unrepeat leaves as they are what of r was to be delivered again.
func (s *Settled) unrepeat(r Range) {
	if s.Again == nil {
		return
	}
	if s.Again.take(r); s.Again.set.Empty() {
		s.Again = nil
	}
}

// replace has the offsets of v, which ended as v says, have ended as o. Below the floor there are
// only counts: where they do not have it, the ledger was begun anew since.
func (s *Settled) replace(v Interval, o Outcome) {
	if n := min(v.Next, s.Floor) - max(v.First, s.Start); n > 0 && s.Counts[v.Outcome] >= n {
		s.Counts[v.Outcome] -= n
		s.Counts[o] += n
	}
	above := Range{max(v.First, s.Floor), v.Next}
	for at := above.First; at < above.Next; {
		p := s.Above.over(at)
		have, ok := s.Above.at(p)
		if !ok || have.First >= above.Next {
			return
		}
		part := Range{max(have.First, above.First), min(have.Next, above.Next)}
		at = part.Next
		if have.Outcome != v.Outcome {
			continue
		}
		s.Above.remove(p)
		s.countBehind(have, -1)
		for _, rest := range []Interval{{Range{have.First, part.First}, have.Outcome}, {Range{part.Next, have.Next}, have.Outcome}, {part, o}} {
			if rest.Len() > 0 {
				s.insert(rest)
			}
		}
	}
}

// repeatChange has ranges of a partition be delivered again, as far as they are settled.
type repeatChange struct {
	Partition Partition  `json:"part"`
	Ranges    []Interval `json:"ranges"` // outcome: see repeats.list
}

// repeatLocked applies a repeatChange, and returns how many offsets it is about. Leases of the
// partition end, since a delivery tells by the epoch what it has delivered already, and with
// ordering what is lower comes first.
func (q *Queue) repeatLocked(g *progress, ranges []Interval, epoch int64) (offsets int64) {
	q.revokeLocked(g)
	q.takeAllBackLocked(g)
	var lacking []Range
	for _, v := range ranges {
		lacking = append(lacking, g.trimNeeded(g.settled.Within(v.Range))...)
	}
	q.freezeLocked(g)
	g.countAgain(func() {
		for _, v := range ranges {
			for _, part := range g.settled.Repeat(v) {
				offsets += part.Len()
			}
		}
	})
	if offsets > 0 {
		g.settled.Epoch = max(epoch, g.settled.Epoch+1)
	}
	for _, r := range lacking {
		q.deferRangeLocked(g, r, 0)
	}
	low := g.settled.lowest()
	if pc := g.part.pieceAt(low); pc != nil {
		low = pc.own.First
	}
	g.moveCursor(low)
	q.readyLocked(g)
	return offsets
}

// forgetRepeatsLocked ends what is to be delivered again in a partition whose ledger begins anew.
// What was redriven ends as before.
func (q *Queue) forgetRepeatsLocked(g *progress, atMs int64) {
	if g.settled.Again == nil {
		return
	}
	for _, v := range slices.Collect(g.settled.Again.list.all()) {
		s := unrepeat(v)
		s.AtMs = atMs
		q.settlePartLocked(g, &s)
	}
}

const reasonRedriveEnded = "it was redriven, and the subscription moved before it was delivered"

// unrepeat settles what was to be delivered again as the ledger says already. What was redriven
// is listed again.
func unrepeat(v Interval) settleChange {
	if v.Outcome == 0 {
		return settleChange{Range: v.Range, Keep: true}
	}
	return settleChange{Range: v.Range, Except: []Interval{v}, Reason: reasonRedriveEnded}
}

// relistLocked takes off the list what is listed as undelivered and is settled now for a replay:
// it ends anew, and the ledger hears how it had ended.
func (q *Queue) relistLocked(g *progress, r Range) {
	if g.settled.Again == nil || len(g.sub.undelivered) == 0 {
		return
	}
	gone := repeatChange{Partition: g.part.id}
	for _, part := range g.settled.Again.set.Within(r) {
		for i := range g.sub.undelivered {
			u := &g.sub.undelivered[i]
			x := Range{max(part.First, u.Range.First), min(part.Next, u.Range.Next)}
			if u.Partition != g.part.id || x.Len() <= 0 {
				continue
			}
			gone.Ranges = append(gone.Ranges, Interval{x, u.Outcome})
			g.countAgain(func() {
				for _, v := range g.settled.Again.take(x) {
					v.Outcome = u.Outcome
					g.settled.Again.add(v)
				}
			})
		}
	}
	if len(gone.Ranges) > 0 {
		g.sub.forget([]repeatChange{gone})
		for _, pc := range q.takeCopiesLocked(g.sub, g.part.id, gone.Ranges) {
			q.settledRefs = append(q.settledRefs, pc.ref)
		}
	}
}

// countAgain keeps the subscription's counts of what is to be delivered again while f changes the
// ledger.
func (g *progress) countAgain(f func()) {
	replays, redriven := g.settled.Again.counts()
	f()
	after, afterRedriven := g.settled.Again.counts()
	g.sub.replaying += after - replays
	g.sub.redriving += afterRedriven - redriven
}

// lacksFrom returns the first deferred offset at or after o that was never settled, at most limit.
func (g *progress) lacksFrom(o, limit int64) int64 {
	for {
		o = g.deferred.NextIn(o, limit)
		if o >= limit || !g.settled.repeats(o) {
			return o
		}
		o = g.settled.Again.set.Until(o)
	}
}

// trimNeeded returns the parts of settled or deferred ranges that no piece answers for that the
// subscription needs. Only the ends of a range can be in one: it is needed for the rest of it.
func (g *progress) trimNeeded(ranges []Range) []Range {
	var parts []Range
	for _, part := range ranges {
		if pc := g.part.pieceAt(part.First); pc != nil && g.needs(pc.own) {
			part.First = pc.own.Next
		}
		if pc := g.part.pieceAt(part.Next - 1); part.Len() > 0 && pc != nil && g.needs(pc.own) {
			part.Next = pc.own.First
		}
		if part.Len() > 0 {
			parts = append(parts, part)
		}
	}
	return parts
}
