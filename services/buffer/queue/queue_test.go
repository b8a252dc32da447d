package queue

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHealthyBatchesNeverReachTheStore(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 100)
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	h.pass(time.Minute)
	h.write()
	for _, e := range h.store.entries {
		if e.Kind == BatchEntry {
			t.Fatal("a batch acked before spill_after was written")
		}
	}
	if a := h.assigned("t"); a.Safe != 100 {
		t.Fatalf("safe is %d after the ack was durable, want 100", a.Safe)
	}
}

func TestSafeWaitsForTheStore(t *testing.T) {
	h := newHarness(t, all("s"))
	w := h.q.Watch("k", "test")
	defer w.Close()
	w.Add(testPartition("t"))
	h.append("t", 5, 100)
	h.write()
	if a := h.assigned("t"); a.Safe != 5 || a.Resume != 100 {
		t.Fatalf("in memory only: %+v, want safe 5, resume 100", a)
	}
	h.pass(time.Second)
	h.write()
	if a := h.assigned("t"); a.Safe != 100 {
		t.Fatalf("after spill_after: safe is %d, want 100", a.Safe)
	}
	news, err := w.Next(t.Context())
	if diff := cmp.Diff(map[Partition]int64{testPartition("t"): 100}, news.Risen); diff != "" || err != nil {
		t.Fatalf("watcher: %v\n%s", err, diff)
	}
	if s := h.q.Stats(); s.MemoryBytes != 0 || s.SpilledRecords != 95 {
		t.Fatalf("the payload is still in memory: %+v", s)
	}
}

func TestDeliveredKeepsStoredBatchesOfRequiredSubscriptionsUnsafe(t *testing.T) {
	h := newHarness(t, all("needed"), SubscriptionConfig{Name: "extra", Topics: []string{"*"}})
	h.cfg.Delivered, h.cfg.SpillAfter = true, 0
	h.reopen()
	h.append("t", 0, 10)
	h.write()
	if a := h.assigned("t"); a.Safe != 0 {
		t.Fatalf("stored, not delivered: safe is %d, want 0", a.Safe)
	}
	s := h.session("needed", false, 100)
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	if a := h.assigned("t"); a.Safe != 10 {
		t.Fatalf("delivered where required, stored for the other: safe is %d, want 10", a.Safe)
	}
}

