package queue

import (
	"fmt"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// What is too much for one hold of the lock is done in several: with eight times as much to do,
// the longest hold is not longer. The sizes are above holdItems, where a hold ends.

func TestHoldsDoNotGrow(t *testing.T) {
	race.Apart(t)
	const few, times, most = 2 * holdItems, 8, 3
	little := 2 * time.Millisecond // what is no hold of its own, such as counting all of something, may grow
	for _, c := range holdCases {
		t.Run(c.name, func(t *testing.T) {
			var small, large time.Duration
			for range 6 { // another process may have had the processor
				small, large = best(small, c.hold(t, few)), best(large, c.hold(t, few*times))
				if large <= most*max(small, little) {
					return
				}
			}
			t.Errorf("with %d the lock is held for %v, with %d for %v", few, small, few*times, large)
		})
	}
}

var holdCases = []struct {
	name string
	hold func(t testing.TB, n int) time.Duration
}{
	{"a topic is wanted no more", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"), all("other"))
		fill(h, n)
		return h.longestHold(func() { h.want("s", "no*") })
	}},
	{"a topic is wanted no more, and deferred", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		fill(h, n)
		s := h.session("s", false, 1<<40)
		for _, l := range leasesOf(drainAll(s)) {
			s.Nack(l.ID, time.Minute, "")
		}
		return h.longestHold(func() { h.want("s", "no*") })
	}},
	{"a topic is wanted again", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"), all("other"))
		fill(h, n/2)
		h.want("s", "no*")
		fillFrom(h, int64(n/2), n/2)
		return h.longestHold(func() { h.want("s", "*") })
	}},
	{"leases of a topic that is wanted no more", func(t testing.TB, n int) time.Duration {
		h, _, _ := leased(t, n, false)
		return h.longestHold(func() { h.want("s", "no*") })
	}},
	{"what is not wanted is given up", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		fill(h, n)
		h.want("s", "no*")
		return h.longestHold(func() {
			if err := h.manage(func() error { return h.q.DropUnwanted(h.t.Context(), "s") }); err != nil {
				h.t.Fatal(err)
			}
		})
	}},
	{"leases of a subscription that is moved", func(t testing.TB, n int) time.Duration {
		h, _, _ := leased(t, n, true)
		return h.longestHold(func() {
			if err := h.manage(func() error { return h.q.Seek(h.t.Context(), "s", Earliest, nil) }); err != nil {
				h.t.Fatal(err)
			}
		})
	}},
	{"parked batches are listed", func(t testing.TB, n int) time.Duration {
		h, leases, s := leased(t, n, false)
		for _, l := range leases {
			s.Nack(l.ID, time.Minute, "")
		}
		return h.longestHold(func() {
			if views, err := parkedOf(h.q, "s"); err != nil || len(views) != n {
				h.t.Errorf("%d are listed, want %d: %v", len(views), n, err)
			}
		})
	}},
	{"batches are audited", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		for i := range int64(n) { // every other one has another state
			h.append("t", 2*i, 2*i+1)
			if err := h.q.Settle(testPartition("t"), Range{2*i + 1, 2*i + 2}, Filtered, "", 0); err != nil {
				t.Fatal(err)
			}
		}
		h.write()
		return h.longestHold(h.checkAudit)
	}},
	{"dead letters of one lease", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		h.append("t", 0, int64(n))
		s := h.session("s", false, 1<<40)
		ack := Ack{ID: 1, Leases: []AckedLease{{ID: leasesOf(drain(s))[0].ID}}}
		for i := range int64(n) {
			ack.Leases[0].DeadLetters = append(ack.Leases[0].DeadLetters, DeadLetter{Offset: i, Reason: fmt.Sprint(i % 2)})
		}
		if err := s.Ack(ack); err != nil {
			t.Fatal(err)
		}
		return h.longestHold(h.write)
	}},
	{"sink state is put, and adopted", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		s := h.session("s", false, 1)
		put := Ack{ID: 1}
		for i := range n {
			put.State = append(put.State, StateChange{Key: fmt.Sprint(i), Value: []byte("v"), HoldsMs: 1})
		}
		if err := s.Ack(put); err != nil {
			t.Fatal(err)
		}
		heir := h.session("s", false, 1)
		longest := h.longestHold(func() {
			h.write()
			if views, err := h.q.State("s"); err != nil || len(views) != n {
				h.t.Errorf("%d entries are listed, want %d: %v", len(views), n, err)
			}
			s.Close()
			h.write()
		})
		if len(heir.state) != n || len(heir.holds) != n {
			t.Errorf("the heir has %d entries, of which %d hold time back, want %d", len(heir.state), len(heir.holds), n)
		}
		return longest
	}},
	{"an ingest of many partitions ends", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		w := h.q.Watch("k", "ingest")
		for i := range n {
			if err := w.Add(testPartition(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		longest := h.longestHold(w.Close)
		if len(h.q.watching) > 0 {
			t.Errorf("%d partitions are still watched", len(h.q.watching))
		}
		return longest
	}},
	{"much that is stored becomes safe at once", func(t testing.TB, n int) time.Duration {
		subs := []SubscriptionConfig{all("s")}
		for i := range 30 { // each is asked at each step
			subs = append(subs, all(fmt.Sprint("other", i)))
		}
		h := scaleHarness(t, subs...)
		h.append("t", 0, 1)
		h.q.hold(func() bool { // and the store has what comes after it
			p := h.q.partitions[testPartition("t")]
			q := h.q
			q.deferLocked(p.progress[q.subs[0]], p.pieceAt(0))
			return false
		})
		fillFrom(h, 1, n)
		h.now = h.now.Add(100 * time.Hour)
		h.write()
		seek := func() {
			if err := h.manage(func() error { return h.q.Seek(h.t.Context(), "s", Nowhere, []Start{{testPartition("t"), 1}}) }); err != nil {
				h.t.Fatal(err)
			}
		}
		safe := func() int64 { return h.q.partitions[testPartition("t")].safe }
		if safe() != 0 {
			t.Fatalf("safe is %d before the first batch is", safe())
		}
		longest := h.longestHold(seek)
		if safe() != int64(n)+1 {
			t.Errorf("safe is %d, want %d", safe(), n+1)
		}
		return longest
	}},
	{"batches that many watch are written", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		for i := range n / 40 { // ingests that watch something else
			w := h.q.Watch("k", fmt.Sprint(i))
			if err := w.Add(testPartition("other")); err != nil {
				t.Fatal(err)
			}
		}
		w := h.q.Watch("k", "ingest")
		if err := w.Add(testPartition("t")); err != nil {
			t.Fatal(err)
		}
		fill(h, 2*holdItems)
		h.now = h.now.Add(100 * time.Hour)
		longest := h.longestHold(h.write)
		if w.risen[testPartition("t")] != 2*holdItems {
			t.Errorf("the ingest heard of %v", w.risen)
		}
		return longest
	}},
}

// want changes the topics of a subscription.
func (h *harness) want(sub string, topics ...string) {
	h.t.Helper()
	if err := h.manage(func() error {
		return h.q.Update(h.t.Context(), sub, func(c *SubscriptionConfig) { c.Topics = topics })
	}); err != nil {
		h.t.Fatal(err)
	}
	h.pass(time.Millisecond)
}
