package faultstore_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/faultstore"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness opens memory stores behind the same faults.
type harness struct {
	memory *memstore.Memory
	faults faultstore.Faults
}

func (h *harness) Open(opts queue.StoreOptions) (queue.Store, error) {
	s, err := h.memory.Reopen(opts)
	if err != nil {
		return nil, err
	}
	return h.faults.Wrap(s), nil
}

func (h *harness) Crash(queue.Store)  {}
func (h *harness) Settle(queue.Store) {}

// TestConformance: without faults in the script, the wrapped store behaves like the one inside.
func TestConformance(t *testing.T) {
	storetest.Run(t, func(_ *testing.T, segmentBytes int64) storetest.Harness {
		h := &harness{memory: memstore.New()}
		h.memory.SegmentBytes = segmentBytes
		return h
	})
}

// open opens what is in the memory and returns the metas of its batches.
func (h *harness) open(t *testing.T) (s queue.Store, batches []string) {
	t.Helper()
	s, err := h.Open(queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			if r.Kind == queue.BatchEntry {
				batches = append(batches, string(r.Meta))
			}
			return nil
		},
		Snapshot: func() queue.Snapshot { return whole([]byte{}) },
		Damage:   func(string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, batches
}

func batch(meta string) []queue.Entry {
	return []queue.Entry{{Kind: queue.BatchEntry, Meta: []byte(meta), Payload: []byte("payload of " + meta)}}
}

func TestFailedAppends(t *testing.T) {
	h := &harness{memory: memstore.New()}
	s, _ := h.open(t)
	broken := errors.New("broken")
	h.faults.FailAppend(2, faultstore.Before, broken)
	h.faults.FailAppend(3, faultstore.After, broken)
	for i, meta := range []string{"first", "not there", "there although it failed", "last"} {
		_, err := s.Append(batch(meta))
		if failed := i == 1 || i == 2; failed != errors.Is(err, broken) || !failed && err != nil {
			t.Errorf("append %d: %v", i+1, err)
		}
	}
	_, got := h.open(t)
	if len(got) != 3 || got[0] != "first" || got[1] != "there although it failed" || got[2] != "last" {
		t.Errorf("recovered %q", got)
	}
}

func TestCorruptRead(t *testing.T) {
	h := &harness{memory: memstore.New()}
	s, _ := h.open(t)
	refs, err := s.Append(append(batch("a"), batch("b")...))
	if err != nil {
		t.Fatal(err)
	}
	h.faults.CorruptRead(refs[0])
	if _, err := s.Read(refs[0]); !errors.Is(err, queue.ErrDamaged) {
		t.Errorf("read of a corrupt batch: got %v, want ErrDamaged", err)
	}
	if p, err := s.Read(refs[1]); err != nil || string(p) != "payload of b" {
		t.Errorf("read of the other batch: %q, %v", p, err)
	}
}

func TestBlocks(t *testing.T) {
	h := &harness{memory: memstore.New()}
	s, _ := h.open(t)
	refs, err := s.Append(batch("a"))
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]struct {
		block *faultstore.Block
		run   func() error
	}{
		"append": {h.faults.BlockAppend(), func() error { _, err := s.Append(batch("b")); return err }},
		"read":   {h.faults.BlockRead(), func() error { _, err := s.Read(refs[0]); return err }},
	} {
		done := make(chan error, 1)
		go func() { done <- call.run() }()
		<-call.block.Entered()
		select {
		case <-done:
			t.Errorf("%s returned although it is blocked", name)
		default:
		}
		call.block.Release()
		call.block.Release() // a second time does nothing
		if err := <-done; err != nil {
			t.Errorf("%s after its block: %v", name, err)
		}
		if err := call.run(); err != nil {
			t.Errorf("later %s: %v", name, err)
		}
	}
}

func whole(b []byte) queue.Snapshot {
	s := queue.WholeSnapshot(b)
	return &s
}
