package queue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestSetAgainstMap drives a Set with random changes and compares it with a plain map.
func TestSetAgainstMap(t *testing.T) {
	race.Apart(t)
	const size = 60
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var s Set
		want := make(map[int64]bool)
		for range 100 {
			first := r.Int64N(size)
			part := Range{first, first + r.Int64N(12)}
			add := r.IntN(2) == 0
			if add {
				s.Add(part)
			} else {
				s.Remove(part)
			}
			for o := part.First; o < part.Next; o++ {
				want[o] = add
			}
			checkSet(t, seed, s, want, size+12)
		}
	}
}

func checkSet(t *testing.T, seed uint64, s Set, want map[int64]bool, size int64) {
	t.Helper()
	n := int64(0)
	ranges := slices.Collect(s.All())
	for i, r := range ranges {
		if r.First >= r.Next || i > 0 && ranges[i-1].Next >= r.First {
			t.Fatalf("seed %d: not ascending and apart: %v", seed, ranges)
		}
	}
	for o := range size {
		if want[o] {
			n++
		}
		if in := s.Until(o) > o; in != want[o] {
			t.Fatalf("seed %d: offset %d in %v: %t, want %t", seed, o, ranges, in, want[o])
		}
		if in := s.NextIn(o, size) == o; in != want[o] {
			t.Fatalf("seed %d: NextIn of offset %d in %v: %t, want %t", seed, o, ranges, in, want[o])
		}
	}
	if s.Len() != n {
		t.Fatalf("seed %d: %v has %d offsets, want %d", seed, ranges, s.Len(), n)
	}
	all := Range{0, size}
	var both Set
	for _, r := range append(s.Within(all), s.Without(all)...) {
		both.Add(r)
	}
	if diff := cmp.Diff([]Range{all}, slices.Collect(both.All())); diff != "" {
		t.Fatalf("seed %d: Within and Without do not make the whole:\n%s", seed, diff)
	}
	if diff := cmp.Diff(ranges, s.Within(all)); diff != "" && len(ranges) > 0 {
		t.Fatalf("seed %d: Within:\n%s", seed, diff)
	}
}
