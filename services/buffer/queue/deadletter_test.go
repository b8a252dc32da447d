package queue

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestDeadLettersAreRanges settles a lease of 2^30 offsets in two parts with three dead letters.
// One of them lies in both parts.
func TestDeadLettersAreRanges(t *testing.T) {
	race.Apart(t)
	const next = 1 << 30
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, next)
	l := leasesOf(drain(s))[0]
	for name, bad := range map[string]DeadLetter{
		"outside":   {Offset: 10, Next: next + 1},
		"backwards": {Offset: 10, Next: 9},
		"empty":     {Offset: 10, Next: 10},
		"before":    {Offset: -1, Next: 10},
	} {
		if err := s.Ack(Ack{ID: 9, Leases: []AckedLease{{ID: l.ID, DeadLetters: []DeadLetter{bad}}}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	letters := []DeadLetter{{Offset: 5, Next: 10, Reason: "a"}, {Offset: 20, Reason: "b"}, {Offset: 1000, Next: next, Reason: "c"}}
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, DeadLetters: letters, Only: []Range{{0, 8}, {2000, next}}}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	if err := s.Ack(Ack{ID: 2, Leases: []AckedLease{{ID: l.ID, DeadLetters: letters}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	want := map[Outcome]int64{Delivered: next - 5 - 1 - (next - 1000), DeadLettered: 5 + 1 + next - 1000}
	for _, when := range []string{"when it is durable", "after a restart"} {
		if diff := cmp.Diff(want, h.outcomes("s")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
		undelivered, err := h.q.Undelivered("s")
		if err != nil {
			t.Fatal(err)
		}
		dead := make(map[string]int64)
		for _, u := range undelivered {
			dead[u.Reason] += u.Range.Len()
		}
		if diff := cmp.Diff(map[string]int64{"a": 5, "b": 1, "c": next - 1000}, dead); diff != "" {
			t.Errorf("undelivered %s (-want +got):\n%s", when, diff)
		}
		h.reopen()
	}
}
