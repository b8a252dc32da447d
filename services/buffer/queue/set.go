package queue

import (
	"slices"
	"sort"
)

// Set is a set of offsets of one partition: ascending ranges that neither overlap nor touch.
type Set []Range

// index is the first range that ends after o.
func (s Set) index(o int64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].Next > o })
}

// Add puts all of r into the set.
func (s *Set) Add(r Range) {
	if r.First >= r.Next {
		return
	}
	i := sort.Search(len(*s), func(i int) bool { return (*s)[i].Next >= r.First })
	j := i
	for ; j < len(*s) && (*s)[j].First <= r.Next; j++ {
		r = Range{min(r.First, (*s)[j].First), max(r.Next, (*s)[j].Next)}
	}
	*s = slices.Replace(*s, i, j, r)
}

// Remove takes all of r out of the set.
func (s *Set) Remove(r Range) {
	if r.First >= r.Next {
		return
	}
	i := s.index(r.First)
	var rest []Range
	j := i
	for ; j < len(*s) && (*s)[j].First < r.Next; j++ {
		if (*s)[j].First < r.First {
			rest = append(rest, Range{(*s)[j].First, r.First})
		}
		if (*s)[j].Next > r.Next {
			rest = append(rest, Range{r.Next, (*s)[j].Next})
		}
	}
	*s = slices.Replace(*s, i, j, rest...)
}

// Until returns the first offset at or after o that is not in the set.
func (s Set) Until(o int64) int64 {
	if i := s.index(o); i < len(s) && s[i].First <= o {
		return s[i].Next
	}
	return o
}

// NextIn returns the first offset at or after o that is in the set, at most limit.
func (s Set) NextIn(o, limit int64) int64 {
	if i := s.index(o); i < len(s) {
		return min(max(o, s[i].First), limit)
	}
	return limit
}

// Within returns the parts of r that are in the set, ascending.
func (s Set) Within(r Range) []Range {
	var parts []Range
	for i := s.index(r.First); i < len(s) && s[i].First < r.Next; i++ {
		parts = append(parts, Range{max(s[i].First, r.First), min(s[i].Next, r.Next)})
	}
	return parts
}

// Without returns the parts of r that are not in the set, ascending.
func (s Set) Without(r Range) []Range {
	var parts []Range
	for o := s.Until(r.First); o < r.Next; {
		end := s.NextIn(o, r.Next)
		parts = append(parts, Range{o, end})
		o = s.Until(end)
	}
	return parts
}

// Len is the number of offsets in the set.
func (s Set) Len() int64 {
	n := int64(0)
	for _, r := range s {
		n += r.Len()
	}
	return n
}
