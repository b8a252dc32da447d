package queue

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestSettledRepeatsAgainstAMap settles random ranges, has some be delivered again, and compares
// with maps of offsets.
func TestSettledRepeatsAgainstAMap(t *testing.T) {
	race.Apart(t)
	const end = 60
	r := rand.New(rand.NewPCG(11, 11))
	for range 1000 {
		s, ended, again := NewSettled(5, 0), map[int64]Outcome{}, map[int64]Outcome{}
		done := func(o int64) bool { return o < 5 || ended[o] != 0 }
		pending := func(o int64) bool {
			_, repeated := again[o]
			return !done(o) || repeated
		}
		for range 30 {
			x, o := Range{First: int64(r.IntN(end))}, Outcome(1+r.IntN(5))
			x.Next = x.First + 1 + int64(r.IntN(12))
			if r.IntN(3) > 0 {
				s.Add(x, o)
				for i := x.First; i < x.Next; i++ {
					was, repeated := again[i]
					delete(again, i)
					if i >= 5 && (ended[i] == 0 || repeated && was != 0) {
						ended[i] = o
					}
				}
			} else {
				var want []Range
				if r.IntN(2) == 0 {
					o = 0
				}
				for i := x.First; i < x.Next; i++ {
					if pending(i) || o != 0 && ended[i] != o {
						continue
					}
					again[i] = o
					if n := len(want); n > 0 && want[n-1].Next == i {
						want[n-1].Next++
					} else {
						want = append(want, Range{i, i + 1})
					}
				}
				if o == 0 {
					want = []Range{x}
				}
				for _, part := range want {
					s.Repeat(Interval{part, o})
				}
			}
			for i := range int64(end + 15) {
				until, next := i, i
				for pending(until) == false && until < 1000 {
					until++
				}
				for pending(next) && next < end+15 {
					next++
				}
				if got := s.Until(i); got != until {
					t.Fatalf("Until(%d) is %d, want %d, of %s", i, got, until, mustJSON(&s))
				}
				if got := s.NextIn(i, end+15); got != next {
					t.Fatalf("NextIn(%d) is %d, want %d, of %s", i, got, next, mustJSON(&s))
				}
				if !pending(i) == (len(s.Within(Range{i, i + 1})) == 0) || pending(i) == (len(s.Unsettled(Range{i, i + 1})) == 0) {
					t.Fatalf("%d is pending: %v, but not in %s", i, pending(i), mustJSON(&s))
				}
				if pending(i) && s.lowest() > i {
					t.Fatalf("the lowest is %d, and %d is pending, in %s", s.lowest(), i, mustJSON(&s))
				}
			}
			totals := map[Outcome]int64{}
			for _, o := range ended {
				totals[o]++
			}
			if diff := cmp.Diff(totals, s.Totals()); diff != "" {
				t.Fatalf("totals (-want +got):\n%s", diff)
			}
			var replays int64
			for _, o := range again {
				if o == 0 {
					replays++
				}
			}
			if a, b := s.Again.counts(); a != replays || a+b != int64(len(again)) {
				t.Fatalf("%d and %d offsets repeat, want %d of %d", a, b, replays, len(again))
			}
			var back Settled
			encoded := s.appendJSON(nil)
			if diff := cmp.Diff(string(mustJSON(&s)), string(encoded)); diff != "" {
				t.Fatalf("(-encoding/json +own):\n%s", diff)
			}
			if err := json.Unmarshal(encoded, &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(encoded), string(mustJSON(back.restored()))); diff != "" {
				t.Fatalf("decoded (-want +got):\n%s", diff)
			}
		}
	}
}

// ackAll acks everything that is leased now, and returns the ranges.
func (h *harness) ackAll(s *Session, id uint64) (ranges []Range) {
	h.t.Helper()
	leases := leasesOf(drain(s))
	for _, l := range leases {
		ranges = append(ranges, wanted(l)...)
	}
	if len(leases) > 0 {
		h.ack(s, id, leases)
	}
	h.write()
	return ranges
}

func (h *harness) replay(first, next int64, rate float64) {
	h.t.Helper()
	if err := h.manage(func() error {
		return h.q.Replay(h.t.Context(), "s", []Window{{testPartition("t"), Range{first, next}}}, Replay{PerSecond: rate})
	}); err != nil {
		h.t.Fatalf("replay: %v", err)
	}
}

