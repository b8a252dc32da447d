package queue

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"
)

// TestSessionIDsDoNotRepeat opens queues that have nothing in common but the second, and the same
// data again and again with a clock that stands still or went back.
func TestSessionIDsDoNotRepeat(t *testing.T) {
	seen := make(map[uint64]bool)
	note := func(h *harness) {
		t.Helper()
		h.cfg.SessionID = nil // as in production
		h.reopen()
		for range 3 {
			s := h.session("s", false, 1)
			if seen[s.ID] || s.ID == 0 {
				t.Fatalf("session id %d comes again", s.ID)
			}
			seen[s.ID] = true
		}
	}
	for range 20 {
		note(newHarness(t, all("s")))
	}
	h := newHarness(t, all("s"))
	for range 20 {
		note(h)
		h.now = h.now.Add(-time.Hour)
	}
}

func TestSessionIDsAvoidThoseWithState(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	s := h.session("s", false, 100)
	h.ack(s, 1, leasesOf(drain(s)), StateChange{Key: "k", Value: []byte("v")})
	h.write()
	ids := []uint64{s.ID, 0, 77}
	h.cfg.SessionID = func() uint64 {
		id := ids[0]
		ids = ids[1:]
		return id
	}
	h.reopen()
	if got := h.session("s", false, 100); got.ID != 77 {
		t.Errorf("session %d opened beside a dead one with that id and state", got.ID)
	}
}

func TestDeadLettersOfDeliveriesHaveATime(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	s := h.session("s", false, 100)
	l := leasesOf(drain(s))[0]
	h.now = h.now.Add(time.Minute)
	at := h.now.UnixMilli()
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, DeadLetters: []DeadLetter{{Offset: 4, Reason: "too large"}}}}}); err != nil {
		t.Fatal(err)
	}
	h.now = h.now.Add(time.Minute)
	h.write()
	for _, when := range []string{"when it is durable", "after a restart"} {
		if got, err := h.q.Undelivered("s"); err != nil || len(got) != 1 || got[0].AtMs != at {
			t.Errorf("%s: %+v, %v, want one at %d", when, got, err, at)
		}
		h.reopen()
	}
}

