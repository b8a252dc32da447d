package queue

import "iter"

// Set is a set of offsets of one partition: ascending ranges that neither overlap nor touch.
type Set struct {
	ranges list[Range]
	n      int64 // offsets
}

// Add puts all of r into the set.
func (s *Set) Add(r Range) {
	if r.First >= r.Next {
		return
	}
	p := s.ranges.search(func(x Range) bool { return x.Next >= r.First })
	have, ok := s.ranges.at(p)
	if !ok || have.First > r.Next {
		s.ranges.insert(p, r)
		s.n += r.Len()
		return
	}
	// Grow the first range that is touched, and take out the others.
	grown := Range{min(r.First, have.First), max(r.Next, have.Next)}
	s.n -= have.Len()
	for {
		next := s.ranges.next(p)
		more, ok := s.ranges.at(next)
		if !ok || more.First > grown.Next {
			break
		}
		grown.Next = max(grown.Next, more.Next)
		s.n -= more.Len()
		s.ranges.remove(next)
		p = s.ranges.over(have.First)
	}
	s.ranges.set(p, grown)
	s.n += grown.Len()
}

// Remove takes all of r out of the set.
func (s *Set) Remove(r Range) {
	if r.First >= r.Next {
		return
	}
	p := s.ranges.over(r.First)
	for have, ok := s.ranges.at(p); ok && have.First < r.Next; have, ok = s.ranges.at(p) {
		before, behind := Range{have.First, r.First}, Range{r.Next, have.Next}
		s.n -= min(have.Next, r.Next) - max(have.First, r.First)
		switch {
		case before.Len() > 0 && behind.Len() > 0:
			s.ranges.set(p, before)
			s.ranges.insert(s.ranges.next(p), behind)
			return
		case before.Len() > 0:
			s.ranges.set(p, before)
			p = s.ranges.next(p)
		case behind.Len() > 0:
			s.ranges.set(p, behind)
			return
		default:
			p = s.ranges.remove(p)
		}
	}
}

// Empty says whether nothing is in the set.
func (s Set) Empty() bool { return s.n == 0 }

// First is the lowest range. Of an empty set it is empty.
func (s Set) First() Range {
	r, _ := s.ranges.first()
	return r
}

// All yields the ranges, ascending.
func (s Set) All() iter.Seq[Range] { return s.ranges.all() }

// Around is the range that has an offset, and false when the offset is not in the set.
func (s Set) Around(o int64) (Range, bool) {
	r, ok := s.ranges.at(s.ranges.over(o))
	return r, ok && r.First <= o
}

// Until returns the first offset at or after o that is not in the set.
func (s Set) Until(o int64) int64 {
	if r, ok := s.ranges.at(s.ranges.over(o)); ok && r.First <= o {
		return r.Next
	}
	return o
}

// NextIn returns the first offset at or after o that is in the set, at most limit.
func (s Set) NextIn(o, limit int64) int64 {
	if r, ok := s.ranges.at(s.ranges.over(o)); ok {
		return min(max(o, r.First), limit)
	}
	return limit
}

// Within returns the parts of r that are in the set, ascending.
func (s Set) Within(r Range) []Range {
	var parts []Range
	for have := range s.ranges.from(s.ranges.over(r.First)) {
		if have.First >= r.Next {
			break
		}
		parts = append(parts, Range{max(have.First, r.First), min(have.Next, r.Next)})
	}
	return parts
}

// Without returns the parts of r that are not in the set, ascending.
func (s Set) Without(r Range) []Range {
	var parts []Range
	o := r.First
	for have := range s.ranges.from(s.ranges.over(o)) {
		if have.First >= r.Next {
			break
		}
		if have.First > o {
			parts = append(parts, Range{o, have.First})
		}
		o = have.Next
	}
	if o < r.Next {
		parts = append(parts, Range{o, r.Next})
	}
	return parts
}

// Len is the number of offsets in the set.
func (s Set) Len() int64 { return s.n }