func TestAppendRefusesGapsAndNonsense(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 10, 20)
	_, err := h.q.Append(t.Context(), testBatch("t", 21, 30), 0)
	if !errors.Is(err, ErrGap) {
		t.Errorf("gap: %v", err)
	}
	if !h.append("t", 12, 18) {
		t.Error("a range inside a held batch is not known")
	}
	for name, b := range map[string]Batch{
		"empty":         testBatch("t", 20, 20),
		"backwards":     testBatch("t", 30, 20),
		"negative":      testBatch("u", -1, 20),
		"no records":    {Partition: testPartition("t"), Range: Range{20, 30}},
		"more records":  {Partition: testPartition("t"), Range: Range{20, 30}, Records: 11},
		"below nothing": {Partition: testPartition("t"), Range: Range{20, 30}, Records: -1},
	} {
		if _, err := h.q.Append(t.Context(), b, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if a := h.assigned("t"); a.Resume != 20 {
		t.Errorf("refused batches moved resume to %d", a.Resume)
	}
}

func TestAppendWaitsWhileTheWindowIsFull(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 1000)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := h.q.Append(ctx, testBatch("t", 1000, 1001), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("full window: %v, want to wait until the context ends", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.q.Append(t.Context(), testBatch("t", 1000, 1100), 0)
		done <- err
	}()
	h.write() // above the high watermark: spills without waiting for spill_after
	if err := <-done; err != nil {
		t.Fatalf("after the spill: %v", err)
	}
}

func TestAppendIsRefusedWhenTheDiskBoundIsReached(t *testing.T) {
	h := newHarness(t, all("s"))
	h.cfg.DiskRecords = 100
	h.reopen()
	h.append("t", 0, 100)
	if _, err := h.q.Append(t.Context(), testBatch("t", 100, 110), 0); !errors.Is(err, ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
}

func TestEachSubscriptionHasItsOwnProgress(t *testing.T) {
	h := newHarness(t, all("fast"), all("slow"), SubscriptionConfig{Name: "other", Topics: []string{"x*"}})
	fast := h.session("fast", false, 1000)
	for i := range int64(5) {
		h.append("t", i*10, i*10+10)
	}
	h.ack(fast, 1, leasesOf(drain(fast)))
	h.pass(time.Second)
	h.write()
	pending := map[string]int64{}
	for _, v := range h.q.Subscriptions() {
		pending[v.Name] = v.PendingRecords
	}
	if diff := cmp.Diff(map[string]int64{"fast": 0, "slow": 50, "other": 0}, pending); diff != "" {
		t.Fatalf("pending (-want +got):\n%s", diff)
	}
	h.reopen()
	slow := h.session("slow", false, 1000)
	leases := leasesOf(drain(slow))
	if len(leases) != 5 {
		t.Fatalf("%d leases after a restart, want 5", len(leases))
	}
	for _, l := range leases {
		if err := h.q.Load(l); err != nil || len(l.Batch.Payload) != 10 {
			t.Fatalf("load: %v, %d bytes", err, len(l.Batch.Payload))
		}
	}
	h.ack(slow, 1, leases)
	h.write()
	if s := h.q.Stats(); s.PendingBatches != 0 {
		t.Fatalf("settled by all, but %+v", s)
	}
	if len(h.store.released) != 5 {
		t.Fatalf("%d payloads released, want 5", len(h.store.released))
	}
}

func TestAckIsAllOrNothing(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 10)
	h.append("t", 10, 20)
	leases := leasesOf(drain(s))
	h.pass(h.cfg.LeaseDuration / 2)
	s.Extend([]uint64{leases[0].ID})
	h.pass(h.cfg.LeaseDuration/2 + time.Second) // the second lease expires and is leased again
	again := leasesOf(drain(s))
	if len(again) != 1 || again[0].Batch.First != 10 || again[0].Attempt != 2 {
		t.Fatalf("redelivered %+v, want [10,20) as attempt 2", again)
	}
	h.ack(s, 1, leases, StateChange{Key: "k", Value: []byte("v")})
	h.write()
	events := drain(s)
	if len(events) != 1 || events[0].Ack == nil || !errors.Is(events[0].Ack.Err, ErrLeaseGone) {
		t.Fatalf("%+v, want a refused ack", events)
	}
	if v := h.q.Sessions(); v[0].StateEntries != 0 || v[0].Leased != 2 {
		t.Fatalf("a refused ack had effects: %+v", v)
	}
	h.ack(s, 2, []*Lease{leases[0], again[0]})
	h.write()
	if events := drain(s); len(events) != 1 || events[0].Ack.Err != nil {
		t.Fatalf("%+v, want an accepted ack", events)
	}
}

func TestAckSettlesDeadLettersAndFilteredRanges(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.append("t", 0, 10)
	l := leasesOf(drain(s))[0]
	for name, bad := range map[string]AckedLease{
		"filtered outside":    {ID: l.ID, Filtered: []Range{{5, 11}}},
		"filtered backwards":  {ID: l.ID, Filtered: []Range{{5, 5}}},
		"dead letter outside": {ID: l.ID, DeadLetters: []DeadLetter{{Offset: 10, Reason: "x"}}},
	} {
		if err := s.Ack(Ack{ID: 9, Leases: []AckedLease{bad}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, Filtered: []Range{{2, 4}}, DeadLetters: []DeadLetter{{Offset: 7, Reason: "too odd"}}}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	h.reopen()
	want := map[Outcome]int64{Delivered: 7, Filtered: 2, DeadLettered: 1}
	if diff := cmp.Diff(want, h.outcomes("s")); diff != "" {
		t.Fatalf("after a restart (-want +got):\n%s", diff)
	}
}

func TestLeasesFollowCredit(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 15)
	for i := range int64(4) {
		h.append("t", i*10, i*10+10)
	}
	if n := len(leasesOf(drain(s))); n != 2 {
		t.Fatalf("%d leases for a credit of 15 with batches of 10, want 2 (the last one overdraws)", n)
	}
	if err := s.AddCredit(6); err != nil {
		t.Fatal(err)
	}
	if n := len(leasesOf(drain(s))); n != 1 {
		t.Fatalf("%d leases for a credit of 1, want 1", n)
	}
	for _, bytes := range []int64{0, -1} {
		if err := s.AddCredit(bytes); !errors.Is(err, ErrInvalid) {
			t.Errorf("credit of %d: %v", bytes, err)
		}
	}
}

func TestOrderingHoldsAPartitionForOneSession(t *testing.T) {
	h := newHarness(t, all("s"))
	a, b := h.session("s", true, 25), h.session("s", true, 1000)
	_ = b
	h.append("t", 0, 10)
	h.append("t", 10, 20)
	h.append("t", 20, 30)
	first, second := leasesOf(drain(a)), leasesOf(drain(b))
	if len(first) != 0 || len(second) != 3 {
		t.Fatalf("%d and %d leases of one partition, want all at the one with most credit", len(first), len(second))
	}
	b.Nack(second[1].ID, time.Second, "")
	events := drain(b)
	if len(events) != 1 || !cmp.Equal(events[0].Revoked, []uint64{second[2].ID}) {
		t.Fatalf("%+v, want the later lease revoked", events)
	}
	h.pass(2 * time.Second)
	if again := leasesOf(drain(b)); len(again) != 2 || again[0].Batch.First != 10 || again[1].Batch.First != 20 {
		t.Fatalf("redelivered %+v, want [10,20) then [20,30)", again)
	}
	b.Close()
	if again := leasesOf(drain(a)); len(again) != 3 || again[0].Batch.First != 0 {
		t.Fatalf("the heir got %d leases, want 3 from 0 on", len(again))
	}
}

func TestSinkStateIsAdoptedOnDisk(t *testing.T) {
	h := newHarness(t, all("s"))
	a := h.session("s", false, 100)
	h.ack(a, 1, nil, StateChange{Key: "file", Value: []byte("1")}, StateChange{Key: "gone", Value: []byte{}})
	h.ack(a, 2, nil, StateChange{Key: "file", Value: []byte("2")}, StateChange{Key: "gone"})
	h.write()
	h.reopen() // a is dead
	b := h.session("s", false, 100)
	if events := drain(b); len(events) != 0 {
		t.Fatalf("told before it is on disk: %+v", events)
	}
	h.write()
	events := drain(b)
	if len(events) != 1 || events[0].Adopt == nil || !cmp.Equal(events[0].Adopt.State, map[string][]byte{"file": []byte("2")}) {
		t.Fatalf("%+v, want the state of the dead session", events)
	}
	h.reopen() // b is dead without having done anything
	c := h.session("s", false, 100)
	h.write()
	if events := drain(c); len(events) != 1 || events[0].Adopt.SessionID != b.ID {
		t.Fatalf("%+v, want b's state", events)
	}
	if !(a.ID < b.ID && b.ID < c.ID) {
		t.Fatalf("session ids repeat: %d %d %d", a.ID, b.ID, c.ID)
	}
}

func TestSettleByIngest(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	if err := h.q.Settle(testPartition("t"), Range{10, 15}, Lost, "retention", 0); err != nil {
		t.Fatal(err)
	}
	h.append("t", 15, 20)
	h.pass(time.Second)
	h.write()
	h.reopen()
	if a := h.assigned("t"); a.Safe != 20 {
		t.Fatalf("safe is %d, want 20", a.Safe)
	}
	if got := h.outcomes("s"); got[Lost] != 5 {
		t.Fatalf("totals %v, want 5 lost", got)
	}
	if err := h.q.Settle(testPartition("t"), Range{30, 40}, Lost, "", 0); !errors.Is(err, ErrGap) {
		t.Fatalf("gap: %v", err)
	}
	if err := h.q.Settle(testPartition("t"), Range{20, 40}, Delivered, "", 0); !errors.Is(err, ErrInvalid) {
		t.Fatalf("delivered by ingest: %v", err)
	}
}

func TestPauseIsDurable(t *testing.T) {
	h := newHarness(t, all("s"))
	if err := h.manage(func() error { return h.q.Pause(t.Context(), "s", true) }); err != nil {
		t.Fatal(err)
	}
	h.append("t", 0, 10)
	h.reopen()
	h.append("t", 0, 10)
	s := h.session("s", false, 100)
	if events := drain(s); len(events) != 0 {
		t.Fatalf("a paused subscription was leased %+v", events)
	}
	if err := h.manage(func() error { return h.q.Pause(t.Context(), "s", false) }); err != nil {
		t.Fatal(err)
	}
	if n := len(leasesOf(drain(s))); n != 1 {
		t.Fatalf("%d leases after resuming, want 1", n)
	}
	if err := h.q.Pause(t.Context(), "nope", true); !errors.Is(err, ErrNoSubscription) {
		t.Fatalf("%v, want ErrNoSubscription", err)
	}
}

func TestSubscriptionsFollowTheConfiguration(t *testing.T) {
	h := newHarness(t, all("old"))
	h.cfg.SpillAfter = 0
	h.reopen()
	h.append("t", 0, 10)
	h.append("t", 10, 20)
	h.write()
	s := h.session("old", false, 1000)
	h.ack(s, 1, leasesOf(drain(s))[:1])
	h.write()
	h.cfg.Subscriptions = []SubscriptionConfig{all("new")}
	h.reopen()
	got := map[string]int64{}
	for _, v := range h.q.Subscriptions() {
		got[v.Name] = v.PendingRecords
		if v.Configured != (v.Name == "new") {
			t.Errorf("%s: configured is %v", v.Name, v.Configured)
		}
	}
	if diff := cmp.Diff(map[string]int64{"old": 10, "new": 10}, got); diff != "" {
		t.Fatalf("a new subscription begins at the oldest held batch, an unconfigured one keeps its records (-want +got):\n%s", diff)
	}
}

func TestRunEndsWhenTheStoreFails(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 100)
	h.append("t", 0, 10)
	h.write()
	h.store.fail = errors.New("no space left")
	h.ack(s, 1, leasesOf(drain(s)))
	if err := h.q.Run(t.Context()); err == nil || err.Error() != "append group to store: no space left" {
		t.Fatalf("Run: %v", err)
	}
	if _, err := s.Events(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("the session got %v, want ErrClosed and no answer to its ack", err)
	}
	if _, err := h.q.Append(t.Context(), testBatch("t", 10, 20), 0); !errors.Is(err, ErrClosed) {
		t.Fatalf("append: %v", err)
	}
	h.reopen()
	if a := h.assigned("t"); !a.Known || a.Resume != 0 {
		t.Fatalf("%+v: the ack was not durable, so all is read again", a)
	}
}

func TestRunWritesOutTheWindowWhenItDrains(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.q.Run(ctx); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if a := h.assigned("t"); a.Safe != 10 || a.Resume != 10 {
		t.Fatalf("%+v, want the batch on disk", a)
	}
}

// TestEpoch has a lease tell that its subscription was sought or created anew, also after a
// restart.
func TestEpoch(t *testing.T) {
	h := newHarness(t, all("s"))
	h.reopen()
	h.append("t", 0, 10)
	epoch := func() int64 {
		t.Helper()
		x := h.session("s", true, 1000)
		defer x.Close()
		leases := leasesOf(drain(x))
		if len(leases) != 1 {
			t.Fatalf("%d leases", len(leases))
		}
		return leases[0].Epoch
	}
	if first := epoch(); first != 0 {
		t.Errorf("epoch %d at first", first)
	}
	seek := func() {
		t.Helper()
		if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", Nowhere, []Start{{testPartition("t"), 5}}) }); err != nil {
			t.Fatal(err)
		}
	}
	seek()
	second := epoch()
	seek() // at the same time
	third := epoch()
	if second == 0 || third <= second {
		t.Errorf("epochs %d and %d", second, third)
	}
	h.pass(2 * time.Second)
	h.write()
	h.reopen()
	if again := epoch(); again != third {
		t.Errorf("epoch %d after a restart, want %d", again, third)
	}
}