func (h *harness) left() int64 {
	h.t.Helper()
	v, err := h.q.Subscription("s")
	if err != nil || v.Replay == nil {
		h.t.Fatalf("%+v, %v", v, err)
	}
	return v.Replay.Left
}

// TestReplay delivers a range again, beside what is new and over restarts. What was accounted for
// stays so.
func TestReplay(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 10)
	h.ackAll(s, 1)
	plan, err := h.q.PlanReplay("s", []Window{{testPartition("t"), Range{2, 600}}, {testPartition("t"), Range{10, 20}}})
	if want := []ReplayPart{{Window{testPartition("t"), Range{2, 10}}, 8, 0, 0}}; err != nil || !slices.Equal(plan, want) {
		t.Fatalf("planned %+v, %v, want %+v", plan, err, want)
	}
	h.replay(2, 6, 0)
	if err := h.manage(func() error {
		return h.q.Replay(t.Context(), "s", []Window{{testPartition("t"), Range{0, 1}}}, Replay{})
	}); !errors.Is(err, ErrReplaying) {
		t.Fatalf("a second replay: %v", err)
	}
	for _, when := range []string{"journal", "snapshot"} {
		h.reopen()
		if n := h.left(); n != 4 {
			t.Fatalf("%d offsets are left after a restart from the %s, want 4", n, when)
		}
	}
	s = h.session("s", false, 1000)
	h.append("t", 10, 12)
	if got, want := h.ackAll(s, 1), []Range{{10, 12}}; !slices.Equal(got, want) {
		t.Fatalf("leased %v while the replay waits for Kafka, want %v", got, want)
	}
	if a := h.assigned("t"); a.Safe != 12 {
		t.Fatalf("safe is %d while a replay is under way, want 12", a.Safe)
	}
	w := h.q.Watch("k", "ingest")
	h.pass(tick)
	r := asked(w)
	if len(r) != 1 || r[0].Range != (Range{2, 6}) {
		t.Fatalf("asked for %+v, want [2,6)", r)
	}
	if _, err := h.q.Append(t.Context(), testBatch("t", 2, 6), r[0].ID); err != nil {
		t.Fatal(err)
	}
	if got, want := h.ackAll(s, 2), []Range{{2, 6}}; !slices.Equal(got, want) || h.left() != 0 {
		t.Fatalf("leased %v, %d are left, want %v", got, h.left(), want)
	}
	h.checkAudit()
	if diff := cmp.Diff(map[Outcome]int64{Delivered: 12}, h.outcomes("s")); diff != "" {
		t.Fatalf("outcomes (-want +got):\n%s", diff)
	}
	if st := h.q.Stats(); st.PendingBatches != 0 || st.MemoryBytes != 0 {
		t.Fatalf("%+v is held after the replay", st)
	}
}

// TestReplayIsPaced asks for what may be delivered in a second, each second.
func TestReplayIsPaced(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 100)
	h.ackAll(s, 1)
	w := h.q.Watch("k", "ingest")
	h.replay(0, 100, 5)
	delivered := int64(0)
	for second := range int64(25) {
		for range 4 {
			for _, r := range asked(w) {
				if _, err := h.q.Append(t.Context(), testBatch("t", r.Range.First, r.Range.Next), r.ID); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range h.ackAll(s, uint64(100+second)) {
				delivered += r.Len()
			}
			h.pass(time.Second / 4)
		}
		if most := 5 * (second + 2); delivered > most {
			t.Fatalf("%d are delivered after %d s, want at most %d", delivered, second+1, most)
		}
	}
	if delivered != 100 || h.left() != 0 {
		t.Fatalf("%d are delivered, and %d left, after 25 s", delivered, h.left())
	}
}

