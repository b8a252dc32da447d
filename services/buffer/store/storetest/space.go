package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

func testRelease(t *testing.T, b *bench) {
	b.open()
	const batches = 40 // of a quarter segment
	var refs []queue.Ref
	for i := range batches {
		refs = append(refs, b.append(batch(fmt.Sprintf("b%d", i), noise(i, SegmentBytes/4)))...)
	}
	full := b.s.Stats()
	if full.DiskBytes < batches*SegmentBytes/4 || full.Segments < batches/5 {
		t.Errorf("stats of %d bytes: %+v", batches*SegmentBytes/4, full)
	}
	b.s.Release(refs[1 : batches-1])
	b.h.Settle(b.s)
	if left := b.s.Stats(); left.Segments > 5 || left.DiskBytes > full.DiskBytes/2 {
		t.Errorf("stats after release: %+v, before: %+v", left, full)
	}
	b.wantPayload(refs[0], noise(0, SegmentBytes/4))
	b.wantPayload(refs[batches-1], noise(batches-1, SegmentBytes/4))
	if _, err := b.s.Read(refs[batches/2]); err == nil || errors.Is(err, queue.ErrDamaged) {
		t.Errorf("read of a removed batch: got %v, want an error that is not ErrDamaged", err)
	}
	for range 2 {
		b.reopen() // also: groups that were removed on purpose are not reported as damage
		if got := b.metas(); !slices.Contains(got, "b0") || !slices.Contains(got, fmt.Sprintf("b%d", batches-1)) || slices.Contains(got, fmt.Sprintf("b%d", batches/2)) {
			t.Errorf("recovered %q", got)
		}
		b.append(change("c"))
	}
	b.s.Release(refs)
	b.append(change("c"))
	b.h.Settle(b.s)
	if left := b.s.Stats(); left.DiskBytes > 3*SegmentBytes {
		t.Errorf("stats after everything was released: %+v", left)
	}
	b.crash()
}