// TestKnownRecords has a partition keep the fingerprints of a few records, close to each other at
// its end, also over a restart.
func TestKnownRecords(t *testing.T) {
	h := newHarness(t, all("s"))
	h.reopen()
	for i := range int64(100) {
		b := testBatch("t", i*10, i*10+10)
		b.Last = &Fingerprint{Offset: i*10 + 9, TimestampMs: i, CRC: uint32(i)}
		if _, err := h.q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
		h.pass(printInterval)
		h.write()
		s := h.session("s", true, 1000)
		h.ack(s, 1, leasesOf(drain(s)))
		h.write()
		s.Close()
	}
	prints := h.assigned("t").Prints
	if len(prints) != maxPrints || prints[0] != (Fingerprint{999, 99, 99}) || prints[len(prints)-1].Offset != 9 {
		t.Fatalf("known records: %v", prints)
	}
	for i := 2; i < len(prints); i++ {
		if near, far := prints[i-2].Offset-prints[i-1].Offset, prints[i-1].Offset-prints[i].Offset; far < near {
			t.Errorf("the older ones are closer to each other: %v", prints)
		}
	}
	h.reopen()
	if again := h.assigned("t").Prints; !slices.Equal(again, prints) {
		t.Errorf("known records after a restart: %v, want %v", again, prints)
	}
}

