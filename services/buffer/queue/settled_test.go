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
	want := `{"start":10,"floor":15,"counts":[0,0,0,0,5,0],"above":[{"f":20,"n":35,"o":1},{"f":35,"n":36,"o":2}]}`
	if diff := cmp.Diff(want, string(mustJSON(&s))); diff != "" {
		t.Fatalf("with a hole (-want +got):\n%s", diff)
	}
	s.Add(Range{12, 40}, Lost)
	want = `{"start":10,"floor":40,"counts":[0,15,1,0,5,9]}`
	if diff := cmp.Diff(want, string(mustJSON(&s))); diff != "" {
		t.Fatalf("without (-want +got):\n%s", diff)
	}
}

// TestSettledEncodesAsJSON: the encoder for snapshots writes what encoding/json does.
func TestSettledEncodesAsJSON(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for i := range int64(500) {
		s := NewSettled(r.Int64N(10), i%3)
		for range r.IntN(20) {
			first := r.Int64N(100)
			s.Add(Range{first, first + r.Int64N(9)}, Outcome(1+r.IntN(5)))
		}
		if diff := cmp.Diff(string(mustJSON(&s)), string(s.appendJSON(nil))); diff != "" {
			t.Fatalf("(-encoding/json +own):\n%s", diff)
		}
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
			for iv := range s.Above.all() {
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