func testSparse(t *testing.T, b *bench) {
	b.open()
	const segments, perSegment = 12, 16
	payload := func(i int) []byte { return noise(i, SegmentBytes/perSegment) }
	var kept, released []queue.Ref
	var names []string
	payloads := make(map[queue.Ref][]byte)
	for i := range segments * perSegment {
		name := fmt.Sprintf("b%d", i)
		refs := b.append(batch(name, payload(i)), batch("other", payload(i)), change("c"))
		released = append(released, refs[1])
		if i%perSegment != 3 {
			released = append(released, refs[0])
			continue
		}
		kept, names = append(kept, refs[0]), append(names, name)
		payloads[refs[0]] = payload(i)
	}
	full := b.s.Stats()
	wantKept := func(when string) {
		t.Helper()
		for ref, want := range payloads {
			b.wantPayload(ref, want)
		}
		if left := b.s.Stats(); left.DiskBytes > full.DiskBytes/3 {
			t.Errorf("stats %s: %+v, before the release: %+v", when, left, full)
		}
	}
	wantRecovered := func() {
		t.Helper()
		var got []string
		for _, r := range b.recovered {
			if _, ok := payloads[r.Ref]; ok && r.Kind == queue.BatchEntry {
				got = append(got, string(r.Meta))
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("recovered %q under their old refs, want %q", got, names)
		}
	}
	b.s.Release(released)
	b.h.Settle(b.s)
	wantKept("after the release")
	for _, ref := range released[:perSegment] {
		if _, err := b.s.Read(ref); errors.Is(err, queue.ErrDamaged) {
			t.Errorf("read of a released batch: %v", err)
		}
	}
	b.crash()
	wantRecovered()
	b.s.Release(released) // as the queue does, of those that came back
	b.append(change("c"))
	b.h.Settle(b.s)
	wantKept("after a crash")

	// Once more, now that there is little left: and then all of it.
	b.s.Release(kept[:len(kept)/2])
	for _, ref := range kept[:len(kept)/2] {
		delete(payloads, ref)
	}
	names = names[len(kept)/2:]
	b.h.Settle(b.s)
	b.reopen()
	wantRecovered()
	wantKept("after half of the rest was released")
	b.s.Release(append(released, kept...))
	for range 3 {
		b.append(batch("next", payload(0)))
		b.crash()
		b.s.Release(append(released, kept...))
	}
	b.append(change("c"))
	b.h.Settle(b.s)
	if left := b.s.Stats(); left.DiskBytes > 4*SegmentBytes {
		t.Errorf("stats after everything was released: %+v", left)
	}
}

func testChangesOnly(t *testing.T, b *bench) {
	b.open()
	for i := range 200 {
		b.append(change(fmt.Sprintf("c%d %s", i, noise(i, SegmentBytes/20))))
		if i%20 == 0 { // so that a snapshot beside them is not late on a busy machine
			b.h.Settle(b.s)
		}
	}
	b.h.Settle(b.s)
	if stats := b.s.Stats(); stats.Segments > 4 || stats.DiskBytes > 8*SegmentBytes {
		t.Errorf("stats after ten segments of changes: %+v", stats)
	}
	b.crash()
	// Of 200: a snapshot that is written beside the changes may be a segment of 20 late.
	if n := len(b.recovered); n > 85 || b.recovered[0].Kind != queue.SnapshotEntry {
		t.Errorf("recovered %d entries, the first of kind %d", n, b.recovered[0].Kind)
	}
	// Segments do not pile up over restarts, either.
	for range 10 {
		b.append(change("c"))
		b.crash()
	}
	b.append(change("c"))
	b.h.Settle(b.s)
	if stats := b.s.Stats(); stats.Segments > 4 {
		t.Errorf("stats after ten restarts: %+v", stats)
	}
}

func testReleaseTwice(t *testing.T, b *bench) {
	b.open()
	big := noise(1, SegmentBytes/4)
	kept := b.append(batch("kept", big), batch("released", big))
	b.s.Release(kept[1:])
	b.s.Release(kept[1:])
	b.s.Release([]queue.Ref{{}, {Group: kept[0].Group, Offset: 7}, {Group: 1 << 40}})
	for i := range 12 {
		refs := b.append(batch(fmt.Sprint(i), big))
		b.s.Release(refs)
	}
	b.h.Settle(b.s)
	b.wantPayload(kept[0], big)
	b.crash()
	if !slices.Contains(b.metas(), "kept") {
		t.Errorf("recovered %q, without the batch that was kept", b.metas())
	}
}

func testRecoverError(t *testing.T, b *bench) {
	b.open()
	b.append(change("c1"))
	b.append(change("c2"))
	if err := b.s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	opts, broken := b.options(), errors.New("broken")
	opts.Recover = func(queue.Recovered) error { return broken }
	if _, err := b.h.Open(opts); !errors.Is(err, broken) {
		t.Errorf("open: got %v, want %v", err, broken)
	}
	b.open()
	b.wantMetas("snapshot 1", "c1", "c2")
}

func testLarge(t *testing.T, b *bench) {
	b.open()
	large := noise(1, 20<<20)
	refs := b.append(batch("small", []byte("s")), batch("large", large))
	refs = append(refs, b.append(batch("x", noise(2, 16<<20)), batch("y", noise(3, 16<<20)), batch("z", noise(4, 16<<20)))...)
	for range 2 {
		b.wantPayload(refs[1], large)
		b.wantPayload(refs[0], []byte("s"))
		b.wantPayload(refs[4], noise(4, 16<<20))
		b.crash()
		if got, want := len(b.recovered), 6; got < want {
			t.Errorf("recovered %d entries, want at least %d", got, want)
		}
	}
}

func testManyEntries(t *testing.T, b *bench) {
	b.open()
	const n = 10_000
	entries := make([]queue.Entry, n)
	for i := range entries {
		entries[i] = batch(fmt.Sprintf("meta %d", i), fmt.Appendf(nil, "payload %d", i))
	}
	refs := b.append(entries...)
	for range 2 {
		for i := range refs {
			b.wantPayload(refs[i], entries[i].Payload)
		}
		b.crash()
		if len(b.recovered) != n+1 {
			t.Fatalf("recovered %d entries, want %d", len(b.recovered), n+1)
		}
		for i := range refs {
			if got := b.recovered[i+1]; got.Ref != refs[i] || string(got.Meta) != string(entries[i].Meta) {
				t.Fatalf("entry %d came back as %+v", i, got)
			}
		}
	}
}

func testConcurrent(t *testing.T, b *bench) {
	b.open()
	const groups, readers = 150, 3
	type appended struct {
		ref  queue.Ref
		seed int
	}
	channels := make([]chan appended, readers)
	var wg sync.WaitGroup
	for r := range readers {
		channels[r] = make(chan appended, groups)
		wg.Go(func() {
			var mine []queue.Ref
			for a := range channels[r] {
				got, err := b.s.Read(a.ref)
				if err != nil || string(got) != string(noise(a.seed, 20_000)) {
					t.Errorf("read %+v: %v, or wrong bytes", a.ref, err)
				}
				if mine = append(mine, a.ref); len(mine) == 10 {
					b.s.Release(mine)
					mine = nil
				}
				b.s.Stats()
			}
			b.s.Release(mine)
		})
	}
	for i := range groups {
		var entries []queue.Entry
		for r := range readers {
			entries = append(entries, batch("b", noise(i*readers+r, 20_000)))
		}
		for r, ref := range b.append(entries...) {
			channels[r] <- appended{ref, i*readers + r}
		}
	}
	for _, c := range channels {
		close(c)
	}
	wg.Wait()
	b.append(change("c"))
	b.h.Settle(b.s)
	if stats := b.s.Stats(); stats.DiskBytes > 4*SegmentBytes {
		t.Errorf("stats when all is released: %+v", stats)
	}
	b.reopen()
}

func testClosed(t *testing.T, b *bench) {
	b.open()
	refs := b.append(batch("b", []byte("p")))
	if err := b.s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if _, err := b.s.Append([]queue.Entry{change("c")}); err == nil {
		t.Error("append after close: no error")
	}
	if _, err := b.s.Read(refs[0]); err == nil || errors.Is(err, queue.ErrDamaged) {
		t.Errorf("read after close: got %v, want an error that is not ErrDamaged", err)
	}
	b.s.Release(refs)
	b.s.Stats()
	if err := b.s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}
