package queue

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowStore takes a while for each group but the first, which is Open's. While its gate is there
// and not closed, it takes for ever.
type slowStore struct {
	Store
	takes time.Duration
	gate  chan struct{}
	open  bool
}

func (s *slowStore) Append(entries []Entry) ([]Ref, error) {
	if !s.open {
		s.open = true
		return s.Store.Append(entries)
	}
	time.Sleep(s.takes)
	if s.gate != nil {
		<-s.gate
	}
	return s.Store.Append(entries)
}

// busyQueue runs a queue on a disk that is slower than who appends to it.
func busyQueue(t *testing.T, store *slowStore) (q *Queue, stop func() error) {
	t.Helper()
	q, err := Open(Config{MemoryRecords: 1e6, MemoryBytes: 16 << 20, DiskRecords: 1e9, DiskBytes: 1 << 40, SpillAfter: 100 * time.Millisecond,
		LeaseDuration: 2 * time.Second, Subscriptions: []SubscriptionConfig{all("s")}}, func(StoreOptions) (Store, error) { return store, nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	var appender sync.WaitGroup
	payload := make([]byte, 64<<10)
	appender.Go(func() {
		for i := int64(0); ; i++ {
			b := Batch{Partition: testPartition("t"), Range: Range{i, i + 1}, Records: 1, Payload: payload}
			if _, err := q.Append(context.Background(), b, 0); err != nil {
				return
			}
		}
	})
	stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		appender.Wait()
		return err
	})
	t.Cleanup(func() { _ = stop() })
	return q, stop
}

// TestSlowDiskDelaysNoDeadline: while there is always something to write, leases expire, what was
// given back comes again, and the end of the context is heard.
func TestSlowDiskDelaysNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, stop := busyQueue(t, &slowStore{Store: &nullStore{}, takes: 300 * time.Millisecond})
		s, err := q.OpenSession("s", "hung", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AddCredit(1); err != nil {
			t.Fatal(err)
		}
		wantLease(t, s, 1, time.Minute)
		began := time.Now()
		if gone := wantRevoked(t, s); len(gone) != 1 {
			t.Errorf("%d leases expired, want 1", len(gone))
		}
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("the lease of 2 s expired after %v", d)
		}
		if err := s.AddCredit(1 << 30); err != nil {
			t.Fatal(err)
		}
		l := wantLease(t, s, 2, time.Minute)
		s.Nack(l.ID, time.Second, "")
		began = time.Now()
		wantLease(t, s, 3, time.Minute)
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("what was given back for 1 s came after %v", d)
		}
		began = time.Now()
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if d := time.Since(began); d > closeWithin {
			t.Errorf("Run returned %v after the end of its context", d)
		}
	})
}

// wantLease waits for a lease of an attempt, and keeps no others.
func wantLease(t *testing.T, s *Session, attempt int, most time.Duration) *Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	for {
		events, err := s.Events(ctx)
		if err != nil {
			t.Fatalf("no lease of attempt %d: %v", attempt, err)
		}
		for _, l := range leasesOf(events) {
			if l.Attempt == attempt {
				return l
			}
		}
	}
}

func wantRevoked(t *testing.T, s *Session) []uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		events, err := s.Events(ctx)
		if err != nil {
			t.Fatalf("nothing was revoked: %v", err)
		}
		for _, e := range events {
			if e.Revoked != nil {
				return e.Revoked
			}
		}
	}
}

// TestRunEndsOnASlowDisk: what cannot be written out in time is not, and a store that does not
// answer at all does not keep Run.
func TestRunEndsOnASlowDisk(t *testing.T) {
	for _, test := range []struct {
		name  string
		store *slowStore
		want  error
	}{
		{"slow", &slowStore{Store: &nullStore{}, takes: 3 * time.Second}, nil},
		{"stuck", &slowStore{Store: &nullStore{}, gate: make(chan struct{})}, errStuck},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if test.store.gate != nil {
					test.store.gate = make(chan struct{}) // of this bubble
				}
				_, stop := busyQueue(t, test.store)
				time.Sleep(10 * time.Second)
				began := time.Now()
				if err := stop(); !errors.Is(err, test.want) {
					t.Errorf("Run: %v, want %v", err, test.want)
				}
				if d := time.Since(began); d > closeWithin {
					t.Errorf("it took %v", d)
				}
				if test.store.gate != nil {
					close(test.store.gate)
				}
			})
		})
	}
}

// blockedLog is a log that nobody reads.
type blockedLog struct{ read chan struct{} }

func (b *blockedLog) Write(p []byte) (int, error) {
	<-b.read
	return len(p), nil
}

