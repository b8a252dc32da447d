package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// newPaceHarness has records of a byte, and a window of 10,000 of them.
func newPaceHarness(t testing.TB, subs ...SubscriptionConfig) *harness {
	h := newHarness(t, subs...)
	h.cfg.MemoryRecords = h.cfg.MemoryBytes
	h.reopen()
	return h
}

var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// held says whether Pace would wait.
func (h *harness) held() bool {
	h.t.Helper()
	err := h.q.Pace(canceled, h.now.UnixMilli())
	if err != nil && !errors.Is(err, context.Canceled) {
		h.t.Fatal(err)
	}
	return err != nil
}

// take has a session lease and ack so many bytes in a second, of batches of ten.
func (h *harness) take(s *Session, bytes int) {
	h.t.Helper()
	for range 10 {
		if err := s.AddCredit(int64(bytes / 10)); err != nil {
			h.t.Fatal(err)
		}
		h.ack(s, 1, leasesOf(drain(s)))
		h.write()
		h.pass(tick)
	}
}

// TestPace: ingest is held back only when it is ahead of all, and of the fastest by what that
// takes within seconds.
func TestPace(t *testing.T) {
	h := newPaceHarness(t, all("fast"), all("slow"), SubscriptionConfig{Name: "other", Topics: []string{"none"}, Required: true})
	enough := h.cfg.MemoryBytes / paceShare
	next := int64(0)
	fill := func(until int64) {
		for ; next < until; next += 10 {
			h.append("t", next, next+10)
			h.write()
		}
	}
	fast := h.session("fast", false, 1)
	fill(enough)
	if h.held() {
		t.Error("held back with nobody who takes anything")
	}
	h.take(fast, int(enough)) // and the slow one nothing
	if h.held() {
		t.Error("held back though nothing waits for the fast one")
	}
	fill(2*enough + 100)
	if !h.held() {
		t.Error("not held back though all have enough, and the fast one takes it in a second")
	}
	fill(10 * enough)
	if h.held() {
		t.Error("held back for what the fast one takes in ten seconds")
	}
	h.take(fast, 7*int(enough))
	if !h.held() {
		t.Error("not held back though the fast one is faster now")
	}
	h.now = h.now.Add(paceAge)
	if err := h.q.Pace(canceled, h.now.Add(-paceAge).UnixMilli()); err != nil {
		t.Errorf("an old record is held back: %v", err)
	}
	h.take(fast, 10)
	h.take(fast, 10)
	h.take(fast, 10)
	h.take(fast, 10)
	if h.held() {
		t.Error("held back though the fast one has stopped")
	}
}

// TestPaceSparesIdleSessions: with ordering, a partition that waits for its session holds back
// nobody else's.
func TestPaceSparesIdleSessions(t *testing.T) {
	h := newPaceHarness(t, all("s"))
	busy := h.session("s", true, 1)
	h.append("t", 0, 10)
	idle := h.session("s", true, 1000)
	for i := range int64(300) {
		h.append("t", 10+i*10, 20+i*10)
	}
	if err := busy.AddCredit(1500); err != nil {
		t.Fatal(err)
	}
	if len(busy.leases) < 150 || len(idle.leases) > 0 {
		t.Fatalf("the sessions have %d and %d leases of one partition", len(busy.leases), len(idle.leases))
	}
	if h.held() {
		t.Error("held back though a session could take more")
	}
	idle.Close()
	if !h.held() {
		t.Error("not held back though the only session has all it can take")
	}
}

// waits calls Pace in the background, and fails when that does not wait. The channel gets what it
// returns.
func (h *harness) waits(t *testing.T) <-chan error {
	t.Helper()
	passed, nowMs := make(chan error, 1), h.now.UnixMilli()
	go func() { passed <- h.q.Pace(t.Context(), nowMs) }()
	synctest.Wait()
	select {
	case err := <-passed:
		t.Fatalf("not held back: %v", err)
	default:
	}
	return passed
}

