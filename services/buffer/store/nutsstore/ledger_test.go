package nutsstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// largeLedger opens stores whose snapshots are larger than a segment.
type largeLedger struct {
	*harness
	snapshots int
	got       []byte // the snapshot that was recovered
	damage    []string
}

func (l *largeLedger) open() *Store {
	l.t.Helper()
	l.got, l.damage = nil, nil
	s, err := l.harness.open(queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			if r.Kind == queue.SnapshotEntry {
				l.got = r.Meta
			}
			return nil
		},
		Snapshot: func() queue.Snapshot {
			l.snapshots++
			return whole(l.snapshot(l.snapshots))
		},
		Damage: func(d string) { l.damage = append(l.damage, d) },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *largeLedger) snapshot(n int) []byte {
	return append(fmt.Appendf(nil, "snapshot %d ", n), noise(uint64(n), 3<<20)...)
}

func (l *largeLedger) want(n int) {
	l.t.Helper()
	if !bytes.Equal(l.got, l.snapshot(n)) {
		l.t.Fatalf("recovered a snapshot of %d bytes, want number %d", len(l.got), n)
	}
}

func (l *largeLedger) files() []string {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.dir, "*"+ledgerSuffix))
	if err != nil {
		l.t.Fatal(err)
	}
	return files
}

// TestLedgerLargerThanASegment: it is written, recovered, and removed with its segment.
func TestLedgerLargerThanASegment(t *testing.T) {
	l := &largeLedger{harness: newHarness(t, 1<<20)}
	for i := 1; i <= 8; i++ {
		s := l.open()
		if i > 1 {
			l.want(i - 1)
		}
		refs := l.mustAppend(s, change("c"), batch("b", noise(9, 1000)))
		s.Release(refs[1:])
		l.Settle(s)
		l.mustClose(s)
		if len(l.damage) > 0 {
			t.Fatalf("damage: %q", l.damage)
		}
	}
	if n := len(l.files()); n == 0 || n > 2*snapshotsAhead {
		t.Errorf("%d files are left of 8 ledgers", n)
	}
	in := inspect(t, l.harness)
	if in.Damaged() {
		t.Errorf("inspect finds damage: %v %v", in.Damage, in.Files)
	}
	must(t, in.Close())
}

// TestDamagedLedgerFile: the ledger before it counts, it is said, and repaired.
func TestDamagedLedgerFile(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"removed":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 1<<20) },
		"a byte": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 2<<20)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &largeLedger{harness: newHarness(t, 1<<20)}
			for range 2 {
				s := l.open()
				l.mustAppend(s, change("c"))
				l.mustClose(s)
			}
			files := l.files()
			must(t, damage(files[len(files)-1]))
			in := inspect(t, l.harness)
			if !in.Damaged() {
				t.Error("inspect does not find it")
			}
			if _, err := in.Repair(); err != nil {
				t.Fatal(err)
			}
			must(t, in.Close())
			s := l.open()
			l.mustClose(s)
			l.want(1)
			if len(l.damage) > 0 {
				t.Errorf("repaired, and it says %q", l.damage)
			}
		})
		t.Run(name+", not repaired", func(t *testing.T) {
			l := &largeLedger{harness: newHarness(t, 1<<20)}
			for range 2 {
				s := l.open()
				l.mustAppend(s, change("c"))
				l.mustClose(s)
			}
			l.mustClose(l.open()) // seals the last one
			files := l.files()
			must(t, damage(files[len(files)-1]))
			s := l.open()
			l.mustClose(s)
			l.want(1)
			if len(l.damage) != 1 || !strings.Contains(l.damage[0], "ledger file is not readable") {
				t.Errorf("it says %q", l.damage)
			}
		})
	}
}

