package queue

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestLeasesPinNoPayload: what is leased and waits for a session that does not read is not in
// memory once it is stored.
func TestLeasesPinNoPayload(t *testing.T) {
	const window, batch, batches = 4 << 20, 64 << 10, 1000
	h := newHarness(t, all("s"))
	h.cfg.MemoryRecords, h.cfg.MemoryBytes, h.cfg.SpillAfter = batches, window, 0
	h.reopen()
	h.q.store = &nullStore{}
	for range 4 {
		h.session("s", false, 1<<30)
	}
	before := heapBytes()
	for i := range int64(batches) {
		b := Batch{Partition: testPartition("t"), Range: Range{i, i + 1}, Records: 1, Payload: make([]byte, batch)}
		if _, err := h.q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
		h.write()
	}
	if used := heapBytes() - before; used > 2*window {
		t.Errorf("%d MiB of heap with %d MiB leased, want at most %d", used>>20, batch*batches>>20, 2*window>>20)
	}
	if n := h.q.subs[0].leased; n != batches {
		t.Errorf("%d batches are leased, want %d", n, batches)
	}
}

// TestTinyBatchesHaveABound: batches that are held cost no more than it is said they do, and when
// that is half of the window, no more are taken, until some are settled.
func TestTinyBatchesHaveABound(t *testing.T) {
	race.Apart(t)
	const free, most = 20_000, 20_000 + 100_000
	h := newHarness(t, all("s"))
	h.cfg.MemoryRecords, h.cfg.MemoryBytes, h.cfg.FreeBatches, h.cfg.SpillAfter = 1<<40, 2*(most-free)*batchOverhead, free, 0
	h.reopen()
	h.q.store = &nullStore{}
	before := heapBytes()
	n := int64(0)
	var err error
	for ; err == nil && n < 2*most; n++ {
		b := Batch{Partition: testPartition("t"), Range: Range{n, n + 1}, Records: 1, Payload: make([]byte, 64)}
		if _, err = h.q.Append(t.Context(), b, 0); n%1000 == 0 {
			h.write()
		}
	}
	h.write()
	if n--; !errors.Is(err, ErrFull) || n < most || n > most+1 {
		t.Fatalf("after %d batches: %v, want ErrFull after %d", n, err, most)
	}
	if per := (heapBytes() - before) / n; per > batchOverhead {
		t.Errorf("a batch that is held costs %d bytes, want at most %d", per, batchOverhead)
	}
	if w := h.q.windowLocked(); w < h.cfg.MemoryBytes/2 {
		t.Errorf("the window has %d bytes left", w)
	}
	s := h.session("s", false, 64*100)
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	if _, err := h.q.Append(t.Context(), Batch{Partition: testPartition("t"), Range: Range{n, n + 1}, Records: 1, Payload: make([]byte, 64)}, 0); err != nil {
		t.Errorf("with some settled: %v", err)
	}
}

// TestLeasesHaveABound: a session is leased its part of what the queue leases at once, however
// small batches are, and gets the rest as it takes and settles them.
func TestLeasesHaveABound(t *testing.T) {
	const n, all, share = 5000, 1000, 750 // the idle one lends half of its part
	h := leaseHarness(t, n, all)
	idle := h.session("s", false, 1)
	h.ack(idle, 1, leasesOf(drain(idle)))
	s := h.session("s", false, 1<<30)
	seen := 1
	for id := uint64(1); seen < n; id++ {
		if len(s.leases) > share || len(s.events) > share {
			t.Fatalf("%d batches are leased, %d events wait", len(s.leases), len(s.events))
		}
		leases := leasesOf(drain(s))
		if len(leases) == 0 {
			t.Fatalf("nothing more is leased after %d of %d", seen, n)
		}
		seen += len(leases)
		h.ack(s, id, leases)
		h.write()
	}
	if got := h.q.Sessions()[1].Credit; got != 1<<30-n+1 {
		t.Errorf("its credit is %d, want what it was given without the %d bytes it was leased", got, n-1)
	}
}

