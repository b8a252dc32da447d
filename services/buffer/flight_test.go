package buffer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// got is what a stream that acquires in the background got.
type got struct {
	sent func()
	err  error
}

func (s *flightStream) acquireLater(ctx context.Context, n int64) <-chan got {
	c := make(chan got, 1)
	go func() {
		sent, err := s.acquire(ctx, n)
		c <- got{sent, err}
	}()
	return c
}

// take fails when nothing was got, or something that was not to be.
func take(t *testing.T, c <-chan got, want bool) func() {
	t.Helper()
	synctest.Wait()
	select {
	case g := <-c:
		if !want || g.err != nil {
			t.Fatalf("got %v, want it: %v", g.err, want)
		}
		return g.sent
	default:
		if want {
			t.Fatal("it waits")
		}
		return nil
	}
}

func TestFlightIsDivided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(100)
		a, b := f.join(nil), f.join(nil)
		ctx := t.Context()
		first := take(t, a.acquireLater(ctx, 30), true)
		second := take(t, a.acquireLater(ctx, 20), true)
		third := a.acquireLater(ctx, 1) // more than half
		take(t, third, false)
		large := take(t, b.acquireLater(ctx, 50), true)
		first()
		first() // does nothing
		take(t, third, true)()
		second()
		large()
		take(t, b.acquireLater(ctx, 1000), true) // as if it were 100
		waits := a.acquireLater(ctx, 1)
		take(t, waits, false)
		b.leave() // gives back what it had
		take(t, waits, true)()
		if a.leave(); f.free != f.total || len(f.streams)+len(f.waiting) != 0 {
			t.Errorf("%d of %d are free, %d streams, %d in line", f.free, f.total, len(f.streams), len(f.waiting))
		}
	})
}

// TestIdleStreamsLend: a stream has half of all though many others have nothing to send; each of
// these that has gets a part at once.
func TestIdleStreamsLend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(120)
		var all []*flightStream
		for range 100 {
			all = append(all, f.join(nil))
		}
		ctx := t.Context()
		half := take(t, all[0].acquireLater(ctx, 60), true)
		take(t, all[0].acquireLater(ctx, 1), false)
		third := take(t, all[1].acquireLater(ctx, 40), true)
		waits := all[1].acquireLater(ctx, 1)
		take(t, waits, false)
		rest := take(t, all[2].acquireLater(ctx, 20), true)
		for _, sent := range []func(){half, third, rest} {
			sent()
			synctest.Wait()
		}
		(<-waits).sent()
		for _, s := range all {
			s.leave()
		}
		if f.free != f.total || f.busy != 0 {
			t.Errorf("%d of %d are free, %d busy", f.free, f.total, f.busy)
		}
	})
}

// TestFlightIsInTurn: a large payload is not overtaken for ever by small ones.
func TestFlightIsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(100)
		a, b, c := f.join(nil), f.join(nil), f.join(nil)
		ctx, cancel := context.WithCancelCause(t.Context())
		held := take(t, a.acquireLater(ctx, 60), true)
		large := b.acquireLater(ctx, 90)
		take(t, large, false)
		small := c.acquireLater(t.Context(), 10)
		take(t, small, false)
		cancel(errStalled)
		synctest.Wait()
		if g := <-large; !errors.Is(g.err, errStalled) {
			t.Errorf("a stream that ended got %v", g.err)
		}
		take(t, small, true)
		held()
	})
}

// TestStalledStreamsAreDropped: streams that take nothing lose their connection, but only while
// others wait for memory.
func TestStalledStreamsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight(100)
		var a *flightStream
		dropped := 0
		a = f.join(func() { dropped++; a.leave() })
		slow := f.join(func() { t.Error("a slow stream was dropped") })
		b := f.join(func() { t.Error("who waits was dropped") })
		take(t, a.acquireLater(t.Context(), 70), true)
		time.Sleep(time.Hour)
		synctest.Wait()
		if dropped != 0 {
			t.Fatal("dropped while nobody waited")
		}
		sent := take(t, slow.acquireLater(t.Context(), 10), true)
		waits := b.acquireLater(t.Context(), 50)
		time.Sleep(2 * time.Second)
		take(t, waits, true)
		if dropped != 1 {
			t.Errorf("%d times dropped", dropped)
		}
		sent()
		slow.leave()
		b.leave()
	})
}

// TestSessionsThatDoNotRead grants much credit and reads nothing: what the buffer holds stays
// within the window, what may be on its way, and a little.
func TestSessionsThatDoNotRead(t *testing.T) {
	const window, sessions, batchBytes, batches = 8 << 20, 8, 256 << 10, 600
	r := start(t, t.TempDir(), func(q *config.Queue, _ *Deps) {
		q.Memory = config.Bounds{Records: 1 << 40, Bytes: window}
		q.SpillAfter = 0
		q.Lease = time.Hour
	})
	in := r.appendStream()
	heap := func() int64 {
		debug.FreeOSMemory()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range sessions {
		s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*spillwayv1.ConsumeRequest{
			{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: "c/all", Consumer: fmt.Sprint(i), Ordering: spillwayv1.Ordering_ORDERING_NONE}}},
			{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1 << 30}}}} {
			if err := s.Send(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	value := string(make([]byte, batchBytes))
	most := int64(0)
	for i := range int64(batches) {
		if a := r.appended(in, batch("t", i, i+1, value)); a.Status != nil {
			t.Fatal(a)
		}
		if i%100 == 99 {
			most = max(most, heap()-before)
		}
	}
	if bound := int64(window + flightBytes + 40<<20); most > bound {
		t.Errorf("%d MiB of heap beside %d MiB of batches, want at most %d", most>>20, batches*batchBytes>>20, bound>>20)
	} else {
		t.Logf("%d MiB of heap beside %d MiB of batches", most>>20, batches*batchBytes>>20)
	}
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	eventually(t, "all is leased", func() bool {
		got, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all"})
		return err == nil && got.Subscription.LeasedBatches == batches
	})
}
