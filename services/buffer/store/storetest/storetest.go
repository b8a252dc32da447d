// Package storetest is what every queue.Store must do, as tests.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// Harness is one place where stores are opened, one after the other.
type Harness interface {
	// Open opens what the stores before have left. It closes the store when the test ends.
	Open(opts queue.StoreOptions) (queue.Store, error)
	// Crash ends an open store as SIGKILL would, without Close.
	Crash(queue.Store)
	// Settle waits until the store has given back the space of what was released.
	Settle(queue.Store)
}

// SegmentBytes is how large segments should about be, except for Large.
const SegmentBytes = 256 << 10

// Run tests the stores of new harnesses. segmentBytes is where the stores should begin a new
// segment, more or less.
func Run(t *testing.T, newHarness func(t *testing.T, segmentBytes int64) Harness) {
	tests := []struct {
		name         string
		segmentBytes int64
		run          func(*testing.T, *bench)
	}{
		{"an empty store has nothing", SegmentBytes, testEmpty},
		{"what was appended is read and recovered", SegmentBytes, testRoundTrip},
		{"empty metas and payloads", SegmentBytes, testEmptyBytes},
		{"slices of the caller are not kept", SegmentBytes, testNoAliasing},
		{"what cannot be stored is refused", SegmentBytes, testRefused},
		{"a group that begins a segment has a snapshot in front", SegmentBytes, testSnapshotOrder},
		{"older batches come before the snapshot", SegmentBytes, testOlderBatches},
		{"crash and reopen again and again", SegmentBytes, testCrashes},
		{"released segments give space back", SegmentBytes, testRelease},
		{"a few pending batches do not hold their segments", SegmentBytes, testSparse},
		{"changes alone do not pile up", SegmentBytes, testChangesOnly},
		{"release twice, or something unknown", SegmentBytes, testReleaseTwice},
		{"an error of Recover fails Open", SegmentBytes, testRecoverError},
		{"a payload of 20 MiB", 64 << 20, testLarge},
		{"10,000 entries in a group", 16 << 20, testManyEntries},
		{"readers, releases and a writer at once", SegmentBytes, testConcurrent},
		{"closed", SegmentBytes, testClosed},
		{"a snapshot in parts", SegmentBytes, testParts},
		{"segments go when snapshots in parts are whole", SegmentBytes, testPartsGiveSpaceBack},
		{"a snapshot that is not finished", SegmentBytes, testPartsAbandoned},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, &bench{t: t, h: newHarness(t, test.segmentBytes)})
		})
	}
}

// bench is a harness with the queue's side of it: snapshots are numbered, and everything
// recovered is kept.
type bench struct {
	t *testing.T
	h Harness
	s queue.Store

	mu        sync.Mutex
	snapshots int // made by all stores so far
	parts     int // that each has; 0 is 1
	abandoned int
	recovered []queue.Recovered
}

func (b *bench) options() queue.StoreOptions {
	return queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			b.recovered = append(b.recovered, r)
			return nil
		},
		Snapshot: func() queue.Snapshot {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.snapshots++
			if b.parts > 1 {
				return &partial{b: b, number: b.snapshots, left: b.parts}
			}
			whole := queue.WholeSnapshot(fmt.Appendf(nil, "snapshot %d", b.snapshots))
			return &whole
		},
		Damage: func(d string) { b.t.Errorf("damage reported: %s", d) },
	}
}

func (b *bench) open() {
	b.t.Helper()
	b.recovered = nil
	s, err := b.h.Open(b.options())
	if err != nil {
		b.t.Fatalf("open: %v", err)
	}
	b.s = s
}

func (b *bench) reopen() {
	b.t.Helper()
	if err := b.s.Close(); err != nil {
		b.t.Fatalf("close: %v", err)
	}
	b.open()
}

func (b *bench) crash() {
	b.t.Helper()
	b.h.Crash(b.s)
	b.open()
}

