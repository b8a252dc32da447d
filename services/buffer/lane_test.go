package buffer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
)

// TestLaneHoldsOnlyWhatIsAhead: the messages of a partition that is ahead wait, in order, until
// the deliveries have taken more or ten seconds are over; those of others do not, also when no
// more may be held back: then batches are refused in their turn.
func TestLaneHoldsOnlyWhatIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := memstore.New()
		q, err := queue.Open(queue.Config{MemoryRecords: 1 << 20, MemoryBytes: 1 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: time.Hour,
			LeaseDuration: time.Hour, Subscriptions: []queue.SubscriptionConfig{{Name: "s", Topics: []string{"*"}, Required: true}}},
			func(o queue.StoreOptions) (queue.Store, error) { return memory.Reopen(o) })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- q.Run(ctx) }()

		// The stream, with what it handles written down.
		var mu sync.Mutex
		var handled []string
		took := func() []string {
			mu.Lock()
			defer mu.Unlock()
			was := handled
			handled = nil
			return was
		}
		a := &appendStream{q: q, open: &spillwayv1.AppendOpen{Cluster: "k"}, lane: newLane(q)}
		handle := func(m *spillwayv1.AppendRequest) error {
			id := partitionOf(m)
			mu.Lock()
			defer mu.Unlock()
			if b := m.GetBatch(); b != nil {
				handled = append(handled, fmt.Sprintf("%s %d", id.Topic, b.FirstOffset))
				_, err := q.Append(ctx, queue.Batch{Partition: id, Range: queue.Range{First: b.FirstOffset, Next: b.NextOffset}, Records: b.RecordCount, Payload: b.Payload}, 0)
				return err
			}
			handled = append(handled, fmt.Sprintf("%s %T", id.Topic, m.Message))
			return nil
		}
		go func() {
			_ = a.lane.run(ctx, handle, func(b *spillwayv1.Batch) error {
				mu.Lock()
				defer mu.Unlock()
				handled = append(handled, fmt.Sprintf("%s %d refused, with %d bytes", b.Source.Topic, b.FirstOffset, len(b.Payload)))
				return nil
			})
			ended <- nil
		}()
		comes := func(m *spillwayv1.AppendRequest) {
			t.Helper()
			id := partitionOf(m)
			if m.RefetchId == 0 && (a.lane.has(withoutLife(id)) || a.ahead(id, m)) {
				if err := a.lane.put(ctx, withoutLife(id), m); err != nil {
					t.Fatal(err)
				}
			} else if err := handle(m); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		next := map[string]int64{}
		batch := func(topic string) *spillwayv1.AppendRequest {
			const n = 8 << 10
			first := next[topic]
			next[topic] += n
			return &spillwayv1.AppendRequest{MayWait: true, Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Source: source(topic),
				FirstOffset: first, NextOffset: first + n, RecordCount: n, MaxTimestampMs: time.Now().UnixMilli(), Payload: make([]byte, n)}}}
		}

		s, err := q.OpenSession("s", "test", false)
		if err != nil {
			t.Fatal(err)
		}
		leases := func(n int) {
			for i := range n {
				if err := s.AddCredit(8 << 10); err != nil {
					t.Fatal(err)
				}
				events, err := s.Events(ctx)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					if e.Lease != nil {
						if err := s.Ack(queue.Ack{ID: uint64(i), Leases: []queue.AckedLease{{ID: e.Lease.ID}}}); err != nil {
							t.Fatal(err)
						}
					}
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
		for range 45 {
			comes(batch("busy"))
		}
		leases(15) // the pace of the deliveries is known now, and 240 KiB wait
		took()
		const sent = 40 // of which a quarter of the window has room for 31
		first := next["busy"]
		for range sent {
			comes(batch("busy"))
		}
		comes(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Revoke{Revoke: &spillwayv1.RevokePartition{Source: source("busy")}}})
		if got := took(); len(got) != 0 {
			t.Fatalf("handled %q, want all of the busy partition held back", got)
		}
		comes(batch("quiet"))
		comes(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source("other")}}})
		refetched := batch("busy")
		refetched.RefetchId = 7
		refetched.GetBatch().FirstOffset, refetched.GetBatch().NextOffset = 0, 8<<10
		comes(refetched)
		if want := []string{"quiet 0", "other *spillwayv1.AppendRequest_Assign", "busy 0"}; !slices.Equal(took(), want) {
			t.Fatalf("not handled as wanted: %q", want)
		}
		time.Sleep(25 * time.Second)
		synctest.Wait()
		var want []string
		for i := range int64(sent) {
			what := fmt.Sprintf("busy %d", first+i*(8<<10))
			if i >= 31 {
				what += " refused, with 0 bytes"
			}
			want = append(want, what)
		}
		if want, got := append(want, "busy *spillwayv1.AppendRequest_Revoke"), took(); !slices.Equal(got, want) {
			t.Errorf("handled\n%q, want\n%q", got, want)
		}
		if a.lane.has(queue.Partition{Cluster: "k", Topic: "busy"}) || a.lane.bytes != 0 {
			t.Errorf("the lane still has %d bytes", a.lane.bytes)
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		a.lane.close()
	})
}
