package queue

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParkedBatchesAreListed(t *testing.T) {
	h := newHarness(t, all("s"), all("other"))
	log := h.logTo()
	h.reopen()
	for i := range int64(5) {
		h.append("t", 10*i, 10*i+10)
	}
	s := h.session("s", true, 1000)
	leases := leasesOf(drain(s))
	long := strings.Repeat("é", 1000)
	s.Nack(leases[2].ID, time.Hour, long)
	until := h.now.Add(maxNackDelay)
	parked := func(want int) []ParkedView {
		t.Helper()
		views, err := parkedOf(h.q, "s")
		if err != nil || len(views) != want {
			t.Fatalf("parked: %+v, %v, want %d", views, err, want)
		}
		if v, err := h.q.Subscription("s"); err != nil || v.Parked != want {
			t.Errorf("%d are parked, and count as %d: %v", want, v.Parked, err)
		}
		return views
	}
	views := parked(3) // with ordering, those behind it, too
	for i, v := range views {
		if v.Range.First != int64(20+10*i) || v.Attempts != 1 || v.Records != 10 || !v.Until.Equal(until) || !v.HoldsPartition || len(v.Reason) > maxParkedReason+3 {
			t.Errorf("%+v", v)
		}
	}
	if !strings.HasPrefix(views[0].Reason, "ééé") {
		t.Errorf("reason %q", views[0].Reason)
	}
	if views, err := parkedOf(h.q, "other"); err != nil || len(views) != 0 {
		t.Errorf("of another subscription: %+v, %v", views, err)
	}
	s.Nack(leases[1].ID, time.Minute, "again")
	h.q.logLines.flush(time.Minute)
	if n := strings.Count(log.String(), "gave a batch back"); n != 1 {
		t.Errorf("%d lines in the log within a minute, want 1:\n%s", n, log)
	}
	h.ack(s, 1, leases[:1])
	h.write()
	h.pass(maxNackDelay)
	parked(0)
	if got := leasesOf(drain(s)); len(got) != 4 {
		t.Errorf("%d leases when all are due", len(got))
	}
	s.Close()
	parked(0)
}

// TestParkedCountSurvivesWhatEnds checks the counter over all that takes parked batches away.
func TestParkedCountSurvivesWhatEnds(t *testing.T) {
	for name, end := range map[string]func(h *harness) error{
		"seek": func(h *harness) error { return h.q.Seek(h.t.Context(), "s", Latest, nil) },
		"narrow": func(h *harness) error {
			return h.q.Update(h.t.Context(), "s", func(c *SubscriptionConfig) { c.Topics = []string{"x"} })
		},
		"settled": func(h *harness) error {
			h.q.mu.Lock()
			defer h.q.mu.Unlock()
			sub := h.q.subscription("s")
			h.q.dropOldestLocked(sub, 0, "for the test")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, all("s"))
			h.append("t", 0, 10)
			h.append("t", 10, 20)
			s := h.session("s", false, 1000)
			for _, l := range leasesOf(drain(s)) {
				s.Nack(l.ID, time.Minute, "")
			}
			if v, err := h.q.Subscription("s"); err != nil || v.Parked != 2 {
				t.Fatalf("%+v, %v", v, err)
			}
			if err := h.manage(func() error { return end(h) }); err != nil {
				t.Fatal(err)
			}
			h.write()
			h.pass(2 * time.Minute)
			if v, err := h.q.Subscription("s"); err != nil || v.Parked != 0 || len(h.q.parked) != 0 {
				t.Errorf("%d are parked, and %d in all: %v", v.Parked, len(h.q.parked), err)
			}
		})
	}
}

func parkedOf(q *Queue, sub string) ([]ParkedView, error) {
	views, err := q.Parked(sub, Start{})
	if err != nil {
		return nil, err
	}
	return slices.Collect(views), nil
}

// TestParkedIsListedInParts: by partition and offset, from any place on, however little is looked
// at in one hold of the lock.
func TestParkedIsListedInParts(t *testing.T) {
	h := newHarness(t, all("s"), all("other"))
	h.holdItems = 2
	h.reopen()
	var want []Start
	for _, topic := range []string{"a", "b", "c"} {
		for i := range int64(7) {
			h.append(topic, i, i+1)
			want = append(want, Start{testPartition(topic), i})
		}
	}
	h.append("b-unparked", 0, 1)
	for _, sub := range []string{"s", "other"} {
		s := h.session(sub, false, 1<<20)
		for _, l := range leasesOf(drainAll(s)) {
			if l.Batch.Partition.Topic != "b-unparked" {
				s.Nack(l.ID, time.Minute, "")
			}
		}
	}
	for i := -1; i < len(want); i++ {
		after := Start{}
		if i >= 0 {
			after = want[i]
		}
		views, err := h.q.Parked("s", after)
		if err != nil {
			t.Fatal(err)
		}
		var got []Start
		for v := range views {
			got = append(got, Start{v.Partition, v.Range.First})
		}
		if !slices.Equal(got, want[i+1:]) {
			t.Fatalf("after %v: %v, want %v", after, got, want[i+1:])
		}
	}
}
