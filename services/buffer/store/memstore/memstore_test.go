package memstore_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness has nothing to do for a crash: Reopen kills the store before.
type harness struct{ memory *memstore.Memory }

func newHarness(_ *testing.T, segmentBytes int64) storetest.Harness {
	m := memstore.New()
	m.SegmentBytes = segmentBytes
	return harness{m}
}

func (h harness) Open(opts queue.StoreOptions) (queue.Store, error) { return h.memory.Reopen(opts) }
func (h harness) Crash(queue.Store)                                 {}
func (h harness) Settle(queue.Store)                                {}

func TestConformance(t *testing.T) { storetest.Run(t, newHarness) }

func TestTakeover(t *testing.T) { storetest.RunTakeover(t, newHarness) }

func open(t *testing.T, m *memstore.Memory) (s *memstore.Store, recovered int) {
	t.Helper()
	s, err := m.Reopen(queue.StoreOptions{
		Recover:  func(queue.Recovered) error { recovered++; return nil },
		Snapshot: func() queue.Snapshot { return whole([]byte("snapshot")) },
		Damage:   func(d string) { t.Errorf("damage reported: %s", d) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, recovered
}

func TestReopenedStoreIsDead(t *testing.T) {
	m := memstore.New()
	old, _ := open(t, m)
	refs, err := old.Append([]queue.Entry{{Kind: queue.BatchEntry, Meta: []byte("b"), Payload: []byte("p")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, recovered := open(t, m); recovered != 2 {
		t.Errorf("recovered %d entries, want a snapshot and a batch", recovered)
	}
	if _, err := old.Append([]queue.Entry{{Kind: queue.ChangeEntry}}); err == nil {
		t.Error("append to a store that was opened again: no error")
	}
	if _, err := old.Read(refs[0]); err == nil {
		t.Error("read from a store that was opened again: no error")
	}
	old.Release(refs) // does nothing
	if _, recovered := open(t, m); recovered != 2 {
		t.Errorf("recovered %d entries after the dead store's release, want 2", recovered)
	}
}

func TestWipeLosesEverything(t *testing.T) {
	m := memstore.New()
	s, _ := open(t, m)
	if _, err := s.Append([]queue.Entry{{Kind: queue.BatchEntry, Payload: []byte("p")}}); err != nil {
		t.Fatal(err)
	}
	m.Wipe()
	if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry}}); err == nil {
		t.Error("append to a wiped store: no error")
	}
	if _, recovered := open(t, m); recovered != 0 {
		t.Errorf("recovered %d entries after a wipe", recovered)
	}
}

func whole(b []byte) queue.Snapshot {
	s := queue.WholeSnapshot(b)
	return &s
}