func TestOffsetsHaveABound(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	for _, r := range []Range{{0, math.MaxInt64}, {10, math.MaxInt64}, {10, maxOffset + 1}, {math.MaxInt64 - 1, math.MaxInt64}} {
		if err := h.q.Settle(testPartition("t"), r, Lost, "gone", 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("settle %v of a known partition: %v, want it refused", r, err)
		}
		if err := h.q.Settle(testPartition("new"), r, Filtered, "gone", 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("settle %v of a new partition: %v, want it refused", r, err)
		}
		b := testBatch("t", 0, 10)
		b.Range = r
		if _, err := h.q.Append(t.Context(), b, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("append %v: %v, want it refused", r, err)
		}
	}
	h.write()
	if got := h.assigned("t"); got.Resume != 10 {
		t.Errorf("resume at %d, want 10", got.Resume)
	}
	if got := h.assigned("new"); got.Known {
		t.Errorf("a refused range made a partition known: %+v", got)
	}
	for _, start := range []int64{maxOffset + 1, math.MaxInt64} {
		if err := h.q.Seek(t.Context(), "s", Nowhere, []Start{{testPartition("t"), start}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("seek to %d: %v, want it refused", start, err)
		}
	}
}

func TestCreditDoesNotOverflow(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, maxCredit)
	for range 100 {
		if err := s.AddCredit(maxCredit); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddCredit(math.MaxInt64); !errors.Is(err, ErrInvalid) {
		t.Errorf("credit of %d bytes: %v, want it refused", int64(math.MaxInt64), err)
	}
	h.append("t", 0, 10)
	if got := leasesOf(drain(s)); len(got) != 1 {
		t.Errorf("%d leases with all the credit there is, want 1", len(got))
	}
}

func TestNackDelayIsBounded(t *testing.T) {
	for _, delay := range []time.Duration{maxNackDelay + 1, 365 * 24 * time.Hour, math.MaxInt64} {
		h := newHarness(t, all("s"))
		h.append("t", 0, 10)
		s := h.session("s", true, 100)
		s.Nack(leasesOf(drain(s))[0].ID, delay, "")
		if err := s.AddCredit(100); err != nil {
			t.Fatal(err)
		}
		h.pass(maxNackDelay - time.Second)
		if got := leasesOf(drain(s)); len(got) != 0 {
			t.Errorf("a nack with a delay of %s is leased again before %s", delay, maxNackDelay)
		}
		h.pass(2 * time.Second)
		if got := leasesOf(drain(s)); len(got) != 1 {
			t.Errorf("a nack with a delay of %s is not leased again after %s", delay, maxNackDelay)
		}
	}
}

// TestNewNamesAreThoseOfTheFile creates what the configuration could not name.
func TestNewNamesAreThoseOfTheFile(t *testing.T) {
	h := newHarness(t, all("s"))
	for _, name := range []string{".", "..", "a.b", "-a", "a-", "a__b", "_", "a b", "a/b", "", string(slices.Repeat([]byte("a"), 101))} {
		if err := h.q.Subscribe(t.Context(), SubscriptionConfig{Name: name, Topics: []string{"*"}}, Latest, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("subscription %q: %v, want it refused", name, err)
		}
	}
	if err := h.manage(func() error {
		return h.q.Subscribe(t.Context(), SubscriptionConfig{Name: "to-hdfs_2", Topics: []string{"*"}}, Latest, nil)
	}); err != nil {
		t.Error(err)
	}
}

// TestSessionIDsCarryTheShard opens a shard over data in which a session of a version without
// shards left state.
func TestSessionIDsCarryTheShard(t *testing.T) {
	h := newHarness(t, all("s"))
	const old = 0xfedc_0000_0000_0001 // all 64 bits were random
	h.cfg.Shard, h.cfg.SessionID = old>>48, func() uint64 { return old }
	h.reopen()
	h.append("t", 0, 10)
	s := h.session("s", false, 100)
	if s.ID != old {
		t.Fatalf("session %x, want %x", s.ID, uint64(old))
	}
	h.ack(s, 1, leasesOf(drain(s)), StateChange{Key: "k", Value: []byte("v")})
	h.write()

	h.cfg.Shard, h.cfg.SessionID = 7, nil
	h.reopen()
	heir := h.session("s", false, 100)
	other := h.session("s", false, 100)
	for _, got := range []*Session{heir, other} {
		if got.ID>>48 != 7 || got.ID<<16 == 0 {
			t.Errorf("session %x of shard 7", got.ID)
		}
	}
	if heir.ID == other.ID {
		t.Errorf("two sessions %x", heir.ID)
	}
	h.write()
	if events := drain(heir); len(events) != 1 || events[0].Adopt == nil || events[0].Adopt.SessionID != old {
		t.Errorf("the heir gets %+v, want the state of session %x", events, uint64(old))
	}
}

// TestDiskBoundsAtRunTime raises a bound while the queue is full. It holds over restarts, until
// the configuration says something else.
func TestDiskBoundsAtRunTime(t *testing.T) {
	h := newHarness(t, all("s"))
	h.cfg.DiskRecords = 10
	h.reopen()
	h.append("t", 0, 10)
	full := func(o int64) bool {
		t.Helper()
		_, err := h.q.Append(t.Context(), testBatch("t", o, o+1), 0)
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		return err != nil
	}
	if !full(10) {
		t.Fatal("the queue is not full")
	}
	set := func(alter func(*Limits) error) error {
		return h.manage(func() error { return h.q.SetLimits(t.Context(), alter) })
	}
	refused := errors.New("no")
	if err := set(func(l *Limits) error { l.DiskRecords = 99; return refused }); !errors.Is(err, refused) || !full(10) {
		t.Fatalf("%v, after a change that was refused", err)
	}
	if err := set(func(l *Limits) error { l.DiskRecords = 11; return nil }); err != nil {
		t.Fatal(err)
	}
	if full(10) || !full(11) {
		t.Fatal("a bound of 11 does not hold")
	}
	h.pass(h.cfg.SpillAfter)
	h.write()
	for _, when := range []string{"from the journal", "from a snapshot"} {
		h.reopen()
		if now, configured := h.q.Limits(); now.DiskRecords != 11 || configured.DiskRecords != 10 || !full(11) {
			t.Fatalf("%s: %+v, configured %+v", when, now, configured)
		}
	}
	h.cfg.DiskBytes-- // the other bound is part of the same
	h.reopen()
	if now, configured := h.q.Limits(); now != configured || now.DiskRecords != 10 {
		t.Fatalf("the configuration changed: %+v, configured %+v", now, configured)
	}
	h.reopen()
	if now, _ := h.q.Limits(); now.DiskRecords != 10 {
		t.Fatalf("what was set at run time counts again: %+v", now)
	}
}
