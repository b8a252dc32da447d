package queue

import (
	"runtime"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// nullStore keeps nothing but counts.
type nullStore struct{ groups uint64 }

func (s *nullStore) Append(entries []Entry) ([]Ref, error) {
	s.groups++
	refs := make([]Ref, len(entries))
	for i, e := range entries {
		refs[i] = Ref{Group: s.groups, Offset: uint32(i), Length: uint32(len(e.Payload))}
	}
	return refs, nil
}

func (s *nullStore) Read(Ref) ([]byte, error) { return nil, ErrDamaged }
func (s *nullStore) Release([]Ref)            {}
func (s *nullStore) Stats() StoreStats        { return StoreStats{} }
func (s *nullStore) Close() error             { return nil }
func (s *nullStore) Continue() (bool, error)  { return false, nil }

// TestBacklogMemory: a backlog on disk costs memory per batch and nothing per record: 100,000,000
// records in batches of 1,000 are 100,000 pieces.
func TestBacklogMemory(t *testing.T) {
	race.Apart(t)
	const batches, records = 100_000, 1000
	now := time.Unix(1_700_000_000, 0)
	q, err := Open(Config{MemoryRecords: 100 * records, MemoryBytes: 1 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, LeaseDuration: time.Minute,
		Subscriptions: []SubscriptionConfig{all("one"), all("two")}, Now: func() time.Time { return now }},
		func(StoreOptions) (Store, error) { return &nullStore{}, nil })
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range int64(batches) {
		b := Batch{Partition: testPartition("t"), Range: Range{i * records, (i + 1) * records}, Records: records, Codec: 1, Payload: make([]byte, 100)}
		b.Partition.Number = int32(i % 4)
		b.Range = Range{i / 4 * records, (i/4 + 1) * records}
		if _, err := q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
		for g := q.take(false); g != nil; g = q.take(false) {
			refs, err := q.store.Append(g.entries)
			if err != nil {
				t.Fatal(err)
			}
			q.commit(g, refs)
		}
	}
	perBatch := float64(heap()-before) / batches
	s := q.Stats()
	t.Logf("%d records of backlog: %.0f bytes of heap per batch of %d", s.PendingRecords, perBatch, records)
	if s.PendingRecords != batches*records || s.MemoryBytes != 0 {
		t.Fatalf("not all of it is on disk: %+v", s)
	}
	if perBatch > 160 {
		t.Errorf("%.0f bytes per batch, want at most 160", perBatch)
	}
	runtime.KeepAlive(q)
}