func (b *bench) append(entries ...queue.Entry) []queue.Ref {
	b.t.Helper()
	refs, err := b.s.Append(entries)
	if err != nil {
		b.t.Fatalf("append: %v", err)
	}
	if len(refs) != len(entries) {
		b.t.Fatalf("append of %d entries returned %d refs", len(entries), len(refs))
	}
	return refs
}

func (b *bench) wantPayload(ref queue.Ref, want []byte) {
	b.t.Helper()
	got, err := b.s.Read(ref)
	if err != nil {
		b.t.Fatalf("read %+v: %v", ref, err)
	}
	if !bytes.Equal(got, want) {
		b.t.Fatalf("read %+v: got %d bytes that are not the %d appended", ref, len(got), len(want))
	}
}

// metas is what was recovered, in order.
func (b *bench) metas() []string {
	metas := make([]string, len(b.recovered))
	for i, r := range b.recovered {
		metas[i] = string(r.Meta)
	}
	return metas
}

func (b *bench) wantMetas(want ...string) {
	b.t.Helper()
	if got := b.metas(); !slices.Equal(got, want) {
		b.t.Fatalf("recovered %q, want %q", got, want)
	}
}

func batch(meta string, payload []byte) queue.Entry {
	return queue.Entry{Kind: queue.BatchEntry, Meta: []byte(meta), Payload: payload}
}

func change(meta string) queue.Entry {
	return queue.Entry{Kind: queue.ChangeEntry, Meta: []byte(meta)}
}

// noise is n bytes that no compression or luck makes equal to others.
func noise(seed, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1}).Read(b)
	return b
}

func testEmpty(t *testing.T, b *bench) {
	b.open()
	b.wantMetas()
	if _, err := b.s.Read(queue.Ref{}); err == nil {
		t.Error("read of the zero ref: no error")
	}
	if _, err := b.s.Read(queue.Ref{Group: 1, Length: 5}); err == nil || errors.Is(err, queue.ErrDamaged) {
		t.Errorf("read of what was never there: got %v, want an error that is not ErrDamaged", err)
	}
	b.reopen()
	b.crash()
	b.wantMetas()
	if b.snapshots != 0 {
		t.Errorf("%d snapshots were taken without an Append", b.snapshots)
	}
}

func testRoundTrip(t *testing.T, b *bench) {
	b.open()
	one, two, three := noise(1, 1000), noise(2, 5000), noise(3, 300)
	refs := b.append(batch("b1", one), change("c1"), batch("b2", two))
	if refs[1] != (queue.Ref{}) {
		t.Errorf("a change has ref %+v, want none", refs[1])
	}
	if refs[0].Group < 1 || refs[0].Group != refs[2].Group || refs[0].Length != 1000 || refs[2].Length != 5000 {
		t.Errorf("refs %+v", refs)
	}
	refs = append(refs, b.append(batch("b3", three))...)
	if refs[3].Group <= refs[0].Group {
		t.Errorf("group %d comes after group %d", refs[3].Group, refs[0].Group)
	}
	for range 2 {
		b.wantPayload(refs[0], one)
		b.wantPayload(refs[3], three)
		b.wantPayload(refs[2], two)
		wrong := refs[0]
		wrong.Length++
		if _, err := b.s.Read(wrong); err == nil {
			t.Error("read with a wrong length: no error")
		}
		b.reopen()
		b.wantMetas("snapshot 1", "b1", "c1", "b2", "b3")
		for i, want := range map[int]queue.Ref{1: refs[0], 3: refs[2], 4: refs[3], 2: {}, 0: {}} {
			if got := b.recovered[i].Ref; got != want {
				t.Errorf("recovered entry %d has ref %+v, want %+v", i, got, want)
			}
		}
		kinds := []queue.EntryKind{queue.SnapshotEntry, queue.BatchEntry, queue.ChangeEntry, queue.BatchEntry, queue.BatchEntry}
		for i, want := range kinds {
			if got := b.recovered[i].Kind; got != want {
				t.Errorf("recovered entry %d has kind %d, want %d", i, got, want)
			}
		}
	}
}

