package kafkastore

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// large is a ledger as of many partitions and subscriptions.
func large(bytesOf int) []byte { return bytes.Repeat([]byte("ledger, "), bytesOf/8) }

// TestSnapshotsAreWrittenBetweenGroups has a snapshot of many frames, and a queue that goes on
// meanwhile. Wherever the store is killed, the state is that of all groups.
func TestSnapshotsAreWrittenBetweenGroups(t *testing.T) {
	const ledgerBytes = 8 << 20
	f := newFakeShard(t)
	f.cfg.SegmentBytes = 64 << 10
	groups := 0
	opts := noOptions(t)
	opts.Snapshot = func() queue.Snapshot {
		return whole(string(append(fmt.Appendf(nil, "%10d ", groups), large(ledgerBytes)...)))
	}
	s, err := f.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	add := func() {
		t.Helper()
		if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: make([]byte, 64<<10)}}); err != nil {
			t.Fatal(err)
		}
		groups++ // the snapshot in front of it did not have it
	}
	add()
	settle(t, s)
	f.journal.before = func(*fakeLog, []record) (lost, unanswered error) {
		time.Sleep(200 * time.Microsecond)
		return nil, nil
	}
	most := time.Duration(0)
	snapshots, between, inside := 0, 0, false
	for from := int64(0); snapshots < 3; {
		began := time.Now()
		add()
		if _, err := s.Continue(); err != nil { // as the queue does
			t.Fatal(err)
		}
		most = max(most, time.Since(began))
		end, err := f.journal.read(t.Context(), max(from, f.journal.firstOffset()), func(_ int64, r record) error {
			fr, err := parseFrame(r.key, r.value)
			if err != nil || len(r.value) > frameBytes {
				t.Fatalf("a frame of %d bytes, %v", len(r.value), err)
			}
			switch {
			case fr.kind == snapshotFrame && fr.flags&lastFlag != 0:
				snapshots++
				inside = false
			case fr.kind == snapshotFrame:
				inside = true
			case inside:
				between++
			}
			return nil
		})
		if err != nil && f.journal.firstOffset() <= from {
			t.Fatal(err)
		}
		from = max(end, f.journal.firstOffset())
	}
	if between < 10 {
		t.Errorf("%d groups were written between the frames of snapshots", between)
	}
	t.Logf("%d groups, %d of them between the frames of snapshots; the longest took %v", groups, between, most)
	crash(s)

	records := f.journal.records
	found := func(n int) {
		t.Helper()
		have := 0
		opts := noOptions(t)
		opts.Recover = func(r queue.Recovered) error {
			if r.Kind == queue.SnapshotEntry {
				if _, err := fmt.Sscan(string(r.Meta[:10]), &have); err != nil || len(r.Meta) != 11+ledgerBytes {
					t.Errorf("a snapshot of %d bytes: %v", len(r.Meta), err)
				}
				return nil
			}
			have++
			return nil
		}
		s, err := f.Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		crash(s)
		if have != n {
			t.Errorf("%d groups were found, want %d", have, n)
		}
	}
	found(groups)
	// Without the last frames: wherever the writer was killed. What is trimmed is trimmed.
	for cut := len(records) - 1; cut > len(records)*3/4; cut -= 1 + cut/16 {
		n := groups
		for _, r := range records[cut:] {
			if fr, _ := parseFrame(r.key, r.value); fr.kind == groupFrame {
				n--
			}
		}
		f.journal.records = records[:cut:cut]
		found(n)
	}
}

func (l *fakeLog) firstOffset() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// BenchmarkOpen recovers a ledger as of 10,000 partitions and 100 subscriptions, and 100,000
// batches.
func BenchmarkOpen(b *testing.B) {
	t := &testing.T{}
	f := &fakeShard{t: t, journal: &fakeLog{}, payload: &fakeLog{}, cfg: Config{Topics: Topics{Shards: 1}, Log: discard}}
	id := Identity{Life: "l", Shards: 1, Reader: readerVersion}
	if _, err := writeIdentity(b.Context(), f.journal, &id, discard); err != nil {
		b.Fatal(err)
	}
	ledger := string(large(100 << 20))
	opts := queue.StoreOptions{Recover: func(queue.Recovered) error { return nil }, Snapshot: func() queue.Snapshot { return whole(ledger) }, Damage: func(string) {}}
	openStore := func() *Store {
		s, err := open(b.Context(), f.cfg, opts, Identity{}, f.journal, f.payload, nil)
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	s := openStore()
	for range 100 {
		group := make([]queue.Entry, 1000)
		for i := range group {
			group[i] = queue.Entry{Kind: queue.BatchEntry, Meta: make([]byte, 200)}
		}
		if _, err := s.Append(group); err != nil {
			b.Fatal(err)
		}
	}
	crash(s)
	for b.Loop() {
		crash(openStore())
	}
}