// TestLedgerOfAnOlderVersion: a queue opens with names that an older version took, of which its
// ledger is larger than a segment, and goes on.
func TestLedgerOfAnOlderVersion(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, err := h.open(queue.StoreOptions{Recover: func(queue.Recovered) error { return nil }, Snapshot: func() queue.Snapshot { return whole([]byte("{}")) }, Damage: func(string) {}})
	must(t, err)
	for i := range 8 {
		meta, err := json.Marshal(map[string]any{"seen": map[string]any{"part": map[string]any{"c": "k", "t": fmt.Sprint(i, strings.Repeat("x", 300_000)), "p": 0}, "first": 0, "reached": 7}})
		must(t, err)
		h.mustAppend(s, queue.Entry{Kind: queue.ChangeEntry, Meta: meta})
	}
	h.mustClose(s)
	cfg := queue.Config{MemoryRecords: 1000, MemoryBytes: 1 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, LeaseDuration: time.Minute,
		Subscriptions: []queue.SubscriptionConfig{{Name: "s", Topics: []string{"*"}, Required: true}}}
	for range 3 {
		q, err := queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) { return h.open(o) })
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- q.Run(ctx) }()
		must(t, q.Pause(ctx, "s", true)) // returns when it is on disk
		if _, err := q.Append(ctx, queue.Batch{Partition: queue.Partition{Cluster: "k", Topic: "t"}, Range: queue.Range{First: 0, Next: 1}, Records: 1}, 0); err != nil {
			t.Fatal(err)
		}
		if a, err := q.Assign(queue.Partition{Cluster: "k", Topic: "t"}, false); err != nil || a.Resume != 1 {
			t.Errorf("assigned %+v, %v", a, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// TestLedgerFileOfVersion1: a directory of a version that wrote the whole file before the group.
func TestLedgerFileOfVersion1(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, change("c1"))
	snapshot := noise(1, 3<<20)
	file := binary.BigEndian.AppendUint32([]byte(ledgerMagic), wholeVersion)
	file = append(binary.BigEndian.AppendUint64(file, 2), snapshot...)
	must(t, os.WriteFile(segmentPath(h.dir, 2, ledgerSuffix), file, 0o644))
	meta := binary.BigEndian.AppendUint64(nil, uint64(len(snapshot)))
	meta = binary.BigEndian.AppendUint32(meta, crc32.Checksum(file, castagnoli))
	s.writing.Lock()
	err := s.write(true, 1<<10, false, func(id int64) error {
		return s.engine.put(ledgerKey, appendGroup(nil, id, s.next, []queue.Entry{{Kind: wholeEntry, Meta: meta}, change("c2")}), true)
	})
	s.writing.Unlock()
	must(t, err)
	h.mustClose(s)

	in := inspect(t, h)
	if in.Damaged() {
		t.Errorf("inspect finds damage: %v %v", in.Damage, in.Files)
	}
	must(t, in.Close())
	s, r := h.mustOpen()
	if got := r.metas(queue.SnapshotEntry); len(got) != 1 || got[0] != string(snapshot) || !slices.Equal(r.metas(queue.ChangeEntry), []string{"c2"}) || len(r.damage) > 0 {
		t.Errorf("recovered %d snapshots and %q; damage %q", len(got), r.metas(queue.ChangeEntry), r.damage)
	}
	h.mustClose(s)
	must(t, os.Truncate(segmentPath(h.dir, 2, ledgerSuffix), 1<<20))
	_, r = h.mustOpen()
	if !slices.Equal(r.metas(queue.ChangeEntry), []string{"c1", "c2"}) || !r.damaged("ledger file is not readable") {
		t.Errorf("recovered %q with a short file; damage %q", r.metas(queue.ChangeEntry), r.damage)
	}
}

// TestLedgerFileOfALaterVersion: it is not opened, and stays as it is.
func TestLedgerFileOfALaterVersion(t *testing.T) {
	l := &largeLedger{harness: newHarness(t, 1<<20)}
	s := l.open()
	l.mustAppend(s, change("c"))
	l.mustClose(s)
	path := l.files()[0]
	before, err := os.ReadFile(path)
	must(t, err)
	before[11]++
	must(t, os.WriteFile(path, before, 0o644))
	if _, err := l.harness.open(new(recovery).options()); !errors.Is(err, errVersion) || !strings.Contains(err.Error(), "has 3, this program knows 2") {
		t.Errorf("open: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file is another one: %v", err)
	}
}

// TestNoSpaceForALedger: the snapshot is given up, the one before counts, groups go on, and no
// segment is begun for every group.
func TestNoSpaceForALedger(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", fullBytes), "spillway")
	h := &harness{t: t, dir: filepath.Join(dir, "store"), segmentBytes: 1 << 20, reserveBytes: 5 << 19}
	l := &largeLedger{harness: h}
	s := l.open()
	l.mustAppend(s, change("c"))
	filler := fillUp(t, dir)
	n := 0
	for l.snapshots < 2 && n < 200 {
		l.mustAppend(s, change(string(noise(uint64(n), 10<<10))))
		n++
	}
	goesOn := true
	for goesOn {
		var err error
		if goesOn, err = s.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	segments := s.Stats().Segments
	for range 20 {
		l.mustAppend(s, change("c"))
	}
	if now := s.Stats().Segments; now > segments+1 {
		t.Errorf("%d segments were begun for 20 small groups", now-segments)
	}
	must(t, os.Remove(filler))
	l.Crash(s)
	s = l.open()
	l.want(1)
	l.mustClose(s)
	if len(l.damage) > 0 {
		t.Errorf("damage: %q", l.damage)
	}
}
