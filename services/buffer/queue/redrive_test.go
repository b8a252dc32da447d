package queue

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dead appends ten records, of which the delivery gives up [3,5), with a copy.
func (h *harness) dead(s *Session) {
	h.t.Helper()
	h.append("t", 0, 10)
	l := leasesOf(drain(s))[0]
	copied := testBatch("t", 3, 5)
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, DeadLetters: []DeadLetter{{Offset: 3, Next: 5, Reason: "it is no JSON"}}, Copies: []Batch{copied}}}}); err != nil {
		h.t.Fatal(err)
	}
	h.write()
}

func chooseAll(u *Undelivered) Range { return u.Range }

// copyRef is where the only copy lies.
func (h *harness) copyRef() Ref {
	h.t.Helper()
	if copies := h.q.subscription("s").copies; len(copies) == 1 {
		return copies[0].ref
	}
	h.t.Fatalf("%d copies", len(h.q.subscription("s").copies))
	return Ref{}
}

// TestDeadLettersAreKept has a dead letter's record survive restarts, be delivered once more
// without Kafka, and go from the disk when it is delivered.
func TestDeadLettersAreKept(t *testing.T) {
	h := newHarness(t, all("s"))
	h.dead(h.session("s", false, 1000))
	for _, when := range []string{"at first", "from the journal", "from a snapshot"} {
		list, err := h.q.Undelivered("s")
		if err != nil || len(list) != 1 || !list[0].Kept || list[0].Range != (Range{3, 5}) {
			t.Fatalf("%s: %+v, %v", when, list, err)
		}
		if v, _ := h.q.Subscription("s"); v.DeadListed != 2 {
			t.Fatalf("%s: %d dead letters are listed", when, v.DeadListed)
		}
		l, err := h.q.UndeliveredRecords("s", Partition{Topic: "t"}, 4)
		if err == nil {
			err = h.q.Load(l)
		}
		if err != nil || l.Batch.Range != (Range{3, 5}) || len(l.Batch.Payload) != 2 {
			t.Fatalf("%s: %+v, %v", when, l, err)
		}
		h.reopen()
	}
	if _, err := h.q.UndeliveredRecords("s", testPartition("t"), 5); !errors.Is(err, ErrNoCopy) {
		t.Fatalf("of a record that was delivered: %v", err)
	}
	s, ref := h.session("s", false, 1000), h.copyRef()
	var offsets int64
	if err := h.manage(func() (err error) { offsets, err = h.q.Redrive(t.Context(), "s", chooseAll); return err }); err != nil || offsets != 2 {
		t.Fatalf("redrive: %d, %v", offsets, err)
	}
	if list, _ := h.q.Undelivered("s"); len(list) > 0 {
		t.Fatalf("still listed: %+v", list)
	}
	if v, _ := h.q.Subscription("s"); v.Redriving != 2 || v.DeadListed != 0 {
		t.Fatalf("%+v", v)
	}
	s.Close()
	h.reopen() // before it is delivered
	s = h.session("s", false, 1000)
	w := h.q.Watch("k", "ingest")
	h.pass(tick)
	if got, want := h.ackAll(s, 2), []Range{{3, 5}}; !slices.Equal(got, want) || len(asked(w)) > 0 {
		t.Fatalf("leased %v, want %v", got, want)
	}
	h.checkAudit()
	if diff := cmp.Diff(map[Outcome]int64{Delivered: 10}, h.outcomes("s")); diff != "" {
		t.Fatalf("outcomes (-want +got):\n%s", diff)
	}
	h.write()
	h.q.release()
	if !h.store.released[ref] {
		t.Fatal("the copy is still on disk")
	}
	if _, err := h.q.Redrive(t.Context(), "s", chooseAll); !errors.Is(err, ErrNoUndelivered) {
		t.Fatalf("redrive nothing: %v", err)
	}
}