// TestPaceWakes: who waits goes on when something is leased, and when all stop.
func TestPaceWakes(t *testing.T) {
	for _, by := range []string{"lease", "time", "end"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newPaceHarness(t, all("s"))
				s := h.session("s", false, 1)
				for i := range int64(300) {
					h.append("t", i*10, i*10+10)
				}
				h.take(s, 1500)
				h.take(s, 100)
				passed := h.waits(t)
				switch by {
				case "lease":
					h.take(s, 1000)
				case "time":
					h.pass(time.Minute)
				case "end":
					h.q.close(ErrClosed)
				}
				if err := <-passed; (err != nil) != (by == "end") {
					t.Errorf("Pace: %v", err)
				}
			})
		})
	}
}

// TestPaceWakesForCredit: a session that could take more, while what waits is not for it, is not
// kept waiting for a tick.
func TestPaceWakesForCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPaceHarness(t, all("s"))
		s := h.session("s", true, 1500)
		for i := range int64(300) {
			h.append("t", i*10, i*10+10)
		}
		s.Nack(leasesOf(drain(s))[0].ID, time.Hour, "") // with ordering, all the rest waits for it
		h.pass(tick)
		passed := h.waits(t)
		if err := s.AddCredit(100); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-passed:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("held back though a session could take more")
			h.q.close(ErrClosed)
			<-passed
		}
	})
}

// TestPaceStarvesNobody: what others append, that is not held back, does not hold a batch back
// for long.
func TestPaceStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPaceHarness(t, all("s"))
		s := h.session("s", false, 1)
		next := int64(0)
		others := func(until int64) {
			for ; next < until; next += 10 {
				h.append("t", next, next+10)
				h.write()
			}
		}
		others(3000)
		h.take(s, 1000)
		h.take(s, 1000)
		others(5000)
		passed := make(chan error, 1)
		go func() { passed <- h.q.Pace(t.Context(), h.now.UnixMilli()) }()
		for range 60 {
			synctest.Wait()
			select {
			case err := <-passed:
				if err != nil {
					t.Error(err)
				}
				return
			default:
			}
			h.take(s, 1000)
			others(next + 1000)
		}
		t.Error("held back for a minute")
		h.q.close(ErrClosed)
		<-passed
	})
}