// TestDamagedBeginning loses everything of the store but the last batch: what came before it is
// refetched.
func TestDamagedBeginning(t *testing.T) {
	h := newHarness(t, all("s"))
	h.reopen()
	for first := int64(5); first < 35; first += 10 {
		h.append("t", first, first+10)
		h.pass(2 * time.Second)
		h.write()
	}
	last := h.store.entries[len(h.store.entries)-1]
	if last.Kind != BatchEntry {
		t.Fatalf("the last entry is of kind %d", last.Kind)
	}
	h.store.entries = h.store.entries[len(h.store.entries)-1:]
	h.reopen()
	accounts, err := h.q.Audit("s")
	if err != nil || len(accounts) != 1 {
		t.Fatalf("%v, %v", accounts, err)
	}
	a := accounts[0]
	if a.Start != 5 || a.Appended != 35 || a.Pending != 30 || !slices.Equal(a.Ranges, []AuditRange{{Range{5, 25}, "deferred"}, {Range{25, 35}, "stored"}}) {
		t.Errorf("audit after the damage: %+v", a)
	}
	w := h.q.Watch("k", "ingest")
	defer w.Close()
	h.pass(time.Second)
	if r := asked(w); len(r) != 1 || r[0].Range != (Range{5, 25}) {
		t.Errorf("refetches: %v", r)
	}
}

