package queue

import (
	"fmt"
	"slices"
	"sort"
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

// Interval is a settled range with its outcome.
type Interval struct {
	Range
	Outcome Outcome `json:"o"`
}

// Settled is the ledger of one subscription in one partition: every offset is settled once, with one
// outcome. Below Floor, where everything is settled, only counts are kept, so that its size follows
// the disorder in flight and not the history.
type Settled struct {
	Start  int64           `json:"start"` // offsets before it count as settled
	Floor  int64           `json:"floor"` // everything before it is settled
	Counts [outcomes]int64 `json:"counts"`
	Above  []Interval      `json:"above,omitempty"` // ascending, disjoint, all above Floor
	// Epoch is another one whenever the ledger begins anew: what was delivered in a former one may be again.
	Epoch int64 `json:"epoch,omitempty"`
}

// NewSettled is an empty ledger that begins at start.
func NewSettled(start, epoch int64) Settled { return Settled{Start: start, Floor: start, Epoch: epoch} }

// Add settles those offsets of r that are not settled yet.
func (s *Settled) Add(r Range, o Outcome) {
	r.First = max(r.First, s.Floor)
	if r.First >= r.Next {
		return
	}
	// Most acks arrive in order and touch no interval.
	if r.First == s.Floor && (len(s.Above) == 0 || r.Next <= s.Above[0].First) {
		s.Counts[o] += r.Len()
		s.Floor = r.Next
		s.absorb()
		return
	}
	for r.First < r.Next {
		i := sort.Search(len(s.Above), func(i int) bool { return s.Above[i].Next > r.First })
		if i == len(s.Above) || s.Above[i].First >= r.Next {
			s.insert(i, Interval{r, o})
			break
		}
		settled := s.Above[i].Range
		if r.First < settled.First {
			s.insert(i, Interval{Range{r.First, settled.First}, o})
		}
		r.First = settled.Next
	}
	s.absorb()
}

// insert puts v, which overlaps nothing, at index i, joined with neighbours of the same outcome.
func (s *Settled) insert(i int, v Interval) {
	from, to := i, i // what v replaces
	if i > 0 && s.Above[i-1].Next == v.First && s.Above[i-1].Outcome == v.Outcome {
		from, v.First = i-1, s.Above[i-1].First
	}
	if i < len(s.Above) && s.Above[i].First == v.Next && s.Above[i].Outcome == v.Outcome {
		to, v.Next = i+1, s.Above[i].Next
	}
	s.Above = slices.Replace(s.Above, from, to, v)
}

// absorb moves intervals that begin at the floor below it.
func (s *Settled) absorb() {
	n := 0
	for n < len(s.Above) && s.Above[n].First <= s.Floor {
		s.Counts[s.Above[n].Outcome] += s.Above[n].Len()
		s.Floor = s.Above[n].Next
		n++
	}
	if n > 0 {
		s.Above = s.Above[n:] // not moved: there may be many behind, and each ack takes some
	}
	if len(s.Above) == 0 {
		s.Above = nil
	}
}

// Until returns the first offset at or after o that is not settled.
func (s *Settled) Until(o int64) int64 {
	o = max(o, s.Floor)
	i := sort.Search(len(s.Above), func(i int) bool { return s.Above[i].Next > o })
	for ; i < len(s.Above) && s.Above[i].First <= o; i++ {
		o = s.Above[i].Next
	}
	return o
}

// Covers says whether all of r is settled.
func (s *Settled) Covers(r Range) bool { return s.Until(r.First) >= r.Next }

// Within returns the settled parts of r, ascending.
func (s *Settled) Within(r Range) []Range {
	var parts []Range
	if r.First < s.Floor {
		parts = append(parts, Range{r.First, min(s.Floor, r.Next)})
	}
	i := sort.Search(len(s.Above), func(i int) bool { return s.Above[i].Next > r.First })
	for ; i < len(s.Above) && s.Above[i].First < r.Next; i++ {
		part := Range{max(s.Above[i].First, r.First), min(s.Above[i].Next, r.Next)}
		if n := len(parts); n > 0 && parts[n-1].Next == part.First {
			parts[n-1].Next = part.Next
			continue
		}
		parts = append(parts, part)
	}
	return parts
}

// Unsettled returns the parts of r that are not settled, ascending.
func (s *Settled) Unsettled(r Range) []Range {
	var parts []Range
	for o := s.Until(r.First); o < r.Next; {
		end := r.Next
		if i := sort.Search(len(s.Above), func(i int) bool { return s.Above[i].Next > o }); i < len(s.Above) {
			end = min(end, s.Above[i].First)
		}
		parts = append(parts, Range{o, end})
		o = s.Until(end)
	}
	return parts
}

// End is the offset after the highest settled one.
func (s *Settled) End() int64 {
	if n := len(s.Above); n > 0 {
		return s.Above[n-1].Next
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
	for _, v := range s.Above {
		totals[v.Outcome] += v.Len()
	}
	return totals
}
