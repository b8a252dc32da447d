package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// snapshotStore asks for a snapshot with every group.
type snapshotStore struct {
	nullStore
	opts StoreOptions
	last [][]byte
}

func (s *snapshotStore) Append(entries []Entry) ([]Ref, error) {
	s.last = partsOf(s.opts.Snapshot())
	return s.nullStore.Append(entries)
}

// TestSnapshotsBesideEverything makes snapshots, for which the lock is not held, while batches
// are appended, leased, given back and acked, subscriptions moved and everything listed. The race
// detector sees what they share.
func TestSnapshotsBesideEverything(t *testing.T) {
	store := &snapshotStore{}
	q, err := Open(Config{MemoryRecords: 1000, MemoryBytes: 1 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: time.Millisecond,
		LeaseDuration: time.Minute, Subscriptions: []SubscriptionConfig{all("a"), all("b")}},
		func(o StoreOptions) (Store, error) {
			store.opts = o
			return store, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	q.holdItems = 3
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- q.Run(ctx) }()
	const batches = 300
	var appended, others sync.WaitGroup
	for topic := range 3 {
		appended.Go(func() {
			for i := range int64(batches) {
				if _, err := q.Append(ctx, testBatch(fmt.Sprint("t", topic), i, i+1), 0); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	for _, sub := range []string{"a", "b"} {
		others.Go(func() { consume(ctx, t, q, sub) })
	}
	others.Go(func() {
		for ctx.Err() == nil {
			if _, err := q.Audit(""); err != nil {
				t.Errorf("audit: %v", err)
			}
			q.Stats()
			q.Subscriptions()
			q.OldestPending("a")
		}
	})
	appended.Wait()
	if err := q.Seek(ctx, "b", Latest, nil); err != nil {
		t.Errorf("seek: %v", err)
	}
	for deadline := time.Now().Add(time.Minute); q.Stats().PendingRecords > 0 && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	cancel()
	others.Wait()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	var s snapshot
	if len(store.last) != 1 {
		t.Fatalf("the last snapshot has %d parts", len(store.last))
	}
	if err := json.Unmarshal(store.last[0], &s); err != nil || len(s.Partitions) != 3 || len(s.Subscriptions) != 2 {
		t.Fatalf("the last snapshot has %d partitions and %d subscriptions, %v", len(s.Partitions), len(s.Subscriptions), err)
	}
	if n := q.Stats().PendingRecords; n > 0 {
		t.Fatalf("%d records are pending", n)
	}
}

// consume acks what is leased, but for what it gives back first.
func consume(ctx context.Context, t *testing.T, q *Queue, sub string) {
	s, err := q.OpenSession(sub, "test", sub == "a")
	if err != nil {
		t.Errorf("open session: %v", err)
		return
	}
	defer s.Close()
	_ = s.AddCredit(1 << 40)
	for n := uint64(1); ; n++ {
		events, err := s.Events(ctx)
		if err != nil {
			return
		}
		for _, l := range leasesOf(events) {
			if l.ID%7 == 0 && l.Attempt == 1 {
				s.Nack(l.ID, -1, "")
				continue
			}
			_ = s.Ack(Ack{ID: n, Leases: []AckedLease{{ID: l.ID}}, State: []StateChange{{Key: "k", Value: []byte("v")}}})
		}
	}
}

func partsOf(s Snapshot) (parts [][]byte) {
	for part := s.Next(); part != nil; part = s.Next() {
		parts = append(parts, part)
	}
	return parts
}

// contentOf is what a snapshot says, but for what may be newer than the rest of it.
func contentOf(parts [][]byte) string {
	var lines []string
	state := make(map[string]string)
	undelivered := make(map[int64][]Undelivered)
	for _, part := range parts {
		var s snapshot
		if err := json.Unmarshal(part, &s); err != nil {
			return err.Error()
		}
		for _, sub := range s.Subscriptions {
			undelivered[sub.ID] = append(undelivered[sub.ID], sub.Undelivered...)
			sub.Undelivered = nil
			state[fmt.Sprint("subscription ", sub.ID)] = string(mustJSON(sub))
		}
		for _, p := range s.Partitions {
			state[fmt.Sprint("partition ", p.ID)] = fmt.Sprint(p.First)
			for id, settled := range p.Settled.restored {
				until, unwanted := p.Unwanted[id]
				state[fmt.Sprint("ledger ", p.ID, " ", id)] += string(settled.appendJSON(nil)) + fmt.Sprint(until, unwanted) // once
			}
		}
		for _, x := range s.Sessions {
			for key, value := range x.State {
				state[fmt.Sprint("state ", x.ID, " ", key)] += fmt.Sprint(x.Subscription, x.Consumer, string(value), x.Holds[key], x.Since[key])
			}
		}
		for _, r := range s.Reads {
			for topic, n := range r.Topics {
				state[fmt.Sprint("topic ", r.Cluster, r.Source, topic)] += fmt.Sprint(n)
			}
		}
	}
	for id, ranges := range undelivered {
		state[fmt.Sprint("undelivered ", id)] = string(mustJSON(ranges))
	}
	for key, value := range state {
		lines = append(lines, key+": "+value)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// steppingStore has a snapshot that goes on until it is told to end. It notes what is called.
type steppingStore struct {
	nullStore
	mu    sync.Mutex
	calls []string
	step  chan struct{} // each allows a Continue
}

func (s *steppingStore) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *steppingStore) Append(entries []Entry) ([]Ref, error) {
	s.note("append")
	return s.nullStore.Append(entries)
}

func (s *steppingStore) Continue() (bool, error) {
	s.note("continue")
	_, more := <-s.step
	return more, nil
}

// TestGroupsGoBetweenPartsOfASnapshot: what is to be written while a snapshot goes on waits for
// one part of it, and a snapshot goes on while there is nothing else to write.
func TestGroupsGoBetweenPartsOfASnapshot(t *testing.T) {
	store := &steppingStore{step: make(chan struct{})}
	q, err := Open(Config{MemoryRecords: 1000, MemoryBytes: 1 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: time.Hour,
		LeaseDuration: time.Minute, Subscriptions: []SubscriptionConfig{all("a")}}, func(StoreOptions) (Store, error) { return store, nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- q.Run(ctx) }()
	for range 10 { // nothing to write
		store.step <- struct{}{}
	}
	for i := range 5 {
		paused := make(chan error, 1)
		go func() { paused <- q.Pause(ctx, "a", i%2 == 0) }()
		for waits := true; waits; { // one Continue may go on, or two when this came too late for the one
			select {
			case err := <-paused:
				if waits = false; err != nil {
					t.Fatal(err)
				}
			default:
				q.mu.Lock()
				waiting := len(q.changes) > 0
				q.mu.Unlock()
				if waiting {
					store.note("waiting")
					store.step <- struct{}{}
				}
			}
		}
	}
	close(store.step)
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	since := 0 // calls of Continue while a change waited
	for _, call := range store.calls {
		switch call {
		case "waiting":
			since++
		case "append":
			since = 0
		}
		if since > 2 {
			t.Fatalf("a change waited for %d parts: %q", since, store.calls)
		}
	}
}

// TestSnapshotOfOnePart: one part is what versions that know of none have written and read, and
// nothing in it is there twice.
func TestSnapshotOfOnePart(t *testing.T) {
	h := newHarness(t, all("a"), all("b"))
	for i := range int64(20) {
		h.append("t", i, i+1)
	}
	h.ack(h.session("a", false, 1<<20), 1, nil, StateChange{Key: "k", Value: []byte("v"), HoldsMs: 7}, StateChange{Key: "l", Value: []byte("w")})
	h.write()
	parts := partsOf(h.q.snapshot())
	if len(parts) != 1 {
		t.Fatalf("%d parts", len(parts))
	}
	var s snapshot
	if err := json.Unmarshal(parts[0], &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Subscriptions) != 2 || len(s.Partitions) != 1 || len(s.Sessions) != 1 || len(s.Partitions[0].Settled.restored) != 2 || len(s.Sessions[0].State) != 2 || s.More != 0 || s.Sessions[0].Holds["k"] != 7 {
		t.Errorf("%s", parts[0])
	}
}

// TestSnapshotStaysWhatItWas: whatever changes while it is made, its parts say what was when it
// was begun, and are not large.
func TestSnapshotStaysWhatItWas(t *testing.T) {
	h := newHarness(t, all("a"), all("b"), SubscriptionConfig{Name: "c", Topics: []string{"t1*"}})
	h.partBytes = 2000
	h.reopen()
	const topics = 50
	for i := range topics {
		h.append(fmt.Sprint("t", i), 0, 5)
		h.append(fmt.Sprint("t", i), 5, 10)
	}
	s := h.session("a", false, 1<<20)
	leases := leasesOf(drainAll(s))
	var put []StateChange
	for i := range 100 {
		put = append(put, StateChange{Key: fmt.Sprint("key", i), Value: []byte(fmt.Sprint("value", i)), HoldsMs: int64(i)})
	}
	h.ack(s, 1, leases[:topics/2], put...)
	h.write()
	want := contentOf(partsOf(h.q.snapshot()))
	making := h.q.snapshot()
	var parts [][]byte
	next := func() {
		if part := making.Next(); part != nil {
			parts = append(parts, part)
		}
	}
	next()
	h.append("new", 0, 10) // what comes after is not in it
	h.ack(s, 2, leases[topics/2:], StateChange{Key: "key3"}, StateChange{Key: "key4", Value: []byte("other")}, StateChange{Key: "new", Value: []byte("v")})
	h.write()
	next()
	h.want("c", "no*")
	if err := h.manage(func() error { return h.q.Seek(t.Context(), "b", Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	next()
	if err := h.manage(func() error { return h.q.Subscribe(t.Context(), all("d"), Earliest, nil) }); err != nil {
		t.Fatal(err)
	}
	next()
	heir := h.session("a", false, 1)
	s.Close()
	h.write()
	h.ack(heir, 1, nil, put[50:]...)
	h.write()
	for part := making.Next(); part != nil; part = making.Next() {
		parts = append(parts, part)
	}
	if got := contentOf(parts); got != want {
		t.Errorf("it says\n%s\nbut was\n%s", got, want)
	}
	if len(parts) < 8 {
		t.Errorf("%d parts", len(parts))
	}
	if h.q.snapshotting != nil {
		t.Error("what changes is still kept")
	}
}
