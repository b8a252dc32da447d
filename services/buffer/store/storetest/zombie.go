package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A store that another one was opened beside is fenced: its process may live on, after a pause or
// behind a link that was cut, and does not know yet.

// RunTakeover tests the stores of harnesses whose Open takes over from a store that is still open.
func RunTakeover(t *testing.T, newHarness func(t *testing.T, segmentBytes int64) Harness) {
	tests := []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"a store that was taken over fails", testZombie},
		{"groups that were under way count for both or for neither", testBusyZombie},
		{"the snapshot of a store that was taken over is never whole", testZombieSnapshot},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, &bench{t: t, h: newHarness(t, SegmentBytes)})
		})
	}
}

// wantFenced has the store refuse what it is asked to write.
func wantFenced(t *testing.T, zombie queue.Store) {
	t.Helper()
	for i := range 3 {
		if _, err := zombie.Append([]queue.Entry{change("written by nobody"), batch("written by nobody", noise(i, 10))}); err == nil {
			t.Error("a store that was taken over appended a group")
		}
	}
}

// testZombie: the heir goes on with all that was acknowledged, whatever the former store is asked.
func testZombie(t *testing.T, b *bench) {
	b.open()
	payload := noise(1, 1000)
	refs := b.append(batch("b1", payload), change("c1"))
	zombie := b.s
	b.open()
	b.wantMetas("snapshot 1", "b1", "c1")
	wantFenced(t, zombie) // before the heir has written anything
	b.append(change("c2"))
	wantFenced(t, zombie)
	zombie.Release(refs) // it may; the heir still needs them
	b.wantPayload(refs[0], payload)
	b.append(change("c3"))
	if err := zombie.Close(); err != nil {
		t.Errorf("close of a store that was taken over: %v", err)
	}
	b.append(change("c4"))
	b.h.Settle(b.s)
	b.wantPayload(refs[0], payload)
	b.crash()
	b.wantMetas("b1", "snapshot 2", "c2", "c3", "c4")
	b.wantPayload(refs[0], payload)
}

// testBusyZombie: a store is taken over again and again while it appends. What it acknowledged the
// heir has found; what it did not, no later store finds unless the heir did.
func testBusyZombie(t *testing.T, b *bench) {
	b.open()
	var known []string // what the newest store has found or acknowledged
	for round := range 5 {
		busy := b.s
		acknowledged := make(chan []string, 1)
		begun, open := make(chan struct{}), make(chan struct{})
		go func() {
			var metas []string
			begins := sync.OnceFunc(func() { close(begun) })
			defer func() { begins(); acknowledged <- metas }()
			for i := 0; ; i++ {
				select {
				case <-open:
					return
				default:
				}
				meta := fmt.Sprintf("b%d.%d", round, i)
				if _, err := busy.Append([]queue.Entry{batch(meta, noise(i, 100))}); err != nil {
					return
				}
				metas = append(metas, meta)
				if i == 20 {
					begins()
				}
			}
		}()
		<-begun
		b.open()
		close(open)
		var found []string
		for _, r := range b.recovered {
			if r.Kind == queue.BatchEntry {
				found = append(found, string(r.Meta))
			}
		}
		known = append(known, <-acknowledged...)
		if len(found) < len(known) || !slices.Equal(found[:len(known)], known) {
			t.Fatalf("round %d: the heir has not found what was acknowledged: %d batches, want %d", round, len(found), len(known))
		}
		if more := len(found) - len(known); more > 1 {
			t.Fatalf("round %d: the heir found %d batches that nobody was told of; one was under way", round, more)
		}
		known = found
		wantFenced(t, busy)
	}
}

// testZombieSnapshot: parts that a store writes of its snapshot after it was taken over complete
// nothing.
func testZombieSnapshot(t *testing.T, b *bench) {
	b.parts = 5
	b.open()
	b.append(change("c1"))
	b.finish()
	for i := 0; b.snapshots < 2; i++ {
		b.append(change(string(noise(i, SegmentBytes/8))))
	}
	zombie := b.s
	b.open()
	metas := b.metas()
	b.parts = 1
	for range 10 {
		if more, err := zombie.Continue(); err == nil && more {
			t.Fatal("a store that was taken over goes on with its snapshot")
		}
	}
	wantFenced(t, zombie)
	b.crash() // the heir has appended nothing
	if got := b.metas(); !slices.Equal(got, metas) {
		t.Errorf("recovered %d entries, %d before", len(got), len(metas))
	}
	b.append(change("c2"))
	b.reopen()
	b.wantMetas("snapshot 3", "c2")
}