// TestCatchUpStaysInMemory: a source that is faster than its destination, which does not stop,
// does not go over the disk.
func TestCatchUpStaysInMemory(t *testing.T) {
	race.Apart(t)
	for _, stops := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const batches = 20_000
			h := newPaceHarness(t, all("s"))
			h.cfg.Now = time.Now
			h.reopen()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- h.q.Run(ctx) }()

			s := h.session("s", false, 3000)
			go func() {
				for i := range int64(batches) {
					if err := h.q.Pace(ctx, time.Now().UnixMilli()); err != nil {
						t.Error(err)
						return
					}
					h.append("t", i*10, i*10+10)
				}
			}()
			for n := 0; n < batches; {
				events, err := s.Events(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range leasesOf(events) {
					time.Sleep(time.Millisecond) // 10,000 bytes a second
					h.ack(s, uint64(n), []*Lease{l})
					if err := s.AddCredit(l.Size()); err != nil {
						t.Fatal(err)
					}
					if n++; stops && n == batches/2 {
						time.Sleep(30 * time.Second)
						h.q.mu.Lock()
						appended := h.q.partitions[testPartition("t")].appended
						h.q.mu.Unlock()
						if appended != batches*10 {
							t.Errorf("%d of %d records came while the destination was away: the backlog is not the buffer's", appended, batches*10)
						}
					}
				}
			}
			if spilled := h.q.Stats().SpilledRecords; (spilled > 0) != stops {
				t.Errorf("%d of %d records went over the disk; the destination stopped: %v", spilled, batches*10, stops)
			}
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestQuietPartitionsAreNotHeldBack: of partitions of which little waits nothing is held back
// while there is room.
func TestQuietPartitionsAreNotHeldBack(t *testing.T) {
	h := newPaceHarness(t, all("s"))
	h.cfg.MemoryRecords, h.cfg.MemoryBytes = 16<<20, 16<<20
	h.reopen()
	s := h.session("s", false, 1)
	next := int64(0)
	fill := func(until int64) {
		for ; next < until; next += 64 << 10 {
			h.append("busy", next, next+64<<10)
			h.write()
		}
	}
	fill(3 << 20)
	h.take(s, 1<<20)
	fill(3<<20 + 256<<10)
	ms := h.now.UnixMilli()
	if !h.q.Ahead(testPartition("busy"), 64<<10, ms) {
		t.Fatal("the busy partition is not held back")
	}
	for _, bytes := range []int64{0, 100, 1 << 20} {
		if h.q.Ahead(testPartition("quiet"), bytes, ms) {
			t.Errorf("a first batch of %d bytes is held back", bytes)
		}
	}
	for i := range int64(10) {
		h.append("quiet", i*100, i*100+100)
		if h.q.Ahead(testPartition("quiet"), 100, ms) {
			t.Errorf("a small batch is held back with %d before it", i+1)
		}
	}
	if !h.q.Ahead(testPartition("quiet"), 1<<20, ms) {
		t.Error("a large batch is not held back though others wait")
	}
	if h.q.Ahead(testPartition("busy"), 64<<10, ms-2*paceAge.Milliseconds()) {
		t.Error("an old record is held back")
	}
	h.cfg.SpillAfter = time.Hour
	h.q.subs[0].pace = 1e9                       // it will all be leased soon
	for i := range int64(9 << 20 / (64 << 10)) { // the window fills up
		b := testBatch("other", i*64<<10, (i+1)*64<<10)
		if _, err := h.q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !h.q.Ahead(testPartition("new"), 100, ms) {
		t.Error("a quiet partition is not held back though the window is half full")
	}
}

// TestHeldBatchesHaveABound: what is held back counts in the window, and is a quarter of it at
// most; small messages wait when it is a half.
func TestHeldBatchesHaveABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPaceHarness(t, all("s"))
		most := h.cfg.MemoryBytes / holdShare
		if !h.q.TryHold(most) || h.q.TryHold(1) {
			t.Fatal("not exactly a quarter is held")
		}
		if err := h.q.Hold(t.Context(), most); err != nil {
			t.Fatal(err)
		}
		second := make(chan error, 1)
		go func() { second <- h.q.Hold(t.Context(), 1) }()
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("more is held")
		default:
		}
		h.append("t", 0, h.cfg.MemoryBytes-2*most)
		full := make(chan error, 1)
		go func() {
			_, err := h.q.Append(t.Context(), testBatch("t", h.cfg.MemoryBytes-2*most, h.cfg.MemoryBytes-2*most+1), 0)
			full <- err
		}()
		synctest.Wait()
		select {
		case <-full:
			t.Fatal("the window takes more than there is room for")
		default:
		}
		h.q.LetGo(most)
		if err := <-second; err != nil {
			t.Error(err)
		}
		if err := <-full; err != nil {
			t.Error(err)
		}
		if err := h.q.Hold(canceled, 2*most); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		h.q.LetGo(most + 1)
		if err := h.q.Hold(canceled, 10*most); err != nil {
			t.Errorf("a single larger one: %v", err)
		}
		h.q.close(ErrClosed)
		if err := h.q.Hold(t.Context(), 1); !errors.Is(err, ErrClosed) || h.q.TryHold(1) {
			t.Errorf("of a closed queue: %v", err)
		}
	})
}

// TestRoomIsMadeForWhoWaits: a batch that does not fit has what is young written, though the
// window is not nearly full.
func TestRoomIsMadeForWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newPaceHarness(t, all("s"))
		h.cfg.Now, h.cfg.SpillAfter = time.Now, time.Hour
		h.reopen()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- h.q.Run(ctx) }()
		began := time.Now()
		h.append("t", 0, 6000)
		h.append("t", 6000, 6000+9000)
		if d := time.Since(began); d > time.Minute {
			t.Errorf("a batch waited %v for room", d)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