// TestDamagedWhileAcked: what one subscription has delivered, and its ack is being written, is
// not refetched for it because another finds the stored bytes damaged. It would be delivered
// again.
func TestDamagedWhileAcked(t *testing.T) {
	h := newHarness(t, all("one"), all("two"))
	w := h.q.Watch("k", "ingest")
	defer w.Close()
	h.append("t", 0, 10)
	one := h.session("one", false, 1000)
	acked := leasesOf(drain(one))
	h.pass(2 * time.Second)
	h.write() // to the store
	two := h.session("two", false, 1000)
	for _, e := range h.store.entries {
		h.store.damaged[e.Ref] = true
	}
	load := func() {
		t.Helper()
		leases := leasesOf(drain(two))
		if len(leases) != 1 {
			t.Fatalf("%d leases of the other", len(leases))
		}
		err := h.q.Load(leases[0])
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("load: %v", err)
		}
		two.Damaged(leases[0].ID, err)
	}
	h.ack(one, 1, acked)
	load()
	if r := asked(w); len(r) > 0 {
		t.Errorf("asked for %v while an ack is being written", r)
	}
	h.write()
	h.pass(time.Second)
	load()
	r := asked(w)
	if len(r) != 1 {
		t.Fatalf("asked for %v", r)
	}
	if known, err := h.q.Append(t.Context(), testBatch("t", 0, 10), r[0].ID); known || err != nil {
		t.Errorf("known %v, error %v", known, err)
	}
	h.pass(time.Second)
	if leases := leasesOf(drain(one)); len(leases) > 0 {
		t.Errorf("leased again after its ack: %v", leases[0].Batch)
	}
	if leases := leasesOf(drain(two)); len(leases) != 1 {
		t.Errorf("%d leases of what was refetched", len(leases))
	}
	h.checkAudit()
}

// TestLastLease: the last lease of what waits is told.
func TestLastLease(t *testing.T) {
	h := newHarness(t, all("s"))
	for _, topic := range []string{"t", "u", "t"} {
		first := int64(0)
		if p := h.q.partitions[testPartition(topic)]; p != nil {
			first = p.appended
		}
		h.append(topic, first, first+10)
	}
	s := h.session("s", false, 1)
	var last []bool
	for range 3 {
		for _, l := range leasesOf(drain(s)) {
			last = append(last, l.Last)
		}
		if err := s.AddCredit(10); err != nil {
			t.Fatal(err)
		}
	}
	if want := []bool{false, false, true}; !slices.Equal(last, want) {
		t.Errorf("last of what waits: %v, want %v", last, want)
	}
}

// TestTurnsAreOfBytes: a partition of small batches keeps up with its records beside the backlog
// of one with large ones.
func TestTurnsAreOfBytes(t *testing.T) {
	h := newHarness(t, all("s"))
	h.cfg.MemoryBytes, h.cfg.MemoryRecords = 1<<30, 1<<30
	h.reopen()
	for i := range int64(10) {
		h.append("busy", i*turnBytes, (i+1)*turnBytes)
		h.append("quiet", i*10, i*10+10)
	}
	leased := map[string]int{}
	for _, l := range leasesOf(drain(h.session("s", false, 4*turnBytes))) {
		leased[l.Batch.Partition.Topic]++
	}
	if leased["quiet"] != 10 || leased["busy"] < 4 {
		t.Errorf("leased: %v", leased)
	}
}
