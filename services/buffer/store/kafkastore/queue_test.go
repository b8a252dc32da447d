package kafkastore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestQueueIsTakenOver runs real queues, each of which takes the shard over in the midst of the
// acks of the one before, which knows nothing. What a queue has answered as settled is leased by
// none after it.
func TestQueueIsTakenOver(t *testing.T) {
	f := newFakeShard(t)
	cfg := queue.Config{MemoryRecords: 1 << 20, MemoryBytes: 64 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: 20 * time.Millisecond,
		LeaseDuration: time.Minute, Subscriptions: []queue.SubscriptionConfig{{Name: "s", Topics: []string{"*"}, Required: true}}}
	r := &run{t: t, answered: make(map[int64]bool)}
	var before chan error
	const rounds = 8
	for round := range rounds + 1 {
		q, err := queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) { return f.Open(o) })
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { ended <- q.Run(ctx) }()
		if before != nil {
			if err := <-before; !errors.Is(err, ErrFenced) {
				t.Fatalf("round %d: the queue before ended with %v, want %v", round, err, ErrFenced)
			}
			r.work.Wait()
		}
		before = ended
		r.start(q)
		time.Sleep(50 * time.Millisecond)
		if round == rounds {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("the last queue ended with %v", err)
			}
			r.work.Wait()
		}
	}
	if len(r.answered) < rounds {
		t.Errorf("%d acks were answered: that is no test", len(r.answered))
	}
	t.Logf("%d acks answered", len(r.answered))
}

// run is the ingest and the delivery of a queue.
type run struct {
	t        *testing.T
	work     sync.WaitGroup
	answered map[int64]bool // by the first offsets of batches; only the delivery's goroutine uses it
	end      int64          // of what was ever appended
}

func (r *run) start(q *queue.Queue) {
	r.t.Helper()
	part := queue.Partition{Cluster: "k", Topic: "t"}
	a, err := q.Assign(part, false)
	if err != nil {
		r.t.Fatal(err)
	}
	if a.Resume > r.end {
		r.t.Fatalf("the queue goes on at %d, and %d were ever appended", a.Resume, r.end)
	}
	s, err := q.OpenSession("s", "d", true)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.AddCredit(1 << 30); err != nil {
		r.t.Fatal(err)
	}
	at := max(a.Resume, 0)
	r.work.Go(func() {
		const records = 100
		for {
			b := queue.Batch{Partition: part, Range: queue.Range{First: at, Next: at + records}, Records: records, Codec: 1, Payload: make([]byte, 5000)}
			if _, err := q.Append(context.Background(), b, 0); err != nil {
				r.end = max(r.end, at+records)
				return
			}
			at += records
			time.Sleep(time.Millisecond)
		}
	})
	r.work.Go(func() { r.deliver(s) })
}

// deliver acks what it gets, until the queue ends.
func (r *run) deliver(s *queue.Session) {
	under := make(map[uint64]int64)
	n := uint64(0)
	for {
		events, err := s.Events(context.Background())
		if err != nil {
			return
		}
		for _, e := range events {
			if e.Ack != nil && e.Ack.Err == nil {
				r.answered[under[e.Ack.ID]] = true
			}
			if e.Lease == nil {
				continue
			}
			n++
			under[n] = e.Lease.Batch.First
			if r.answered[e.Lease.Batch.First] {
				r.t.Errorf("the batch at %d is leased, and its ack was answered", e.Lease.Batch.First)
			}
			state := []queue.StateChange{{Key: "file", Value: fmt.Append(nil, e.Lease.Batch.Next)}}
			if s.Ack(queue.Ack{ID: n, Leases: []queue.AckedLease{{ID: e.Lease.ID}}, State: state}) != nil {
				return
			}
		}
	}
}
