package nutsstore

import (
	"cmp"
	"slices"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// segment is one data file, and what is known of it.
type segment struct {
	id int64

	// Guarded by Store.mu.
	groups     span   // 0 to 0 when it has none
	snapshot   uint64 // the last group with a readable snapshot, 0 when there is none
	begun      bool   // a snapshot in a file was begun, and may be complete
	sealed     bool   // it has its sidecars
	sealFailed bool   // and is sealed when the store is opened again
	batches    batches
	diskBytes  int64 // except of the active segment
	written    int64 // bytes that this process wrote and synced, when nothing else is in it
	notBelow   int64 // rewriting it did not help when so many bytes were live; 0 when it was not tried

	// reading is held while its files are read, and to remove them.
	reading sync.RWMutex
	removed bool
	moved   []movedGroup // ascending; nil as long as it was not rewritten since the store was opened
}

// batches is the batches of a segment and whether they are released, in 8 bytes each: the group as
// its distance from the first one, the offset of the Ref, and on top one bit that says released.
type batches struct {
	base uint64
	keys []uint64 // ascending without the bit
	// live is how many are not released, and bytes the size of their payloads.
	live  int
	bytes int64
}

const releasedBit = 1 << 63

func (b *batches) key(ref queue.Ref) uint64 {
	return (ref.Group-b.base)<<32&^uint64(releasedBit) | uint64(ref.Offset)
}

// add takes a batch, which must be above all others.
func (b *batches) add(ref queue.Ref) {
	if len(b.keys) == 0 {
		b.base = ref.Group
	}
	b.keys = append(b.keys, b.key(ref))
	b.live++
	b.bytes += int64(ref.Length)
}

// release does nothing when it is not there, or already released.
func (b *batches) release(ref queue.Ref) {
	if i := b.findLive(ref); i >= 0 {
		b.keys[i] |= releasedBit
		b.live--
		b.bytes -= int64(ref.Length)
	}
}

// findLive returns the index of a batch that is not released, or -1.
func (b *batches) findLive(ref queue.Ref) int {
	if ref.Group < b.base {
		return -1
	}
	i, found := slices.BinarySearchFunc(b.keys, b.key(ref), func(a, key uint64) int {
		return cmp.Compare(a&^releasedBit, key)
	})
	if !found || b.keys[i]&releasedBit != 0 {
		return -1
	}
	return i
}

func (b *batches) isLive(ref queue.Ref) bool { return b.findLive(ref) >= 0 }

// liveBut says whether there is a live batch besides those of refs.
func (b *batches) liveBut(refs []queue.Ref) bool {
	n := 0
	for _, ref := range refs {
		if b.isLive(ref) {
			n++
		}
	}
	return n < b.live
}

// dropReleased forgets the released batches.
func (b *batches) dropReleased() {
	b.keys = slices.Clip(slices.DeleteFunc(b.keys, func(k uint64) bool { return k&releasedBit != 0 }))
}

// withBatches returns the numbers of the groups that have a batch: the keys in nutsdb's index.
func (b *batches) withBatches() []uint64 {
	var numbers []uint64
	for _, k := range b.keys {
		n := b.base + k&^releasedBit>>32
		if len(numbers) == 0 || numbers[len(numbers)-1] != n {
			numbers = append(numbers, n)
		}
	}
	return numbers
}
