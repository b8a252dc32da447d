package queue

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSettledKeepsCountsBelowTheFloor(t *testing.T) {
	s := NewSettled(10, 0)
	s.Add(Range{20, 30}, Delivered)
	s.Add(Range{35, 36}, DeadLettered)
	s.Add(Range{30, 35}, Delivered)
	s.Add(Range{0, 15}, Filtered)
	want := Settled{Start: 10, Floor: 15, Above: []Interval{{Range{20, 35}, Delivered}, {Range{35, 36}, DeadLettered}}}
	want.Counts[Filtered] = 5
	if diff := cmp.Diff(want, s); diff != "" {
		t.Fatalf("with a hole (-want +got):\n%s", diff)
	}
	s.Add(Range{12, 40}, Lost)
	want = Settled{Start: 10, Floor: 40}
	want.Counts = [outcomes]int64{Filtered: 5, Lost: 5 + 4, Delivered: 15, DeadLettered: 1}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Fatalf("without (-want +got):\n%s", diff)
	}
}

// TestSettledAgainstAMap settles random ranges and compares with a map of offsets.
func TestSettledAgainstAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 2000 {
		s, oracle := NewSettled(5, 0), map[int64]Outcome{}
		for range 30 {
			first := int64(r.IntN(60))
			add, o := Range{first, first + int64(r.IntN(12))}, Outcome(1+r.IntN(5))
			s.Add(add, o)
			for i := max(add.First, 5); i < add.Next; i++ {
				if oracle[i] == 0 {
					oracle[i] = o
				}
			}
		}
		totals := map[Outcome]int64{}
		for _, o := range oracle {
			totals[o]++
		}
		if diff := cmp.Diff(totals, s.Totals()); diff != "" {
			t.Fatalf("totals of %+v (-want +got):\n%s", s, diff)
		}
		for i := int64(5); i < 80; i++ {
			if covered := s.Covers(Range{i, i + 1}); covered != (oracle[i] != 0) {
				t.Fatalf("offset %d: covered is %v in %+v", i, covered, s)
			}
			for _, iv := range s.Above {
				if iv.First <= i && i < iv.Next && iv.Outcome != oracle[i] {
					t.Fatalf("offset %d is %s, want %s", i, iv.Outcome, oracle[i])
				}
			}
		}
		settled := int64(0)
		for _, part := range s.Within(Range{5, 80}) {
			settled += part.Len()
		}
		if settled != int64(len(oracle)) {
			t.Fatalf("Within has %d offsets, want %d", settled, len(oracle))
		}
	}
}