// leaseHarness holds n batches, and leases so many at once.
func leaseHarness(t *testing.T, n int64, most int) *harness {
	t.Helper()
	h := newHarness(t, all("s"))
	h.cfg.MemoryRecords, h.cfg.MemoryBytes, h.cfg.MaxLeases = 2*n, 2*n, most
	h.reopen()
	for i := range n {
		h.append("t", i, i+1)
	}
	return h
}

// TestIdleSessionsLend: one busy session among many has much of what may be leased; each that
// becomes busy has its own part at once, and in the end all have as much.
func TestIdleSessionsLend(t *testing.T) {
	const n, most, sessions = 30_000, 10_000, 20
	h := leaseHarness(t, n, most)
	var all []*Session
	for range sessions {
		s, err := h.q.OpenSession("s", "c", false)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	const own = most / sessions / 2
	for i, s := range all {
		if err := s.AddCredit(1 << 30); err != nil {
			t.Fatal(err)
		}
		drainAll(s)
		if got := len(s.leases); i == 0 && got < most/2 || got < own {
			t.Fatalf("session %d has %d leases beside %d that are busy", i, got, i)
		}
		if total := h.q.leased; total > most*3/2 {
			t.Fatalf("%d batches are leased with %d sessions busy", total, i+1)
		}
	}
	first := all[0]
	for id := uint64(1); len(first.leases) > most/sessions; id++ {
		var some []*Lease
		for lease := range first.leases {
			if some = append(some, &Lease{ID: lease}); len(some) == 500 {
				break
			}
		}
		h.ack(first, id, some)
		h.write()
	}
	for _, s := range all {
		drainAll(s)
	}
	if total := h.q.leased; total > most*11/10 || h.q.leasing != sessions {
		t.Errorf("%d batches are leased by %d sessions, want about %d by %d", total, h.q.leasing, most, sessions)
	}
	for _, s := range all {
		s.Close()
	}
	if h.q.leased != 0 || h.q.leasing != 0 {
		t.Errorf("%d batches are leased by %d sessions when all are dead", h.q.leased, h.q.leasing)
	}
}

// TestEventsHaveABound: leases that expire again and again before a session takes its events do
// not pile up.
func TestEventsHaveABound(t *testing.T) {
	const share = 100
	h := newHarness(t, all("s"))
	h.cfg.MaxLeases = share
	h.reopen()
	for i := range int64(500) {
		h.append("t", i, i+1)
	}
	s := h.session("s", false, 1<<30)
	s.WantWatermarks()
	for range 1000 {
		h.pass(h.cfg.LeaseDuration + time.Second)
	}
	if n := len(s.events); n > 3*share {
		t.Errorf("%d events wait for a session that takes none", n)
	}
	drain(s)
	if len(s.leases) == 0 {
		t.Error("nothing is leased once it takes them")
	}
}

// TestAnswersHoldRequestsBack: who asks and does not read has its requests wait.
func TestAnswersHoldRequestsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, all("s"))
		s := h.session("s", false, 1)
		waits := func() <-chan error {
			c := make(chan error, 1)
			go func() { c <- s.AwaitTaken(t.Context()) }()
			synctest.Wait()
			return c
		}
		if err := <-waits(); err != nil {
			t.Fatal(err)
		}
		for range maxAnswers {
			s.Extend([]uint64{7})
		}
		for _, end := range []func(){func() { drain(s) }, s.Close} {
			for range maxAnswers {
				s.Extend([]uint64{7})
			}
			held := waits()
			select {
			case <-held:
				t.Fatal("nothing waits though many answers do")
			default:
			}
			end()
			if err := <-held; err != nil {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		live := h.session("s", false, 1)
		for range maxAnswers {
			live.Extend([]uint64{7})
		}
		if err := live.AwaitTaken(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}
