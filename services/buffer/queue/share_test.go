package queue

import (
	"context"
	"errors"
	"testing"
)

// TestAShareShrinks: a queue that is to have less memory writes what it has above that, without
// waiting for spill_after, and takes no more before. With more memory it goes on at once.
func TestAShareShrinks(t *testing.T) {
	h := newHarness(t, all("s"))
	whole := h.cfg.Memory()
	h.append("t", 0, 600)
	less := whole
	less.Records = 300
	if records, bytes := h.q.SetMemory(less); records != 600 || bytes == 0 {
		t.Errorf("%d records of %d bytes are in memory, want 600", records, bytes)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.q.Append(ended, testBatch("t", 600, 700), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("above its share it takes more: %v", err)
	}
	h.write()
	if records, _ := h.q.SetMemory(less); records > 300 {
		t.Errorf("%d records are in memory still", records)
	}
	h.append("t", 600, 700)
	waits := make(chan error, 1)
	go func() {
		_, err := h.q.Append(t.Context(), testBatch("t", 700, 1000), 0)
		waits <- err
	}()
	h.q.SetMemory(whole)
	if err := <-waits; err != nil {
		t.Error(err)
	}
}

// TestOneOversizeBatchAtATime: of two queues that share a window, one at a time takes a batch that
// is larger than its part, and the other waits until that one is written, or its queue is closed.
func TestOneOversizeBatchAtATime(t *testing.T) {
	shared := &Oversize{}
	var two [2]*harness
	for i := range two {
		two[i] = newHarness(t, all("s"))
		two[i].cfg.Oversize, two[i].cfg.MemoryRecords = shared, 50
		two[i].reopen()
	}
	first, second := two[0], two[1]
	waiting := func(h *harness, at int64) <-chan error {
		waits := make(chan error, 1)
		go func() {
			_, err := h.q.Append(t.Context(), testBatch("t", at, at+100), 0)
			waits <- err
		}()
		return waits
	}
	refused := func(h *harness, at int64) {
		t.Helper()
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.q.Append(ended, testBatch("t", at, at+100), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("it takes a second one: %v", err)
		}
	}
	first.append("t", 0, 100)
	refused(second, 0)
	if err := func() error { _, err := second.q.Append(t.Context(), testBatch("u", 0, 50), 0); return err }(); err != nil {
		t.Errorf("what fits: %v", err)
	}
	second.write()
	waits := waiting(second, 0)
	first.write()
	if err := <-waits; err != nil {
		t.Error(err)
	}
	refused(first, 100)
	waits = waiting(first, 100)
	second.q.close(ErrClosed)
	if err := <-waits; err != nil {
		t.Error(err)
	}
}