// TestRedrivenIsListedAgain when the delivery gives it up again, and where a seek overtakes it.
func TestRedrivenIsListedAgain(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1000)
	h.dead(s)
	redrive := func() {
		t.Helper()
		if err := h.manage(func() error { _, err := h.q.Redrive(t.Context(), "s", chooseAll); return err }); err != nil {
			t.Fatal(err)
		}
	}
	listed := func(reason string, dead int64) {
		t.Helper()
		list, err := h.q.Undelivered("s")
		if err != nil || len(list) != 1 || list[0].Range != (Range{3, 5}) || list[0].Reason != reason {
			t.Fatalf("%+v, %v", list, err)
		}
		if got := h.outcomes("s")[DeadLettered]; got != dead {
			t.Fatalf("%d dead letters are accounted for, want %d", got, dead)
		}
		if v, _ := h.q.Subscription("s"); v.DeadListed != 2 {
			t.Fatalf("%d dead letters are listed, want each once", v.DeadListed)
		}
		h.checkAudit()
	}
	redrive()
	l := leasesOf(drain(s))[0]
	if err := s.Ack(Ack{ID: 2, Leases: []AckedLease{{ID: l.ID, DeadLetters: []DeadLetter{{Offset: 3, Next: 5, Reason: "still none"}}, Copies: []Batch{testBatch("t", 3, 5)}}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	listed("still none", 2)
	redrive()
	if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	listed(reasonRedriveEnded, 0) // the ledger begins anew
}

// TestForgetUndelivered takes a part off the list, and the copy off the disk.
func TestForgetUndelivered(t *testing.T) {
	h := newHarness(t, all("s"))
	h.dead(h.session("s", false, 1000))
	ref := h.copyRef()
	if err := h.manage(func() error {
		n, err := h.q.ForgetUndelivered(t.Context(), "s", func(*Undelivered) Range { return Range{3, 4} })
		if n != 1 {
			t.Errorf("%d offsets are forgotten", n)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	h.write()
	h.q.release()
	for range 2 {
		if list, err := h.q.Undelivered("s"); err != nil || len(list) != 1 || list[0].Range != (Range{4, 5}) || list[0].Kept {
			t.Fatalf("%+v, %v", list, err)
		}
		if !h.store.released[ref] || h.outcomes("s")[DeadLettered] != 2 {
			t.Fatalf("released: %v, %v", h.store.released[ref], h.outcomes("s"))
		}
		h.reopen()
	}
}

// TestCopiesAreBounded keeps the newest, and none where the disk has space for changes only.
func TestCopiesAreBounded(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1<<40)
	h.cfg.MemoryBytes = 1 << 40
	h.q.cfg.MemoryBytes = 1 << 40
	large := make([]byte, maxCopyBytes/4)
	for i := range int64(6) {
		h.append("t", i, i+1)
		l := leasesOf(drain(s))[0]
		if err := s.Ack(Ack{ID: uint64(i), Leases: []AckedLease{{ID: l.ID, DeadLetters: []DeadLetter{{Offset: i, Reason: "r"}},
			Copies: []Batch{{Range: Range{i, i + 1}, Records: 1, Payload: large}}}}}); err != nil {
			t.Fatal(err)
		}
		if i == 5 {
			h.store.full = noBatches
		}
		h.write()
		h.pass(2 * spaceRetry)
		h.write()
	}
	sub := h.q.subscription("s")
	if len(sub.copies) != 4 || sub.copies[0].own.First != 1 || sub.copyBytes != maxCopyBytes {
		t.Fatalf("%d copies of %d bytes, from %v", len(sub.copies), sub.copyBytes, sub.copies[0].own)
	}
	if got := h.outcomes("s")[DeadLettered]; got != 6 {
		t.Fatalf("%d dead letters are settled", got)
	}
	for _, bad := range []Batch{{Range: Range{6, 8}, Records: 1}, {Range: Range{6, 7}}, {Range: Range{7, 7}, Records: 1}} {
		h.append("t", 6, 7)
		leases := leasesOf(drain(s))
		if len(leases) == 0 {
			break
		}
		err := s.Ack(Ack{ID: 9, Leases: []AckedLease{{ID: leases[0].ID, DeadLetters: []DeadLetter{{Offset: 6, Reason: "r"}}, Copies: []Batch{bad}}}})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("copy %+v: %v", bad, err)
		}
		s.Nack(leases[0].ID, -1, "")
	}
}