func testEmptyBytes(t *testing.T, b *bench) {
	b.open()
	refs := b.append(batch("", nil), batch("", nil), batch("", []byte("x")), batch("m", nil), change(""))
	if refs[0] == refs[1] || refs[1] == refs[2] {
		t.Errorf("refs are not different: %+v", refs)
	}
	for range 2 {
		b.wantPayload(refs[0], nil)
		b.wantPayload(refs[1], nil)
		b.wantPayload(refs[2], []byte("x"))
		b.wantPayload(refs[3], nil)
		b.reopen()
		b.wantMetas("snapshot 1", "", "", "", "m", "")
	}
}

func testNoAliasing(t *testing.T, b *bench) {
	b.open()
	meta, payload := []byte("meta"), []byte("payload")
	entries := []queue.Entry{{Kind: queue.BatchEntry, Meta: meta, Payload: payload}}
	refs := b.append(entries...)
	copy(meta, "XXXX")
	copy(payload, "XXXXXXX")
	entries[0] = queue.Entry{}
	b.wantPayload(refs[0], []byte("payload"))
	b.reopen()
	b.wantMetas("snapshot 1", "meta")
	b.wantPayload(refs[0], []byte("payload"))
}

func testRefused(t *testing.T, b *bench) {
	b.open()
	for _, e := range []queue.Entry{
		{Kind: queue.SnapshotEntry, Meta: []byte("mine")},
		{Meta: []byte("no kind")},
		{Kind: queue.ChangeEntry, Payload: []byte("changes have none")},
	} {
		if _, err := b.s.Append([]queue.Entry{e}); err == nil {
			t.Errorf("append of %+v: no error", e)
		}
	}
	b.reopen()
	b.wantMetas()
}

func testSnapshotOrder(t *testing.T, b *bench) {
	b.open()
	b.append(change("c1"))
	b.append(change("c2"))
	b.reopen()
	b.wantMetas("snapshot 1", "c1", "c2")
	b.append(change("c3"))
	b.append(change("c4"))
	b.crash()
	b.wantMetas("snapshot 2", "c3", "c4")
	before := b.snapshots
	// Two and a half segments; more for a store whose own goroutine ends a snapshot before the
	// next one begins, on a machine that does not let it.
	for i := 0; i < 10 || i < 200 && b.snapshots < before+2; i++ {
		b.append(batch(fmt.Sprintf("b%d", i), noise(i, SegmentBytes/4)))
		if i >= 10 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if b.snapshots < before+2 {
		t.Errorf("%d snapshots were taken in fifty segments", b.snapshots-before)
	}
}

func testOlderBatches(t *testing.T, b *bench) {
	b.open()
	b.append(batch("b1", noise(1, 100)), change("c1"))
	b.crash()
	b.append(change("c2"), batch("b2", noise(2, 100)))
	b.crash()
	b.wantMetas("b1", "snapshot 2", "c2", "b2")
	b.append(change("c3"))
	b.reopen()
	b.wantMetas("b1", "b2", "snapshot 3", "c3")
}

func testCrashes(t *testing.T, b *bench) {
	b.open()
	payloads := make(map[string][]byte)
	for round := range 6 {
		for i := range 5 {
			meta := fmt.Sprintf("b%d.%d", round, i)
			payloads[meta] = noise(round*5+i, 10_000*i)
			b.append(batch(meta, payloads[meta]))
		}
		if round%2 == 0 {
			b.crash()
		} else {
			b.reopen()
		}
		found := 0
		last := uint64(0)
		for _, r := range b.recovered {
			if r.Kind != queue.BatchEntry {
				continue
			}
			found++
			if r.Ref.Group < last {
				t.Fatalf("group %d comes after group %d", r.Ref.Group, last)
			}
			last = r.Ref.Group
			b.wantPayload(r.Ref, payloads[string(r.Meta)])
		}
		if found != len(payloads) {
			t.Fatalf("round %d: %d batches recovered, want %d", round, found, len(payloads))
		}
	}
}
