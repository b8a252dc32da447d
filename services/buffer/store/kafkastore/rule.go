package kafkastore

import (
	"fmt"
)

// verdict is what a frame means to readers.
type verdict int8

const (
	// ignored frames are those of a former owner, and copies that came late.
	ignored verdict = iota
	// counts is a frame of the owner at its place.
	counts
	// fences is a barrier: what former owners write behind it counts for nobody.
	fences
)

// rule decides which frames count. It is the whole protocol between owners, who never talk to each
// other: a frame counts if its epoch is the offset of the last barrier before it, and its number
// is the next in that epoch. The first frame left of a trimmed log counts, and tells the epoch.
//
// Owners rely on it in the same way: one whose frame is answered at another offset than the next
// looks for a barrier between the two, and is no owner any more when there is one.
//
// Nothing here needs producer ids, clocks, or a broker that stores a request once.
type rule struct {
	start  int64 // the first offset of the log
	begun  bool  // there was a barrier or a frame
	epoch  int64
	nonce  uint64
	number uint64         // of the next frame
	nonces map[uint64]int // barriers with it
}

func newRule(start int64) rule { return rule{start: start, nonces: make(map[uint64]int)} }

// next takes in the frame at an offset. Offsets ascend. An error means that the log is not what
// owners wrote: it is damaged, or it is a copy with other offsets.
func (r *rule) next(offset int64, f *frame) (verdict, error) {
	switch {
	case f.kind == barrierFrame:
		r.begun, r.epoch, r.nonce, r.number = true, offset, f.nonce, 0
		r.nonces[f.nonce]++
		return fences, nil
	case f.kind == identityFrame:
		return ignored, nil // read where it has to be
	case f.epoch < 0 || f.epoch >= offset:
		return ignored, fmt.Errorf("%w: the record at offset %d was written in the epoch %d", ErrShifted, offset, f.epoch)
	case !r.begun:
		if offset == r.start && offset > 0 { // trimmed
			r.begun, r.epoch, r.nonce, r.number = true, f.epoch, f.nonce, f.number+1
			r.nonces[f.nonce]++
			return counts, nil
		}
		return ignored, fmt.Errorf("%w: no owner's barrier is before the record at offset %d", ErrGap, offset)
	case f.epoch != r.epoch:
		// An owner whose barrier was stored twice has the offset of either. All copies are here
		// when the one that gave the epoch is.
		if f.nonce == r.nonce && r.nonces[f.nonce] == 1 && f.epoch >= r.start {
			return ignored, fmt.Errorf("%w: the record at offset %d was written in the epoch %d, whose barrier is at offset %d", ErrShifted, offset, f.epoch, r.epoch)
		}
		if f.epoch > r.epoch {
			return ignored, fmt.Errorf("%w: the barrier at offset %d is missing before the record at offset %d", ErrGap, f.epoch, offset)
		}
		return ignored, nil
	case f.nonce != r.nonce:
		return ignored, fmt.Errorf("%w: the record at offset %d is not of the owner whose barrier is at offset %d", ErrShifted, offset, r.epoch)
	case f.number < r.number:
		return ignored, nil
	case f.number > r.number:
		return ignored, fmt.Errorf("%w: record %d of the epoch %d is missing before offset %d", ErrGap, r.number, r.epoch, offset)
	}
	r.number++
	return counts, nil
}