// TestCancelledReplayLeavesTheLedger: what is with a delivery is finished, and the rest is as if
// it had not been asked for. A seek ends a replay, too.
func TestCancelledReplayLeavesTheLedger(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 10)
	h.ackAll(s, 1)
	w := h.q.Watch("k", "ingest")
	h.replay(0, 10, 2)
	r := asked(w)[0]
	if _, err := h.q.Append(t.Context(), testBatch("t", r.Range.First, r.Range.Next), r.ID); err != nil {
		t.Fatal(err)
	}
	leases := leasesOf(drain(s))
	if err := h.manage(func() error { return h.q.CancelReplay(t.Context(), "s") }); err != nil {
		t.Fatal(err)
	}
	if h.left() != r.Range.Len() {
		t.Fatalf("%d are left, want the %d that are leased", h.left(), r.Range.Len())
	}
	h.ack(s, 2, leases)
	h.write()
	check := func() {
		t.Helper()
		h.checkAudit()
		if diff := cmp.Diff(map[Outcome]int64{Delivered: 10}, h.outcomes("s")); diff != "" || h.left() != 0 {
			t.Fatalf("%d are left; outcomes (-want +got):\n%s", h.left(), diff)
		}
		if v, _ := h.q.Subscription("s"); v.Replay.EndedMs == 0 || v.Deferred != 0 {
			t.Fatalf("%+v, %+v", v, v.Replay)
		}
		if list, err := h.q.Undelivered("s"); err != nil || len(list) > 0 {
			t.Fatalf("undelivered: %+v, %v", list, err)
		}
	}
	check()
	h.reopen()
	check()
	if err := h.manage(func() error { return h.q.CancelReplay(t.Context(), "s") }); !errors.Is(err, ErrNoReplay) {
		t.Fatalf("cancel twice: %v", err)
	}
	h.replay(0, 5, 0)
	if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	if v, _ := h.q.Subscription("s"); v.Replay.EndedMs == 0 || v.Replay.Left != 0 || v.Deferred != 0 {
		t.Fatalf("after a seek: %+v, %+v", v, v.Replay)
	}
	h.checkAudit()
}

// TestReplayedDeadLetterIsListedNoMore: what a replay delivers that was a dead letter is delivered
// now, to the list and to the account.
func TestReplayedDeadLetterIsListedNoMore(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.dead(s)
	h.replay(2, 4, 0)
	w := h.q.Watch("k", "ingest")
	h.pass(tick)
	if _, err := h.q.Append(t.Context(), testBatch("t", 2, 4), asked(w)[0].ID); err != nil {
		t.Fatal(err)
	}
	if got, want := h.ackAll(s, 2), []Range{{2, 4}}; !slices.Equal(got, want) {
		t.Fatalf("leased %v, want %v", got, want)
	}
	list, err := h.q.Undelivered("s")
	if err != nil || len(list) != 1 || list[0].Range != (Range{4, 5}) {
		t.Fatalf("listed %+v, %v", list, err)
	}
	h.checkAudit()
	if diff := cmp.Diff(map[Outcome]int64{Delivered: 9, DeadLettered: 1}, h.outcomes("s")); diff != "" {
		t.Fatalf("outcomes (-want +got):\n%s", diff)
	}
}

// TestDrain: nothing is leased while leases are waited for, also of those that are given back; a
// replay that begins then leaves nobody's ack refused, and what is new is leased afterwards.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, all("s"))
		s := h.session("s", false, 1000)
		h.append("t", 0, 10)
		if got := h.ackAll(s, 1); len(got) != 1 {
			t.Fatalf("leased %v", got)
		}
		h.append("t", 10, 20)
		h.append("u", 0, 10)
		leases := leasesOf(drain(s))
		if len(leases) != 2 {
			t.Fatalf("%d leases", len(leases))
		}
		var resume func()
		returned := make(chan error, 1)
		go func() {
			var err error
			resume, err = h.q.Drain(t.Context(), "s")
			returned <- err
		}()
		synctest.Wait()
		h.append("t", 20, 30)
		s.Nack(leases[1].ID, -1, "not now")
		if more := leasesOf(drain(s)); len(more) > 0 || len(returned) > 0 {
			t.Fatalf("%d leases, and %d answers while a lease is waited for", len(more), len(returned))
		}
		h.ack(s, 2, leases[:1])
		h.write()
		if err := <-returned; err != nil {
			t.Fatal(err)
		}
		h.replay(0, 5, 0)
		if events := drain(s); len(leasesOf(events)) > 0 {
			t.Fatalf("leased before the end: %v", events)
		}
		resume()
		if more := leasesOf(drain(s)); len(more) != 2 {
			t.Fatalf("%d leases at the end, want those of u and of what is new", len(more))
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		again, err := h.q.Drain(ctx, "s")
		if err != nil {
			t.Fatal(err)
		}
		again()
		if _, err := h.q.Drain(ctx, "x"); !errors.Is(err, ErrNoSubscription) {
			t.Errorf("of none: %v", err)
		}
	})
}
