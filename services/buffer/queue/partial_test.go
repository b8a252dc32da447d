package queue

import (
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestWhatIsGivenBackAgainAndAgainHoldsUpNothing: batches that are due again take turns with new
// ones.
func TestWhatIsGivenBackAgainAndAgainHoldsUpNothing(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 50)
	for i := range int64(20) {
		h.append("t", 10*i, 10*i+10)
	}
	delivered := int64(0)
	for round := 0; delivered < 15; round++ {
		if round == 20 {
			t.Fatalf("%d of 15 batches were delivered in %d rounds", delivered, round)
		}
		for _, l := range leasesOf(drain(s)) {
			if l.Batch.First < 50 {
				s.Nack(l.ID, -1, "")
			} else {
				delivered++
				h.ack(s, uint64(l.ID), []*Lease{l})
			}
			if err := s.AddCredit(10); err != nil {
				t.Fatal(err)
			}
		}
		h.write()
	}
}

// TestScatteredLedger: when acks have settled very many ranges apart, no new batch is leased
// before the gaps are fewer; those that come again are. Gaps ahead of what was leased do not
// count.
func TestScatteredLedger(t *testing.T) {
	race.Apart(t)
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	wide := testBatch("t", 0, 10)
	wide.Next, wide.Records = 2*maxScattered+2, 10
	if _, err := h.q.Append(t.Context(), wide, 0); err != nil {
		t.Fatal(err)
	}
	only := make([]Range, 0, maxScattered+1)
	for o := int64(1); o < wide.Next; o += 2 {
		only = append(only, Range{o, o + 1})
	}
	l := leasesOf(drain(s))[0]
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, Only: only}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	h.append("t", wide.Next, wide.Next+10)
	if more := leasesOf(drain(s)); len(more) != 0 {
		t.Fatalf("%d batches were leased", len(more))
	}
	s.Nack(l.ID, -1, "")
	again := leasesOf(drain(s))
	if len(again) != 1 || again[0].Attempt != 2 || len(again[0].Settled) != maxScattered+1 {
		t.Fatalf("leased again: %d", len(again))
	}
	if err := s.Ack(Ack{ID: 2, Leases: []AckedLease{{ID: again[0].ID, Only: []Range{{0, 5}}}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	if more := leasesOf(drain(s)); len(more) != 1 || more[0].Batch.First != wide.Next {
		t.Fatalf("with fewer gaps: %v", more)
	}

	// A topic of which every other offset is compacted away, and nobody has read it yet.
	for o := range int64(maxScattered + 1) {
		h.q.mu.Lock()
		p := h.q.partitionLocked(testPartition("other"), 0)
		h.q.settleLocked(p.progress[h.q.subs[0]], &settleChange{Partition: p.id, Range: Range{2*o + 1, 2*o + 2}})
		p.appended = 2*o + 2
		h.q.mu.Unlock()
	}
	h.pass(time.Second)
	h.append("t", wide.Next+10, wide.Next+20)
	if more := leasesOf(drain(s)); len(more) != 1 {
		t.Fatalf("gaps in what was not leased yet: %v", more)
	}
}
