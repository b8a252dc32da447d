package queue

import (
	"fmt"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// What the queue does under its lock may cost in proportion to what it does, and not to the
// square: with sixteen times as much it takes sixteen times as long, not two hundred and
// fifty-six times.

func TestCostIsLinear(t *testing.T) {
	race.Apart(t)
	const few, times, most = 1000, 16, 80
	for _, c := range scaleCases {
		t.Run(c.name, func(t *testing.T) {
			var small, large time.Duration
			for range 6 { // another process may have had the processor
				small, large = best(small, c.cost(t, few)), best(large, c.cost(t, few*times))
				if large <= most*max(small, time.Millisecond/2) {
					return
				}
			}
			t.Errorf("%d take %v, %d take %v: %.0f times as long", few, small, few*times, large, float64(large)/float64(small))
		})
	}
}

func best(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

var scaleCases = []struct {
	name string
	cost func(t testing.TB, n int) time.Duration
}{
	{"a dead session's leases of one partition go to another", func(t testing.TB, n int) time.Duration { return costOfSuccession(t, n, false) }},
	{"a dead session's leases of one partition go to another in order", func(t testing.TB, n int) time.Duration { return costOfSuccession(t, n, true) }},
	{"leases are acked from the last to the first", func(t testing.TB, n int) time.Duration {
		h, leases, s := leased(t, n, false)
		ack := Ack{ID: 1}
		for i := range leases {
			ack.Leases = append(ack.Leases, AckedLease{ID: leases[len(leases)-1-i].ID})
		}
		return timed(func() {
			if err := s.Ack(ack); err != nil {
				t.Fatal(err)
			}
			h.write()
		})
	}},
	{"every other lease is acked", func(t testing.TB, n int) time.Duration {
		h, leases, s := leased(t, 2*n, false)
		return timed(func() {
			for i := 1; i < len(leases); i += 2 {
				if err := s.Ack(Ack{ID: uint64(i), Leases: []AckedLease{{ID: leases[i].ID}}}); err != nil {
					t.Fatal(err)
				}
			}
			h.write()
		})
	}},
	{"a scattered ledger is audited", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		h.append("t", 0, int64(2*n+1))
		g := h.q.sorted[0].progress[h.q.subs[0]]
		for i := range int64(n) {
			g.settle(Range{2*i + 1, 2*i + 2}, Delivered)
		}
		return timed(h.checkAudit)
	}},
	{"many batches are audited", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		fill(h, n)
		return timed(h.checkAudit)
	}},
	{"a tenth is deferred", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"), SubscriptionConfig{Name: "d", Topics: []string{"*"}, OnFull: Defer})
		fill(h, 10*n)
		sub := h.q.subscription("d")
		return timed(func() {
			for left := sub.pendingBytes / 10 * 9; sub.pendingBytes > left; {
				h.q.deferNewestLocked(sub, left)
			}
		})
	}},
	{"a tenth is dropped", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"), SubscriptionConfig{Name: "d", Topics: []string{"*"}, OnFull: DropOldest})
		fill(h, 10*n)
		sub := h.q.subscription("d")
		return timed(func() {
			for left := sub.pendingBytes / 10 * 9; sub.pendingBytes > left; h.write() {
				h.q.dropOldestLocked(sub, left, reasonDisk)
			}
		})
	}},
	{"leases are given back and due again", func(t testing.TB, n int) time.Duration {
		h, leases, s := leased(t, n, false)
		return timed(func() {
			for _, l := range leases {
				s.Nack(l.ID, time.Second, "")
			}
			h.pass(2 * time.Second)
			drain(s)
		})
	}},
	{"leases expire", func(t testing.TB, n int) time.Duration {
		h, _, s := leased(t, n, false)
		return timed(func() {
			h.pass(time.Hour)
			drain(s)
		})
	}},
	{"leases expire in order", func(t testing.TB, n int) time.Duration {
		h, _, s := leased(t, n, true)
		return timed(func() {
			h.pass(time.Hour)
			drain(s)
		})
	}},
	{"partitions become known", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		return timed(func() {
			for i := range n {
				h.append(fmt.Sprint("t", i), 0, 1)
			}
		})
	}},
	{"partitions are moved to the end", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		for i := range n {
			h.append(fmt.Sprint("t", i), 0, 1)
		}
		h.write()
		return timed(func() {
			if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", Latest, nil) }); err != nil {
				t.Fatal(err)
			}
		})
	}},
	{"a subscription is created and deleted", func(t testing.TB, n int) time.Duration {
		h := scaleHarness(t, all("s"))
		for i := range n {
			h.append(fmt.Sprint("t", i), 0, 1)
		}
		h.write()
		return timed(func() {
			if err := h.manage(func() error { return h.q.Subscribe(t.Context(), all("more"), Latest, nil) }); err != nil {
				t.Fatal(err)
			}
			if err := h.manage(func() error { return h.q.Unsubscribe(t.Context(), "more", true) }); err != nil {
				t.Fatal(err)
			}
		})
	}},
}

