package queue

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

// fakeStore keeps entries in memory. It outlives the queues that are opened on it.
type fakeStore struct {
	entries  []storedEntry
	groups   uint64
	fresh    bool // the next group begins a segment
	opts     StoreOptions
	released map[Ref]bool
	damaged  map[Ref]bool
	fail     error // of the next Append
	full     fullness

	inParts bool     // each Continue writes a part of a snapshot, and every few groups there is one
	opened  bool     // the first snapshot is there, which is always made at once
	making  Snapshot // the one that goes on
	made    *[][]byte
	want    string // what it is to say
}

// fullness is how much space the disk of a fakeStore has.
type fullness uint8

const (
	hasSpace   fullness = iota
	noBatches           // only for changes
	noAnything          // not even for these
)

type storedEntry struct {
	Recovered
	payload []byte
	parts   *[][]byte // of a snapshot in parts; not finished when the last one is not nil
}

func newFakeStore() *fakeStore {
	return &fakeStore{released: make(map[Ref]bool), damaged: make(map[Ref]bool)}
}

func (f *fakeStore) open(o StoreOptions) (Store, error) {
	f.opts, f.fresh, f.making, f.opened = o, true, nil, false
	last := -1 // newest snapshot
	for i, e := range f.entries {
		if e.Kind == SnapshotEntry && e.finished() {
			last = i
		}
	}
	for i, e := range f.entries {
		if e.parts != nil {
			for _, part := range *e.parts {
				if i == last && part != nil {
					if err := o.Recover(Recovered{Kind: SnapshotEntry, Meta: part}); err != nil {
						return nil, err
					}
				}
			}
			continue
		}
		if (e.Kind == BatchEntry && !f.released[e.Ref]) || (e.Kind != BatchEntry && i >= last) {
			if err := o.Recover(e.Recovered); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

func (f *fakeStore) Append(entries []Entry) ([]Ref, error) {
	if err := f.fail; err != nil {
		f.fail = nil
		return nil, err
	}
	if f.full == noAnything || f.full == noBatches && slices.ContainsFunc(entries, func(e Entry) bool { return e.Kind == BatchEntry }) {
		return nil, fmt.Errorf("append: %w", ErrNoSpace)
	}
	f.groups++
	if f.inParts && f.making == nil && f.groups%7 == 0 {
		f.fresh = true
	}
	if f.fresh {
		f.begin()
	}
	refs := make([]Ref, len(entries))
	for i, e := range entries {
		refs[i] = Ref{Group: f.groups, Offset: uint32(i), Length: uint32(len(e.Payload))}
		f.entries = append(f.entries, storedEntry{Recovered: Recovered{e.Kind, slices.Clone(e.Meta), refs[i]}, payload: slices.Clone(e.Payload)})
	}
	return refs, nil
}

// begin begins a snapshot. One that is to be whole, and is small, is an entry like others.
func (f *fakeStore) begin() {
	inParts := f.inParts && f.opened
	f.fresh, f.opened = false, true
	if inParts {
		f.want = contentOf(partsOf(f.opts.Snapshot()))
	}
	f.making, f.made = f.opts.Snapshot(), &[][]byte{}
	f.entries = append(f.entries, storedEntry{Recovered: Recovered{Kind: SnapshotEntry}, parts: f.made})
	for more := !inParts; more; {
		more, _ = f.Continue()
	}
	if e := &f.entries[len(f.entries)-1]; !inParts && len(*f.made) == 2 {
		e.Meta, e.parts = (*f.made)[0], nil
	}
}

func (f *fakeStore) Continue() (more bool, err error) {
	if f.making == nil {
		return false, nil
	}
	part := f.making.Next()
	*f.made = append(*f.made, part)
	if part == nil {
		f.making = nil
		if got := contentOf((*f.made)[:len(*f.made)-1]); f.want != "" && got != f.want {
			return false, fmt.Errorf("the snapshot in %d parts says\n%s, but was\n%s", len(*f.made)-1, got, f.want)
		}
		f.want = ""
	}
	return part != nil, nil
}

func (e *storedEntry) finished() bool {
	return e.parts == nil || len(*e.parts) > 0 && (*e.parts)[len(*e.parts)-1] == nil
}

func (f *fakeStore) Read(ref Ref) ([]byte, error) {
	for _, e := range f.entries {
		if e.Kind == BatchEntry && e.Ref == ref && !f.released[ref] {
			if f.damaged[ref] {
				return nil, ErrDamaged
			}
			return e.payload, nil
		}
	}
	return nil, errors.New("released or never stored")
}

func (f *fakeStore) Release(refs []Ref) {
	for _, r := range refs {
		f.released[r] = true
	}
}

func (f *fakeStore) Stats() StoreStats { return StoreStats{DiskBytes: int64(len(f.entries))} }
func (f *fakeStore) Close() error      { return nil }

// harness drives a queue step by step: nothing is written before write is called.
type harness struct {
	t     testing.TB
	cfg   Config
	store *fakeStore
	now   time.Time
	q     *Queue

	holdItems, partBytes int // of the queue; 0 leaves them
}

func newHarness(t testing.TB, subs ...SubscriptionConfig) *harness {
	h := &harness{t: t, store: newFakeStore(), now: time.Unix(1_700_000_000, 0)}
	h.cfg = Config{MemoryRecords: 1000, MemoryBytes: 10_000, DiskRecords: 1 << 40, DiskBytes: 1 << 40, SpillAfter: time.Second,
		LeaseDuration: 10 * time.Second, Subscriptions: subs, Now: func() time.Time { return h.now }, Random: func() float64 { return 0.5 }}
	last := uint64(1_700_000_000)
	h.cfg.SessionID = func() uint64 { last++; return last }
	h.reopen()
	return h
}

// reopen opens the queue on what the store has: a crash of the one before.
func (h *harness) reopen() {
	h.t.Helper()
	q, err := Open(h.cfg, h.store.open)
	if err != nil {
		h.t.Fatalf("open: %v", err)
	}
	h.q = q
	if h.holdItems > 0 {
		q.holdItems = h.holdItems
	}
	if h.partBytes > 0 {
		q.partBytes = h.partBytes
	}
	h.write()
}

func (h *harness) write() {
	h.t.Helper()
	for g := h.q.take(false); g != nil; g = h.q.take(false) {
		refs, err := h.q.store.Append(g.entries)
		if errors.Is(err, ErrNoSpace) {
			h.q.putBack(g, err)
			continue
		}
		if err != nil {
			h.t.Fatalf("append to store: %v", err)
		}
		h.q.commit(g, refs)
		h.q.release()
		if _, err := h.q.store.Continue(); err != nil {
			h.t.Fatalf("continue a snapshot: %v", err)
		}
	}
}

func (h *harness) pass(d time.Duration) {
	h.q.mu.Lock() // others may wait in the queue, and look at the time
	h.now = h.now.Add(d)
	h.q.mu.Unlock()
	h.q.expire()
}

func (h *harness) append(topic string, first, next int64) (known bool) {
	h.t.Helper()
	known, err := h.q.Append(h.t.Context(), testBatch(topic, first, next), 0)
	if err != nil {
		h.t.Fatalf("append %s [%d,%d): %v", topic, first, next, err)
	}
	return known
}

func testBatch(topic string, first, next int64) Batch {
	return Batch{Partition: testPartition(topic), Range: Range{first, next}, Records: int32(next - first), Codec: 1, CRC: 7, Payload: make([]byte, max(next-first, 0))}
}

func testPartition(topic string) Partition { return Partition{Cluster: "k", Topic: topic} }

func (h *harness) session(sub string, ordered bool, credit int64) *Session {
	h.t.Helper()
	s, err := h.q.OpenSession(sub, "test", ordered)
	if err != nil {
		h.t.Fatalf("open session: %v", err)
	}
	if err := s.AddCredit(credit); err != nil {
		h.t.Fatalf("credit: %v", err)
	}
	return s
}

// drain takes the events that are there.
func drain(s *Session) []Event {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.takeEventsLocked()
}

func leasesOf(events []Event) []*Lease {
	var leases []*Lease
	for _, e := range events {
		if e.Lease != nil {
			leases = append(leases, e.Lease)
		}
	}
	return leases
}

func (h *harness) ack(s *Session, id uint64, leases []*Lease, state ...StateChange) {
	h.t.Helper()
	a := Ack{ID: id, State: state}
	for _, l := range leases {
		a.Leases = append(a.Leases, AckedLease{ID: l.ID})
	}
	if err := s.Ack(a); err != nil {
		h.t.Fatalf("ack: %v", err)
	}
}

func (h *harness) assigned(topic string) Assigned {
	h.t.Helper()
	a, err := h.q.Assign(testPartition(topic), false)
	if err != nil {
		h.t.Fatalf("assign: %v", err)
	}
	return a
}

// manage runs one of the queue's methods that wait for a write.
func (h *harness) manage(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the lock may measure the time of a thread's processor
		defer runtime.UnlockOSThread()
		done <- do()
	}()
	for {
		select {
		case err := <-done:
			return err
		case <-h.q.kick:
			h.write()
		}
	}
}

// asked takes the refetches that a watcher was sent.
func asked(w *Watcher) []Refetch {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	refetches := w.refetches
	w.refetches = nil
	return refetches
}

// holes fails when an audit does not account for every offset.
func (h *harness) checkAudit() {
	h.t.Helper()
	accounts, err := h.q.Audit("")
	if err != nil {
		h.t.Fatalf("audit: %v", err)
	}
	for _, a := range accounts {
		sum := a.Pending + a.Holes
		for _, n := range a.Outcomes {
			sum += n
		}
		if a.Holes != 0 || sum != a.Appended-a.Start {
			h.t.Fatalf("audit: %d of %d offsets are accounted for: %+v", sum-a.Holes, a.Appended-a.Start, a)
		}
		at := a.Settled
		for _, r := range a.Ranges {
			if r.First != at {
				h.t.Fatalf("audit: gap at %d: %+v", at, a)
			}
			at = r.Next
		}
		if at != a.Appended && len(a.Ranges) < maxAuditRanges {
			h.t.Fatalf("audit: ends at %d: %+v", at, a)
		}
	}
}

func all(name string) SubscriptionConfig {
	return SubscriptionConfig{Name: name, Topics: []string{"*"}, Required: true}
}

// outcomes is the totals of a subscription in the only partition.
func (h *harness) outcomes(sub string) map[Outcome]int64 {
	h.t.Helper()
	for p := range h.q.Progress(sub, Partition{}) {
		return p.Outcomes
	}
	h.t.Fatalf("%s has no partition", sub)
	return nil
}
