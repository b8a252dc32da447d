package queue

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
)

func TestLedgerID(t *testing.T) {
	h := newHarness(t, all("a"))
	id := h.q.LedgerID()
	if len(id) < 20 {
		t.Fatalf("id of a new queue: %q, want one that cannot repeat", id)
	}
	if other := newHarness(t, all("a")).q.LedgerID(); other == id {
		t.Errorf("two queues have the id %q", id)
	}
	for range 3 { // with the name in a change, in a snapshot, and in a snapshot that replaced it
		h.reopen()
		if got := h.q.LedgerID(); got != id {
			t.Errorf("id after a restart: %q, want %q", got, id)
		}
	}
	h.store = newFakeStore()
	h.reopen()
	if got := h.q.LedgerID(); got == id || got == "" {
		t.Errorf("id of new data in the place of the old: %q", got)
	}
}

// TestLedgerIDIsDurableBeforeItIsTold opens a queue and kills it before it has written anything
// else.
func TestLedgerIDIsDurableBeforeItIsTold(t *testing.T) {
	h := newHarness(t, all("a"))
	h.store = newFakeStore()
	q, err := Open(h.cfg, h.store.open)
	if err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if got := h.q.LedgerID(); got != q.LedgerID() {
		t.Errorf("id after a crash: %q, before it: %q", got, q.LedgerID())
	}
	h.store = newFakeStore()
	h.store.fail = errors.New("no disk")
	if _, err := Open(h.cfg, h.store.open); err == nil {
		t.Error("a queue opened whose id could not be written")
	}
}

func TestLedgerIDOfOldData(t *testing.T) {
	h := newHarness(t, all("a"))
	h.append("x", 0, 10)
	h.pass(h.cfg.SpillAfter)
	h.write()
	for i := range h.store.entries { // as the version before wrote them
		e := &h.store.entries[i]
		var m map[string]json.RawMessage
		if e.Kind == BatchEntry || !bytes.Contains(e.Meta, []byte(`"ledger"`)) {
			continue
		}
		if err := json.Unmarshal(e.Meta, &m); err != nil {
			t.Fatal(err)
		}
		delete(m, "ledger")
		e.Meta = mustJSON(m)
	}
	h.reopen()
	id := h.q.LedgerID()
	h.reopen()
	if got := h.q.LedgerID(); got != id || id == "" {
		t.Errorf("data of the version before has the id %q at its first open and %q at its second", id, got)
	}
	if got := h.assigned("x"); got.Resume != 10 {
		t.Errorf("resume at %d, want 10", got.Resume)
	}
}
