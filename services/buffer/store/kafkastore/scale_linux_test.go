package kafkastore

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/race"
)

// TestTakeoverAtScale has another owner take a shard over whose ledger is as large as one is to
// be: 10,000 partitions, 100 subscriptions, and 100,000 ranges of one of them, or of all. It tells
// the processor time that the takeover takes, which is what the shard is not served for beside the
// network, the size of the ledger, and for how long the queue's lock was held meanwhile.
func TestTakeoverAtScale(t *testing.T) {
	race.Apart(t)
	for _, c := range []struct {
		name   string
		ranges string // whose
		most   time.Duration
	}{
		{"100,000 ranges of one subscription", "one", 5 * time.Second},
		{"10,000 ranges of each subscription", "all", 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) { takeOverAtScale(t, c.ranges, c.most) })
	}
}

func takeOverAtScale(t *testing.T, ranges string, most time.Duration) {
	const partitions, subs = 10_000, 100
	f := newFakeShard(t)
	f.cfg.SegmentBytes = DefaultSegmentBytes
	cfg := queue.Config{MemoryRecords: 1 << 40, MemoryBytes: 1 << 40, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: time.Hour, LeaseDuration: time.Minute, Delivered: true, KeepsOld: true}
	for i := range subs {
		cfg.Subscriptions = append(cfg.Subscriptions, queue.SubscriptionConfig{Name: fmt.Sprintf("s%02d", i), Topics: []string{"*"}, Required: true})
	}
	open := func() (*queue.Queue, func()) {
		q, err := queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) { return f.Open(o) })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- q.Run(ctx) }()
		return q, func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	q, stop := open()
	each := func(do func(queue.Partition)) {
		for i := range partitions {
			do(queue.Partition{Cluster: "k", Topic: fmt.Sprint("topic", i%100), Number: int32(i / 100)})
		}
	}
	append1 := func(id queue.Partition, first, next int64) {
		b := queue.Batch{Partition: id, Range: queue.Range{First: first, Next: next}, Records: int32(next - first), MaxTimestampMs: 1, Payload: []byte("p")}
		if _, err := q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if ranges == "all" { // a hole in front of what is settled
		each(func(id queue.Partition) {
			append1(id, 0, 1)
			if err := q.Settle(id, queue.Range{First: 1, Next: 2}, queue.Filtered, "", 0); err != nil {
				t.Fatal(err)
			}
		})
	} else {
		each(func(id queue.Partition) { append1(id, 0, 21) })
		ackOddOffsets(t, q, "s00", partitions)
	}
	stop()
	runtime.GC()

	var took time.Duration
	runtime.LockOSThread()
	before, began := threadTime(t), time.Now()
	q, stop = open()
	took = threadTime(t) - before
	runtime.UnlockOSThread()
	real := time.Since(began)
	each(func(id queue.Partition) { // it serves
		if a, err := q.Assign(id, false); err != nil || !a.Known {
			t.Fatalf("%v: %+v, %v", id, a, err)
		}
	})
	left, want := int64(0), int64(partitions)
	if ranges == "one" {
		want *= 11
	}
	accounts, err := q.Accounts("s00", queue.AuditPosition{})
	if err != nil {
		t.Fatal(err)
	}
	for a := range accounts {
		left += a.Pending
	}
	if left != want {
		t.Errorf("%d offsets are pending, want %d", left, want)
	}
	journal := 0
	for _, r := range f.journal.records {
		journal += len(r.key) + len(r.value)
	}
	t.Logf("taken over in %v of processor time, %v of a busy machine; the journal has %d MiB; the lock was held for %v at most", took.Round(time.Millisecond),
		real.Round(time.Millisecond), journal>>20, q.LongestHold().Round(time.Millisecond))
	if took > most {
		t.Errorf("it takes %v, want %v at most", took, most)
	}
	stop()
}

// ackOddOffsets has every other offset of each batch settled for a subscription.
func ackOddOffsets(t *testing.T, q *queue.Queue, sub string, batches int) {
	t.Helper()
	s, err := q.OpenSession(sub, "d", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.AddCredit(1 << 40); err != nil {
		t.Fatal(err)
	}
	var odd []queue.Range
	for o := int64(1); o < 21; o += 2 {
		odd = append(odd, queue.Range{First: o, Next: o + 1})
	}
	acks, leases := uint64(0), 0
	for answered := uint64(0); leases < batches || answered < acks; {
		events, err := s.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var ack queue.Ack
		for _, e := range events {
			switch {
			case e.Lease != nil:
				leases++
				ack.Leases = append(ack.Leases, queue.AckedLease{ID: e.Lease.ID, Only: odd})
			case e.Ack != nil:
				if e.Ack.Err != nil {
					t.Fatal(e.Ack.Err)
				}
				answered++
			}
		}
		if len(ack.Leases) > 0 {
			acks++
			ack.ID = acks
			if err := s.Ack(ack); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