// scaleHarness has room for everything.
func scaleHarness(t testing.TB, subs ...SubscriptionConfig) *harness {
	h := newHarness(t, subs...)
	h.cfg.MemoryRecords, h.cfg.MemoryBytes, h.cfg.SpillAfter = 1<<40, 1<<40, time.Hour*24
	h.store = newFakeStore()
	h.reopen()
	return h
}

// fill appends n batches of one record to one partition.
func fill(h *harness, n int) {
	h.t.Helper()
	fillFrom(h, 0, n)
}

func fillFrom(h *harness, first int64, n int) {
	h.t.Helper()
	for i := range int64(n) {
		h.append("t", first+i, first+i+1)
	}
}

// leased is a session that has leases of n batches of one partition.
func leased(t testing.TB, n int, ordered bool) (*harness, []*Lease, *Session) {
	t.Helper()
	h := scaleHarness(t, all("s"))
	fill(h, n)
	s := h.session("s", ordered, 1<<40)
	return h, leasesOf(drainAll(s)), s
}

// drainAll takes all events, with those of leases that are too many for one hold of the lock.
func drainAll(s *Session) (all []Event) {
	for events := drain(s); len(events) > 0; events = drain(s) {
		all = append(all, events...)
	}
	return all
}

func costOfSuccession(t testing.TB, n int, ordered bool) time.Duration {
	h, _, s := leased(t, n, ordered)
	heir := h.session("s", ordered, 1<<40)
	var got int
	cost := timed(func() {
		s.Close()
		got = len(leasesOf(drainAll(heir)))
	})
	if got != n {
		t.Fatalf("%d leases went to the other session, want %d", got, n)
	}
	return cost
}

// TestGivingWayIsBounded: of many subscriptions with many partitions, only so many give way at
// once to a full disk, and the others the next time.
func TestGivingWayIsBounded(t *testing.T) {
	const subs, partitions = 30, 5000
	var configs []SubscriptionConfig
	for i := range subs {
		configs = append(configs, SubscriptionConfig{Name: fmt.Sprint("s", i), Topics: []string{"*"}, OnFull: DropOldest})
	}
	h := scaleHarness(t, configs...)
	for i := range partitions {
		h.append(fmt.Sprint("t", i), 0, 1)
	}
	gaveWay := func() (n int) {
		for _, sub := range h.q.subs {
			if sub.droppingBytes > 0 {
				n++
			}
		}
		return n
	}
	for round := 1; gaveWay() < subs; round++ {
		before := gaveWay()
		h.q.hold(func() bool { h.q.makeRoomLocked(); return false })
		if n := gaveWay() - before; n == 0 || n > roomItems/partitions {
			t.Fatalf("%d subscriptions gave way in round %d, want 1 to %d", n, round, roomItems/partitions)
		}
	}
}
