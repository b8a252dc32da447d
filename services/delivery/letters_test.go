package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// fakeLetters notes what is written, once it may be.
type fakeLetters struct {
	mu  sync.Mutex
	all []string
	may chan struct{}
}

func (f *fakeLetters) Write(ctx context.Context, letters []Letter) (refused int, err error) {
	select {
	case <-f.may:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range letters {
		f.all = append(f.all, fmt.Sprintf("%d %s: %s", l.Offset, l.Record.Value, l.Reason))
	}
	return 1, nil
}

func (f *fakeLetters) Close() error { return nil }

// TestLettersBeforeTheAck: the buffer hears of dead letters only once they are written elsewhere,
// and not at all when the session is lost before.
func TestLettersBeforeTheAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFakeBuffer(t)
		conn, err := f.dial("")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		letters := &fakeLetters{may: make(chan struct{})}
		cfg := sessionConfig{subscription: "q/s", consumer: "me", ordering: spillwayv1.Ordering_ORDERING_PARTITION, memory: 1 << 20, letters: letters, time: newTimes(1), seen: &shards.Seen{Of: 1}}
		c := newCounters()
		s, err := openSession(t.Context(), spillwayv1.NewBufferServiceClient(conn), cfg, slog.New(slog.DiscardHandler), c)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close(context.Background())
		stream := <-f.streams
		stream.t = t
		stream.credit()
		take := func(id uint64) *Lease {
			stream.lease(none(id, "a", "b", "c", "d"))
			return <-s.Leases()
		}
		ack := func(l *Lease) chan error {
			done := make(chan error, 1)
			go func() {
				done <- s.Ack(t.Context(), &Ack{Leases: []AckedLease{{Lease: l, DeadLetters: []DeadLetter{{Offset: l.First + 3, Reason: "last"}, {Offset: l.First, Next: l.First + 2, Reason: "first"}}}}})
			}()
			synctest.Wait()
			return done
		}
		done := ack(take(1))
		if len(stream.requests) != 0 {
			t.Fatalf("the buffer was told %v before the letters were written", <-stream.requests)
		}
		close(letters.may)
		m := stream.next().GetAck()
		if m == nil || len(m.Leases[0].DeadLetters) != 3 { // one by one, as to an older buffer
			t.Fatalf("%v", m)
		}
		stream.answer(&spillwayv1.AckResult{Id: m.Id})
		if err := <-done; err != nil || !slices.Equal(letters.all, []string{"100 a: first", "101 b: first", "103 d: last"}) || c.copied.Load() != 2 || c.notCopied.Load() != 1 {
			t.Errorf("%v, %q", err, letters.all)
		}

		letters.may = make(chan struct{})
		done = ack(take(2))
		stream.end <- errors.New("gone")
		if err := <-done; !errors.Is(err, ErrSessionLost) {
			t.Errorf("%v", err)
		}
	})
}
