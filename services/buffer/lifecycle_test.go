package buffer

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/internal/config"
)

// lifecycleConfig describes a buffer with these queues.
func lifecycleConfig(names ...string) config.Buffer {
	cfg := config.Buffer{DataDir: "unused", Queues: map[string]*config.Queue{}}
	for _, name := range names {
		cfg.Queues[name] = &config.Queue{Memory: config.Bounds{Records: 1000, Bytes: 1 << 20}, Disk: config.Bounds{Records: 1000, Bytes: 1 << 30},
			SpillAfter: time.Second, Lease: time.Second, Subscriptions: map[string]*config.Subscription{"s": {Topics: []string{"*"}}}}
	}
	return cfg
}

// readiness is what OnReady was told.
type readiness struct {
	ready  bool
	reason string
}

// TestTheLastReportIsTheTruth has the first of two queues open, and its report taken so slowly
// that the second one opens meanwhile.
func TestTheLastReportIsTheTruth(t *testing.T) {
	bothOpen := make(chan struct{})
	var mu sync.Mutex
	var last readiness
	reported := make(chan struct{}, 100)
	deps := Deps{Log: slog.New(slog.DiscardHandler),
		OpenStore: func(_ string, o queue.StoreOptions) (queue.Store, error) { return memstore.New().Reopen(o) },
		OnReady: func(ready bool, reason string) {
			if strings.Count(reason, "queue ") == 1 { // one is open
				<-bothOpen
			}
			mu.Lock()
			last = readiness{ready, reason}
			mu.Unlock()
			reported <- struct{}{}
		}}
	s, err := New(lifecycleConfig("a", "b"), deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		a, _ := s.only("a").get()
		b, _ := s.only("b").get()
		if a != nil && b != nil {
			break
		}
		if time.Since(begin) > 2*time.Minute {
			t.Fatal("the queues do not open")
		}
	}
	close(bothOpen)
	for quiet := false; !quiet; { // all reports have been made
		select {
		case <-reported:
		case <-time.After(200 * time.Millisecond):
			quiet = true
		}
	}
	mu.Lock()
	if !last.ready {
		t.Errorf("both queues are open, and the last report is %+v", last)
	}
	mu.Unlock()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

var errIO = errors.New("input/output error")

// flaky is a store that fails at every write while broken.
type flaky struct {
	queue.Store
	broken *atomic.Bool
}

func (f flaky) Append(entries []queue.Entry) ([]queue.Ref, error) {
	if f.broken.Load() {
		return nil, errIO
	}
	return f.Store.Append(entries)
}

// warningCounter counts the warnings of a log.
type warningCounter struct {
	slog.Handler
	n *atomic.Int64
}

// Enabled implements slog.Handler.
func (c warningCounter) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (c warningCounter) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		c.n.Add(1)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (c warningCounter) WithAttrs([]slog.Attr) slog.Handler { return c }

// TestReopeningBacksOff has a queue whose store cannot be opened, and one whose store opens and
// then fails at its first write: both are tried again with growing pauses and one line in the
// log. When all has been well for a while, the next failure is tried again soon.
func TestReopeningBacksOff(t *testing.T) {
	for name, atOpen := range map[string]bool{"at open": true, "at the first write": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var warnings atomic.Int64
				var broken atomic.Bool
				broken.Store(true)
				store := memstore.New()
				var attempts atomic.Int64
				deps := Deps{Log: slog.New(warningCounter{slog.DiscardHandler, &warnings}), OpenStore: func(_ string, o queue.StoreOptions) (queue.Store, error) {
					attempts.Add(1)
					if atOpen && broken.Load() {
						return nil, errIO
					}
					opened, err := store.Reopen(o)
					return flaky{opened, &broken}, err
				}}
				s, err := New(lifecycleConfig("q"), deps)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()
				write := func() {
					if q, err := s.queue("q"); err == nil {
						_ = q.Pause(ctx, "s", true)
					}
				}

				for range 600 {
					time.Sleep(time.Second)
					write()
				}
				synctest.Wait()
				if n := attempts.Load(); n < 60 || n > 300 {
					t.Errorf("%d attempts in ten minutes, want one every 2.5 to 5 s", n)
				}
				if n := warnings.Load(); n != 1 {
					t.Errorf("%d warnings, want 1", n)
				}
				broken.Store(false)
				time.Sleep(10 * time.Second)
				write()
				time.Sleep(2 * stableAfter)
				if q, err := s.queue("q"); err != nil {
					t.Fatalf("the queue is not open again: %v, %v", q, err)
				}

				broken.Store(true)
				attempts.Store(0)
				write()
				time.Sleep(300 * time.Millisecond)
				synctest.Wait()
				if attempts.Load() == 0 {
					t.Error("after two good minutes the first attempt is as late as if it had failed all the time")
				}
				if n := warnings.Load(); n != 2 {
					t.Errorf("%d warnings, want a second one", n)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestStopWhileOpening has Run return while a store is being read, and the queue closed when it
// has been.
func TestStopWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan struct{})
		deps := Deps{Log: slog.New(slog.DiscardHandler), OpenStore: func(_ string, o queue.StoreOptions) (queue.Store, error) {
			time.Sleep(time.Hour)
			store, err := memstore.New().Reopen(o)
			return closing{store, closed}, err
		}}
		s, err := New(lifecycleConfig("q"), deps)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("Run returned %v after it was told to", took-time.Minute)
		}
		<-closed
	})
}

// closing tells when it is closed.
type closing struct {
	queue.Store
	closed chan struct{}
}

func (c closing) Close() error {
	close(c.closed)
	return c.Store.Close()
}

// TestAQueueThatClosesIsNotReady has a queue whose store failed and does not let go: what it is
// about to be is no reason to be ready.
func TestAQueueThatClosesIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reported atomic.Value
		var broken atomic.Bool
		deps := Deps{Log: slog.New(slog.DiscardHandler),
			OnReady: func(ready bool, reason string) { reported.Store(readiness{ready, reason}) },
			OpenStore: func(_ string, o queue.StoreOptions) (queue.Store, error) {
				store, err := memstore.New().Reopen(o)
				return stuck{flaky{store, &broken}}, err
			}}
		s, err := New(lifecycleConfig("q"), deps)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		if want := (readiness{ready: true}); reported.Load() != want {
			t.Fatalf("report is %+v, want %+v", reported.Load(), want)
		}
		q, err := s.queue("q")
		if err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		if err := q.Pause(ctx, "s", true); !errors.Is(err, queue.ErrClosed) {
			t.Fatalf("pause: %v", err)
		}
		synctest.Wait()
		if want := (readiness{reason: "queue q: closing"}); reported.Load() != want {
			t.Errorf("report is %+v, want %+v", reported.Load(), want)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if last := reported.Load().(readiness); last.ready || !strings.Contains(last.reason, "input/output error") {
			t.Errorf("report is %+v, want the reason", last)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// stuck takes an hour to close.
type stuck struct{ queue.Store }

func (s stuck) Close() error {
	time.Sleep(time.Hour)
	return s.Store.Close()
}
