package queue

import (
	"cmp"
	"fmt"
	"slices"
)

// Range is the half-open range of offsets [First, Next) of one partition.
type Range struct {
	First int64 `json:"f"`
	Next  int64 `json:"n"`
}

// Len is the number of offsets.
func (r Range) Len() int64 { return r.Next - r.First }

// Outcome is how an offset ended for a subscription. The numbers are those of spillway.v1.Outcome
// and of the journal.
type Outcome uint8

const (
	Delivered    Outcome = 1
	DeadLettered Outcome = 2
	Dropped      Outcome = 3
	Filtered     Outcome = 4
	Lost         Outcome = 5

	outcomes = 6
)

func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case DeadLettered:
		return "dead_lettered"
	case Dropped:
		return "dropped"
	case Filtered:
		return "filtered"
	case Lost:
		return "lost"
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// outcomeOf is the outcome with a name, or 0.
func outcomeOf(name string) Outcome {
	for o := Delivered; o < outcomes; o++ {
		if o.String() == name {
			return o
		}
	}
	return 0
}

// Interval is a settled range with its outcome.
type Interval struct {
	Range
	Outcome Outcome `json:"o"`
}

// Settled is the ledger of one subscription in one partition: every offset is settled once, with
// one outcome. Below Floor, where everything is settled, only counts are kept, so that its size
// follows the disorder in flight and not the history.
type Settled struct {
	Start  int64           `json:"start"` // offsets before it count as settled
	Floor  int64           `json:"floor"` // everything before it is settled
	Counts [outcomes]int64 `json:"counts"`
	Above  list[Interval]  `json:"above,omitzero"` // ascending, disjoint, all above Floor
	// Epoch is another one whenever the ledger begins anew: what was delivered in a former one
	// may be again.
	Epoch int64 `json:"epoch,omitempty"`
	// Again is settled and to be delivered once more: it counts as not settled for all that
	// delivers, and as settled for all that accounts. Nil is nothing.
	Again *repeats `json:"again,omitempty"`

	above  Set   // the offsets of Above, whatever their outcomes
	mark   int64 // see setMark
	behind int   // how many of Above begin before mark
}

// NewSettled is an empty ledger that begins at start.
func NewSettled(start, epoch int64) Settled { return Settled{Start: start, Floor: start, Epoch: epoch} }

// restored is a decoded ledger, ready for use.
func (s Settled) restored() Settled {
	s.above, s.mark, s.behind = Set{}, 0, 0
	for v := range s.Above.all() {
		s.above.Add(v.Range)
	}
	return s
}

// Add settles those offsets of r that are not settled yet.
func (s *Settled) Add(r Range, o Outcome) {
	if s.Again != nil {
		s.settleAgain(r, o)
	}
	r.First = max(r.First, s.Floor)
	if r.First >= r.Next {
		return
	}
	// Most acks arrive in order and touch no interval.
	if r.First == s.Floor && s.above.NextIn(r.First, r.Next) == r.Next {
		s.Counts[o] += r.Len()
		s.Floor = r.Next
		s.absorb()
		return
	}
	for _, part := range s.above.Without(r) {
		s.insert(Interval{part, o})
	}
	s.above.Add(r)
	s.absorb()
}

// insert adds v, which overlaps nothing, joined with neighbours of the same outcome.
func (s *Settled) insert(v Interval) {
	p := s.Above.seek(v.First)
	if behind, ok := s.Above.at(p); ok && behind.First == v.Next && behind.Outcome == v.Outcome {
		v.Next = behind.Next
		p = s.Above.remove(p)
		s.countBehind(behind, -1)
	}
	if before, ok := s.Above.at(s.Above.prev(p)); ok && before.Next == v.First && before.Outcome == v.Outcome {
		v.First = before.First
		s.Above.set(s.Above.prev(p), v)
		return
	}
	s.Above.insert(p, v)
	s.countBehind(v, 1)
}

func (s *Settled) countBehind(v Interval, n int) {
	if v.First < s.mark {
		s.behind += n
	}
}

// setMark moves the offset before which the intervals above the floor are counted in behind.
func (s *Settled) setMark(o int64) {
	step := 1
	from, to := s.mark, o
	if o < s.mark {
		from, to, step = o, s.mark, -1
	}
	for v := range s.Above.from(s.Above.seek(from)) {
		if v.First >= to {
			break
		}
		s.behind += step
	}
	s.mark = o
}

// absorb moves intervals that begin at the floor below it.
func (s *Settled) absorb() {
	for v, ok := s.Above.first(); ok && v.First <= s.Floor; v, ok = s.Above.first() {
		s.Counts[v.Outcome] += v.Len()
		s.Floor = v.Next
		s.Above.remove(place{})
		s.countBehind(v, -1)
	}
	if r := s.above.First(); r.First < s.Floor {
		s.above.Remove(Range{r.First, s.Floor})
	}
}

// Until returns the first offset at or after o that is not settled.
func (s *Settled) Until(o int64) int64 {
	until := s.until(o)
	if s.Again != nil {
		until = s.Again.set.NextIn(o, until)
	}
	return until
}

// until is Until but for what is to be delivered again, which counts as settled.
func (s *Settled) until(o int64) int64 { return s.above.Until(max(o, s.Floor)) }

// NextIn returns the first offset at or after o that is settled, at most limit.
func (s *Settled) NextIn(o, limit int64) int64 {
	for {
		if o >= s.Floor {
			o = s.above.NextIn(o, limit)
		}
		if o >= limit || !s.repeats(o) {
			return min(o, limit)
		}
		o = s.Again.set.Until(o)
	}
}

// Covers says whether all of r is settled.
func (s *Settled) Covers(r Range) bool { return s.Until(r.First) >= r.Next }

// Within returns the settled parts of r, ascending.
func (s *Settled) Within(r Range) []Range {
	parts := s.within(r)
	if s.Again == nil {
		return parts
	}
	var left []Range
	for _, part := range parts {
		left = append(left, s.Again.set.Without(part)...)
	}
	return left
}

// within is Within but for what is to be delivered again, which counts as settled.
func (s *Settled) within(r Range) []Range {
	if r.First >= s.Floor {
		return s.above.Within(r)
	}
	return append([]Range{{r.First, min(s.Floor, r.Next)}}, s.above.Within(Range{s.Floor, r.Next})...)
}

// Unsettled returns the parts of r that are not settled, ascending.
func (s *Settled) Unsettled(r Range) []Range {
	parts := s.above.Without(Range{max(r.First, s.Floor), r.Next})
	if s.Again != nil {
		parts = append(parts, s.Again.set.Within(r)...)
		slices.SortFunc(parts, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	}
	return parts
}

// Scattered is the number of ranges with one outcome above the floor.
func (s *Settled) Scattered() int { return s.Above.size() }

// End is the offset after the highest settled one.
func (s *Settled) End() int64 {
	if last, ok := s.Above.last(); ok {
		return last.Next
	}
	return s.Floor
}

// Totals counts the settled offsets per outcome.
func (s *Settled) Totals() map[Outcome]int64 {
	totals := make(map[Outcome]int64)
	for o, n := range s.Counts {
		if n > 0 {
			totals[Outcome(o)] += n
		}
	}
	for v := range s.Above.all() {
		totals[v.Outcome] += v.Len()
	}
	return totals
}