// TestBlockedLogStopsNothing: everything that logs goes on while nobody reads the log, and so
// does who comes after it.
func TestBlockedLogStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &blockedLog{make(chan struct{})}
		defer close(log.read)
		c := Config{MemoryRecords: 1e6, MemoryBytes: 1 << 20, DiskRecords: 1e9, DiskBytes: 1 << 40, SpillAfter: time.Second, LeaseDuration: time.Second,
			Subscriptions: []SubscriptionConfig{all("s")}, Log: slog.New(slog.NewTextHandler(log, nil))}
		q, err := Open(c, func(StoreOptions) (Store, error) { return &nullStore{}, nil })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- q.Run(ctx) }()
		for i := range int64(2 * maxLogLines) {
			if err := q.Settle(testPartition("t"), Range{i, i + 1}, Lost, "it is gone", 0); err != nil {
				t.Fatal(err)
			}
		}
		s, err := q.OpenSession("s", "hung", false)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AddCredit(1); err != nil {
			t.Fatal(err)
		}
		if _, err := q.Append(ctx, Batch{Partition: testPartition("u"), Range: Range{0, 1}, Records: 1, Payload: []byte{1}}, 0); err != nil {
			t.Fatal(err)
		}
		wantRevoked(t, s) // which is logged, too
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if d := time.Since(began); d > closeWithin {
			t.Errorf("Run returned after %v", d)
		}
		q.logLines.mu.Lock()
		defer q.logLines.mu.Unlock()
		if n := len(q.logLines.waiting); n > maxLogLines {
			t.Errorf("%d lines wait, want at most %d", n, maxLogLines)
		}
	})
}

// TestLogTellsWhatItDropped: lines come in order, and what was dropped is counted.
func TestLogTellsWhatItDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := &recordedLog{gate: make(chan struct{})}
		log, lines := newLog(slog.New(got))
		for range maxLogLines + 11 {
			log.Info("line")
			synctest.Wait() // the first one is on its way
		}
		close(got.gate)
		lines.flush(time.Minute)
		if n := len(got.records); n != maxLogLines+2 {
			t.Fatalf("%d lines, want %d and one about those dropped", n, maxLogLines+1)
		}
		dropped := int64(0)
		got.records[maxLogLines+1].Attrs(func(a slog.Attr) bool {
			dropped = a.Value.Int64()
			return true
		})
		if dropped != 10 {
			t.Errorf("it says that %d lines were dropped, want 10", dropped)
		}
	})
}

type recordedLog struct {
	gate    chan struct{}
	records []slog.Record
}

func (l *recordedLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *recordedLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *recordedLog) WithGroup(string) slog.Handler            { return l }
func (l *recordedLog) Handle(_ context.Context, r slog.Record) error {
	<-l.gate
	l.records = append(l.records, r)
	return nil
}

// TestPercentages: bounds work from 1 on, and do not overflow.
func TestPercentages(t *testing.T) {
	for _, test := range []struct {
		used, limit, percent int64
		below                bool
	}{
		{0, 1, 50, true}, {1, 1, 50, false}, {48, 99, 50, true}, {49, 99, 50, false}, {68, 99, 70, true}, {69, 99, 70, false},
		{math.MaxInt64/2 - 1, math.MaxInt64, 50, true}, {math.MaxInt64, math.MaxInt64, 70, false}, {0, 0, 50, false},
	} {
		if got := below(test.used, test.limit, test.percent); got != test.below {
			t.Errorf("%d is below %d%% of %d: %v", test.used, test.percent, test.limit, got)
		}
	}
	for percent := range int64(101) {
		if got, want := percentOf(math.MaxInt64, percent), percentOf(math.MaxInt64-1, percent); got < want || got < 0 {
			t.Errorf("%d%% of the largest number: %d", percent, got)
		}
	}
}

// TestSmallBoundsRefetch: what is deferred is asked for however small the window and the limit
// are.
func TestSmallBoundsRefetch(t *testing.T) {
	for _, memory := range []int64{1, 2, 49, 99, 100} {
		h := newHarness(t, SubscriptionConfig{Name: "s", Topics: []string{"*"}, OnFull: Defer, Limit: 1})
		h.cfg.MemoryRecords, h.cfg.MemoryBytes = memory, memory
		h.reopen()
		s := h.session("s", false, 100)
		for i := range int64(4) {
			h.append("t", i, i+1)
			h.write()
		}
		w := h.q.Watch("k", "test")
		for range 10 {
			h.ack(s, 1, leasesOf(drain(s)))
			h.write()
			h.pass(time.Second)
		}
		if len(asked(w)) == 0 {
			t.Errorf("with room for %d records, nothing is refetched", memory)
		}
		w.Close()
	}
}
