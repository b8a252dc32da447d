package storetest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// partBytes is how large the parts of these snapshots are: larger than what a store writes at
// once.
const partBytes = 3 * SegmentBytes

// partial is a snapshot in parts.
type partial struct {
	b            *bench
	number, left int
}

func (p *partial) part(n int) []byte {
	return append(fmt.Appendf(nil, "snapshot %d, part %d:", p.number, n), noise(n, partBytes)...)
}

// Next implements queue.Snapshot.
func (p *partial) Next() []byte {
	if p.left == 0 {
		return nil
	}
	p.left--
	return p.part(p.b.parts - p.left)
}

// Abandon implements queue.Snapshot.
func (p *partial) Abandon() {
	if p.left > 0 {
		p.b.abandoned++
	}
	p.left = 0
}

// finish writes the rest of a snapshot that goes on, and returns how many calls that took.
func (b *bench) finish() (calls int) {
	b.t.Helper()
	for more := true; more; calls++ {
		var err error
		if more, err = b.s.Continue(); err != nil {
			b.t.Fatalf("continue: %v", err)
		}
	}
	return calls
}

// metasInShort is what was recovered, in order; of a part without its noise.
func (b *bench) metasInShort() []string {
	metas := b.metas()
	for i, m := range metas {
		if len(m) > partBytes {
			metas[i] = m[:len(m)-partBytes]
		}
	}
	return metas
}

func (b *bench) wantInShort(want ...string) {
	b.t.Helper()
	if got := b.metasInShort(); !slices.Equal(got, want) {
		b.t.Fatalf("recovered %q, want %q", got, want)
	}
}

func parts(number, n int) (metas []string) {
	for i := range n {
		metas = append(metas, fmt.Sprintf("snapshot %d, part %d:", number, i+1))
	}
	return metas
}

// testParts: groups go on while a snapshot is written part by part. It counts when all of it is
// there, and until then the one before does.
func testParts(t *testing.T, b *bench) {
	b.parts = 5
	b.open()
	b.append(change("c1"))
	if calls := b.finish(); calls != 1 {
		t.Errorf("after the first group there were %d parts left to write, want none", calls-1)
	}
	want := append(parts(1, 5), "c1")
	n := 1
	add := func() {
		n++
		b.append(change(fmt.Sprint("c", n)))
		want = append(want, fmt.Sprint("c", n))
	}
	fill := func(snapshots int) { // until another snapshot is begun
		for b.snapshots < snapshots {
			n++
			meta := string(noise(n, SegmentBytes/8))
			b.append(change(meta))
			want = append(want, meta)
		}
	}
	fill(2)
	for i := range 3 {
		add()
		more, err := b.s.Continue()
		if i == 0 && err == nil && !more {
			t.Fatal("a snapshot of several parts is written at once")
		}
		if err != nil || !more {
			t.Fatalf("the snapshot goes on: %v, %v", more, err)
		}
	}
	b.crash()
	b.wantInShort(want...)
	if first := b.metasInShort()[0]; first != parts(1, 1)[0] {
		t.Errorf("what was not finished counts: %q", first)
	}

	// What is recovered begins with the snapshot of the first group of this store.
	want = want[:0]
	add()
	want = append(parts(3, 5), want...)
	if b.snapshots != 3 {
		t.Fatalf("%d snapshots", b.snapshots)
	}
	fill(4)
	second := len(want) - 1 // the group that it is in front of
	for more := true; more; {
		add()
		var err error
		if more, err = b.s.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	add()
	want = append(parts(4, 5), want[second:]...)
	b.crash()
	b.wantInShort(want...)
	b.reopen()
	b.wantInShort(want...)
}

// testPartsGiveSpaceBack: segments go once two whole snapshots are newer.
func testPartsGiveSpaceBack(t *testing.T, b *bench) {
	b.parts = 4
	b.open()
	most, calls := int64(0), 0
	for i := range 200 {
		refs := b.append(batch(fmt.Sprint("b", i), noise(i, SegmentBytes/4)))
		b.s.Release(refs)
		more, err := b.s.Continue()
		if err != nil {
			t.Fatal(err)
		}
		if more {
			calls++
		}
		b.h.Settle(b.s)
		most = max(most, b.s.Stats().DiskBytes)
	}
	if calls == 0 {
		t.Fatal("a snapshot of several parts is written at once")
	}
	if limit := int64(16*SegmentBytes + 3*b.parts*partBytes); most > limit {
		t.Errorf("%d bytes were in use at most, want at most %d", most, limit)
	}
	b.crash()
	if first := b.metasInShort()[0]; first == parts(1, 1)[0] {
		t.Error("no snapshot was finished")
	}
}

// testPartsAbandoned: closing the store ends a snapshot that goes on.
func testPartsAbandoned(t *testing.T, b *bench) {
	b.parts = 20
	b.open()
	for i := 0; b.snapshots < 2; i++ {
		b.append(change(string(noise(i, SegmentBytes/8))))
	}
	more, err := b.s.Continue()
	if err != nil {
		t.Fatal(err)
	}
	if !more {
		t.Fatal("a snapshot of several parts is written at once")
	}
	b.reopen()
	if got := len(b.recovered); got < 20 {
		t.Errorf("%d entries recovered", got)
	}
	if more, err := b.s.Continue(); more || err != nil {
		t.Errorf("nothing was begun, and goes on: %v, %v", more, err)
	}
}

var _ queue.Snapshot = (*partial)(nil)
