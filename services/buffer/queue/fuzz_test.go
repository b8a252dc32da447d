package queue

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

// fuzzer reads choices from the bytes of a fuzz input.
type fuzzer struct{ data []byte }

func (f *fuzzer) more() bool { return len(f.data) > 0 }

func (f *fuzzer) byte() byte {
	if len(f.data) == 0 {
		return 0
	}
	b := f.data[0]
	f.data = f.data[1:]
	return b
}

// number is mostly small, and sometimes anything.
func (f *fuzzer) number() int64 {
	b := f.byte()
	if b < 250 {
		return int64(b) - 5
	}
	var raw [8]byte
	copy(raw[:], f.data)
	f.data = f.data[min(8, len(f.data)):]
	return int64(binary.LittleEndian.Uint64(raw[:]))
}

// FuzzSession plays a delivery and an ingest that send anything: acks of leases of others, twice,
// or of none; ranges outside, backwards, huge; credit below zero; state that is too large. What
// is refused leaves the ledger as it was, and the audit accounts for everything after each step.
func FuzzSession(f *testing.F) {
	f.Add([]byte{0, 10, 20, 3, 100, 1, 1, 6, 0, 0, 7})
	f.Add([]byte{0, 10, 20, 0, 20, 40, 3, 200, 1, 2, 6, 0, 6, 4, 1, 8, 3, 100, 1, 3, 1, 7, 9})
	f.Add([]byte{5, 5, 30, 0, 30, 60, 3, 255, 1, 1, 8, 6, 3, 100, 6, 2, 2, 9, 5, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := &fuzzer{data[:min(len(data), 400)]}
		h := newHarness(t, all("s"), SubscriptionConfig{Name: "d", Topics: []string{"*"}, OnFull: Defer, Limit: 60}, SubscriptionConfig{Name: "x", Topics: []string{"*"}, OnFull: DropOldest, Limit: 60, Required: true})
		sessions := []*Session{h.session("s", in.byte()%2 == 0, 1000), h.session("d", true, 50)}
		for in.more() {
			s := sessions[int(in.byte())%len(sessions)]
			before := h.fingerprint()
			if refused := fuzzStep(h, s, in); refused && h.fingerprint() != before {
				t.Fatalf("what was refused had effects: %s, was %s", h.fingerprint(), before)
			}
			if !s.live {
				sessions = append(sessions, h.session("s", true, 1000))
			}
			h.checkAudit()
		}
	})
}

// fuzzStep does one thing, and says whether it was refused as invalid.
func fuzzStep(h *harness, s *Session, in *fuzzer) (refused bool) {
	var err error
	switch in.byte() % 11 {
	case 0:
		first := in.number()
		b := testBatch("t", first, first+in.number()%100)
		b.Records = int32(max(b.Len(), 0))
		if s := h.q.Stats(); s.MemoryRecords+int64(b.Records) > h.cfg.MemoryRecords {
			return false // it would wait
		}
		_, err = h.q.Append(h.t.Context(), b, uint64(in.byte()%3))
	case 1:
		err = s.AddCredit(in.number())
	case 2:
		err = h.q.Settle(testPartition("t"), Range{in.number(), in.number()}, Outcome(in.byte()%8), "", uint64(in.byte()%3))
	case 3, 4:
		err = s.Ack(fuzzAck(in))
	case 5:
		s.Nack(uint64(in.byte()), time.Duration(in.number()), "")
	case 6:
		s.Extend([]uint64{uint64(in.byte()), uint64(in.byte())})
	case 7:
		drain(s)
	case 8:
		h.write()
	case 9:
		h.pass(time.Duration(in.byte()) * time.Second / 4)
	case 10:
		if in.byte()%4 == 0 {
			s.Close()
		} else {
			s.Damaged(uint64(in.byte()), ErrDamaged)
		}
	}
	return errors.Is(err, ErrInvalid) || errors.Is(err, ErrGap)
}

func fuzzAck(in *fuzzer) Ack {
	a := Ack{ID: uint64(in.byte())}
	for range in.byte() % 4 {
		l := AckedLease{ID: uint64(in.byte())}
		for range in.byte() % 3 {
			l.Filtered = append(l.Filtered, Range{in.number(), in.number()})
		}
		for range in.byte() % 3 {
			l.DeadLetters = append(l.DeadLetters, DeadLetter{Offset: in.number(), Next: in.number(), Reason: "fuzz"})
		}
		for range in.byte() % 3 {
			l.Only = append(l.Only, Range{in.number(), in.number()})
		}
		a.Leases = append(a.Leases, l)
	}
	for range in.byte() % 3 {
		a.State = append(a.State, StateChange{Key: string(make([]byte, in.byte())), Value: make([]byte, int(in.byte())<<9)})
	}
	return a
}

// fingerprint is what of the queue a refusal must not change.
func (h *harness) fingerprint() string {
	h.q.mu.Lock()
	defer h.q.mu.Unlock()
	return string(mustJSON(map[string]any{"pending": h.q.pendingRecords, "memory": h.q.memoryBytes, "changes": len(h.q.changes),
		"partitions": len(h.q.partitions), "sessions": len(h.q.sessions)})) + string(mustJSON(h.q.subs[0].pendingRecords))
}

// FuzzRecovery opens a queue on entries with any content: an error is fine, a panic is not, and
// what opens accounts for every offset.
func FuzzRecovery(f *testing.F) {
	h := newHarness(f, all("s"))
	h.append("t", 0, 10)
	h.append("t", 10, 30)
	h.pass(2 * time.Second)
	h.write()
	for _, e := range h.store.entries {
		f.Add(byte(e.Kind), e.Meta, byte(e.Kind), e.Meta)
	}
	f.Add(byte(2), []byte(`{"subscribe":{"id":3,"config":{"name":"n","topics":["*"]},"starts":[{"part":{"c":"k","t":"t","p":0},"at":5}]}}`), byte(2), []byte(`{"sub":1,"seek":[{"part":{"c":"k","t":"t","p":0},"at":-5}]}`))
	f.Fuzz(func(t *testing.T, kind1 byte, meta1 []byte, kind2 byte, meta2 []byte) {
		store := newFakeStore()
		store.entries = append(store.entries,
			storedEntry{Recovered: Recovered{EntryKind(kind1%4 + 1), meta1, Ref{Group: 1, Length: 4}}, payload: make([]byte, 4)},
			storedEntry{Recovered: Recovered{EntryKind(kind2%4 + 1), meta2, Ref{Group: 2, Length: 4}}, payload: make([]byte, 4)})
		cfg := h.cfg
		q, err := Open(cfg, store.open)
		if err != nil {
			return
		}
		if _, err := q.Audit(""); err != nil {
			t.Fatal(err)
		}
	})
}
