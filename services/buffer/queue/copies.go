package queue

import (
	"fmt"
	"slices"
)

// Copies of dead letters. What a delivery can never deliver is settled, so that its batch goes
// once all have settled it, and Kafka deletes it some day. So the records that are dead are
// written once more, in the same group as the ack that says so, each run of them as a batch of its
// own, which stays until it is redriven, forgotten, or too old: the newest maxCopies of a
// subscription are kept, of at most maxCopyBytes.
//
// In the store a copy is a batch like others. A version of Spillway that knows no copies releases
// it, or leases it to who has not settled its offsets yet: it has the records of all of them.
const (
	maxCopies    = 10_000
	maxCopyBytes = 64 << 20
	// maxAckCopyBytes bounds the copies that one ack brings, but for one that is larger, and
	// maxAckCopies their number. The other dead letters are listed without their records.
	maxAckCopyBytes = 4 << 20
	maxAckCopies    = 1000
)

// addCopies puts the copies that an ack brings into its change.
func (c *change) addCopies(a *Ack, leases []*lease) error {
	bytes := 0
	for i, l := range leases {
		al := &a.Leases[i]
		for _, b := range al.Copies {
			if !al.dead(b.Range) || b.Records <= 0 || int64(b.Records) > b.Len() {
				return fmt.Errorf("%w ack of lease %d: a copy of %d records in [%d,%d), which are not its dead letters", ErrInvalid, al.ID, b.Records, b.First, b.Next)
			}
			if bytes += len(b.Payload); bytes > maxAckCopyBytes && len(c.copies) > 0 || len(c.copies) == maxAckCopies {
				return nil
			}
			c.copies = append(c.copies, &piece{part: l.progress.part, payload: b.Payload, batch: b.Range, own: b.Range, maxTimestampMs: b.MaxTimestampMs,
				appended: l.piece.appended, size: int32(len(b.Payload)), records: b.Records, crc: b.CRC, codec: int8(b.Codec)})
		}
	}
	return nil
}

// dead says whether all of r is dead letters of the lease, next to each other.
func (al *AckedLease) dead(r Range) bool {
	at := r.First
	for i := range al.DeadLetters {
		if d := al.DeadLetters[i].offsets(); d.First <= at && at < d.Next {
			at = d.Next
		}
	}
	return r.Len() > 0 && at >= r.Next
}

// entries are the copies as they are written.
func (q *Queue) copyEntries(c *change) (entries []Entry) {
	for _, pc := range c.copies {
		m := q.metaOf(pc)
		m.Copy = c.Subscription
		entries = append(entries, Entry{Kind: BatchEntry, Meta: mustJSON(m), Payload: pc.payload})
	}
	return entries
}

// keepCopyLocked keeps a copy that is on disk, and gives up the oldest where there are too many.
func (q *Queue) keepCopyLocked(sub *subscription, pc *piece) {
	pc.payload, pc.stored = nil, true
	sub.copies = append(sub.copies, pc)
	sub.copyBytes += int64(pc.size)
	for len(sub.copies) > maxCopies || sub.copyBytes > maxCopyBytes && len(sub.copies) > 1 {
		q.releaseCopyLocked(sub, sub.copies[0])
		sub.copies = sub.copies[1:]
	}
}

func (q *Queue) releaseCopyLocked(sub *subscription, pc *piece) {
	sub.copyBytes -= int64(pc.size)
	q.settledRefs = append(q.settledRefs, pc.ref)
}

// takeCopiesLocked takes out the copies of dead letters that are redriven or forgotten.
func (q *Queue) takeCopiesLocked(sub *subscription, p Partition, ranges []Interval) (taken []*piece) {
	var dead Set
	for _, v := range ranges {
		if v.Outcome == DeadLettered {
			dead.Add(v.Range)
		}
	}
	if dead.Empty() || len(sub.copies) == 0 {
		return nil
	}
	sub.copies = slices.DeleteFunc(sub.copies, func(pc *piece) bool {
		if pc.part.id != p || len(dead.Within(pc.own)) == 0 {
			return false
		}
		taken = append(taken, pc)
		return true
	})
	for _, pc := range taken {
		sub.copyBytes -= int64(pc.size)
	}
	return taken
}

// holdCopiesLocked holds copies as the batches that are to be delivered again: Kafka is not asked
// for them. Where another batch has some of their offsets, that one is delivered.
func (q *Queue) holdCopiesLocked(copies []*piece) {
	for _, pc := range copies {
		if pc.part.heldFrom(pc.own.First, pc.own.Next) < pc.own.Next {
			q.settledRefs = append(q.settledRefs, pc.ref)
			continue
		}
		pc.appended = q.clock()
		q.holdLocked(pc, true)
		q.letOthersIn(1)
	}
}

// recoverCopies keeps the copies of what is listed as dead letters. The others are batches: of
// what is redriven, or of what nobody needs any more.
func (q *Queue) recoverCopies(r *recovery) {
	type of struct {
		sub  int64
		part Partition
	}
	dead := make(map[of]*Set)
	if len(r.copies) > 0 {
		for _, sub := range q.subs {
			for _, u := range sub.undelivered {
				if u.Outcome != DeadLettered {
					continue
				}
				key := of{sub.id, u.Partition}
				if dead[key] == nil {
					dead[key] = &Set{}
				}
				dead[key].Add(u.Range)
			}
		}
	}
	for _, c := range r.copies {
		listed, p := dead[of{c.sub, c.piece.part.id}], q.partitions[c.piece.part.id]
		if listed == nil || p == nil || listed.Until(c.piece.own.First) < c.piece.own.Next {
			r.pieces = append(r.pieces, c.piece)
			continue
		}
		c.piece.part = p
		q.keepCopyLocked(q.subscriptionByID(c.sub), c.piece)
	}
}

// recoveredCopy is a copy, and whose it is.
type recoveredCopy struct {
	sub   int64
	piece *piece
}

// copyOf is the newest copy of an offset, or nil.
func (s *subscription) copyOf(p Partition, o int64) *piece {
	for _, pc := range slices.Backward(s.copies) {
		if pc.part.id == p && pc.own.First <= o && o < pc.own.Next {
			return pc
		}
	}
	return nil
}

// UndeliveredRecords returns the copy of a dead letter, with the records next to it that were
// settled with it.
func (q *Queue) UndeliveredRecords(subscription string, id Partition, o int64) (*Lease, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, q.noSubscriptionLocked(subscription)
	}
	id, err := q.finderLocked()(id)
	if err != nil {
		return nil, err
	}
	pc := sub.copyOf(id, o)
	if pc == nil {
		return nil, fmt.Errorf("%w of offset %d of %s/%d: Kafka may still have it", ErrNoCopy, o, id.Topic, id.Number)
	}
	return &Lease{Batch: pc.out(), piece: pc}, nil
}

// Batch returns the batch of a lease with its payload, as Load does.
func (s *Session) Batch(id uint64) (Batch, error) {
	s.q.mu.Lock()
	l := s.leaseLocked(id)
	if l == nil {
		s.q.mu.Unlock()
		return Batch{}, fmt.Errorf("lease %d: %w", id, ErrLeaseGone)
	}
	out := &Lease{ID: id, Batch: l.piece.out(), piece: l.piece, lease: l}
	s.q.mu.Unlock()
	err := s.q.Load(out)
	return out.Batch, err
}
