package kafkastore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// recovered is what a journal says: the state at its end.
type recovered struct {
	store  *Store
	replay *replay
	first  int64 // where the journal begins
	at     int64 // what is before it was read
	whole  bool  // it begins with the identity, or with a snapshot that has ended

	identity *Identity
	ledger   [][]byte // the parts of the newest snapshot that has them all
	begin    int64    // of that snapshot; -1: none
	parts    [][]byte // of the one that is being read
	partsAt  int64    // its begin
	batches  map[int64]*foundBatch
	order    []found // batches that are in groups, and changes, as they come in the log
	segments []segment
	segBegin int64 // of the snapshot that segments are of
	since    []place
	marks    []mark
	other    int64  // the epoch of the last owner that is not of this instance
	address  string // of that one
}

// found is an entry of a group.
type found struct {
	at   int64  // of its group
	meta []byte // of a change
	pos  int64  // of a batch; -1: a change
}

type foundBatch struct {
	place
	meta []byte
	at0  int64 // of its group; of a snapshot that is older when there is no group any more
}

// mark is where a whole snapshot begins, or the log, and what follows up to the next mark takes.
type mark struct{ begin, bytes int64 }

// takeShard reads the journal, writes the store's barrier, reads what came up to it, and tells the
// queue. Whoever may not own the shard, or cannot read it, is refused before the barrier: it must
// not fence an owner that can.
func (s *Store) takeShard(ctx context.Context) error {
	for {
		r, err := s.begin(ctx)
		if err == nil {
			var end int64
			if _, end, err = s.bounds(ctx, s.journal); err == nil {
				err = r.read(ctx, end)
			}
		}
		if errors.Is(err, errTrimmed) {
			continue
		}
		if err == nil {
			err = r.check()
		}
		if err == nil && s.cfg.After > 0 && r.other > s.cfg.After {
			err = fmt.Errorf("%w: since the epoch %d, which was this one's, that at %q has had it with the epoch %d", ErrFenced, s.cfg.After, r.address, r.other)
		}
		if err != nil {
			return err
		}
		if err = s.takeOver(ctx, barrier{Life: r.identity.Life, Shard: s.cfg.Shard, Address: s.cfg.Address, Instance: s.cfg.Instance, Reader: readerVersion}); err != nil {
			return err
		}
		err = r.read(ctx, s.epoch)
		for errors.Is(err, errTrimmed) { // by a zombie: only what is dead already, so begin again
			if r, err = s.begin(ctx); err == nil {
				err = r.read(ctx, s.epoch)
			}
		}
		if err == nil {
			err = r.check()
		}
		if err != nil {
			return err
		}
		return s.adopt(ctx, r)
	}
}

func (s *Store) bounds(ctx context.Context, l partitionLog) (first, next int64, err error) {
	return boundsOf(ctx, l, s.log)
}

// boundsOf asks for the bounds of a log until it is told.
func boundsOf(ctx context.Context, l partitionLog, log *slog.Logger) (first, next int64, err error) {
	first, err = keepTrying(ctx, log, "list offsets", func() (f int64, err error) {
		f, next, err = l.bounds(ctx)
		return f, err
	})
	return first, next, err
}

// begin prepares to read the journal from its first offset.
func (s *Store) begin(ctx context.Context) (*recovered, error) {
	first, end, err := s.bounds(ctx, s.journal)
	if err != nil {
		return nil, err
	}
	r := &recovered{store: s, first: first, at: first, whole: first == 0, begin: -1, partsAt: -1, segBegin: -1, batches: make(map[int64]*foundBatch), marks: []mark{{begin: first}}}
	if first == 0 {
		if err := r.identityAt0(ctx, s, end); err != nil {
			return nil, err
		}
	}
	p := newReplay(first, s.log)
	p.entry = r.entry
	p.owned = func(epoch int64, b barrier) {
		if b.Instance == "" || b.Instance != s.cfg.Instance {
			r.other, r.address = epoch, b.Address
		}
	}
	p.counted = func(_, bytes int64) { r.marks[len(r.marks)-1].bytes += bytes }
	p.ended = func(begin int64) {
		r.whole = r.whole || begin == first
		if begin != first {
			r.marks = append(r.marks, mark{begin: begin})
		}
	}
	r.replay = p
	return r, nil
}

// read reads on up to an offset.
func (r *recovered) read(ctx context.Context, end int64) error {
	err := r.replay.run(ctx, r.store.journal, r.at, end)
	r.at = max(r.at, end)
	return err
}

// check returns an error when what was read is not the wanted shard, or not all of it.
func (r *recovered) check() error {
	switch {
	case !r.whole:
		return fmt.Errorf("%w: it begins at offset %d with a snapshot that does not end", ErrGap, r.first)
	case r.identity == nil:
		return fmt.Errorf("%w: the journal has no identity; if this is a new queue, initialize its store", ErrIdentity)
	}
	return r.identity.check(&r.store.want)
}

// identityAt0 reads the record that Init wrote.
func (r *recovered) identityAt0(ctx context.Context, s *Store, end int64) error {
	var id *Identity
	if end > 0 {
		_, err := keepTrying(ctx, s.log, "read the journal", func() (int64, error) {
			return s.journal.read(ctx, 0, func(offset int64, rec record) error {
				if offset > 0 {
					return nil
				}
				f, err := parseFrame(rec.key, rec.value)
				if err == nil && f.kind == identityFrame {
					id, err = identityOf(f.value)
				}
				return err
			})
		})
		if err != nil && !errors.Is(err, errNoFrame) {
			return err
		}
	}
	if id == nil {
		return fmt.Errorf("%w: the journal does not begin with an identity; if this is a new queue, initialize its store", ErrIdentity)
	}
	r.identity = id
	return nil
}

// entry takes in an entry that counts.
func (r *recovered) entry(at int64, inSnapshot bool, e entry) error {
	switch e.kind {
	case identityEntry:
		id, err := parseIdentity(e.body)
		if err != nil {
			return err
		}
		if r.identity != nil && *r.identity != *id {
			return fmt.Errorf("%w: two identities are in the journal", ErrIdentity)
		}
		r.identity = id
	case segmentsEntry:
		all, err := parseSegments(e.body)
		if err != nil {
			return err
		}
		r.segments, r.segBegin, r.since = all, at, nil
	case ledgerEntry:
		if r.partsAt != at {
			r.parts, r.partsAt = nil, at
		}
		r.parts = append(r.parts, bytes.Clone(e.body))
	case wholeEntry:
		if r.partsAt != at {
			r.parts = nil
		}
		r.ledger, r.begin, r.parts = r.parts, at, nil
	case changeEntry:
		r.order = append(r.order, found{at, bytes.Clone(e.body), -1})
	case batchEntry:
		pos := e.place.pos()
		if b := r.batches[pos]; b != nil { // again in a snapshot
			b.place = e.place
			return nil
		}
		if inSnapshot {
			at--
		} else {
			r.order = append(r.order, found{at, nil, pos})
			r.since = append(r.since, e.place)
		}
		r.batches[pos] = &foundBatch{e.place, bytes.Clone(e.body), at}
	case movedEntry:
		if b := r.batches[e.place.pos()]; b != nil {
			b.place.at = e.place.at
		}
		r.since = append(r.since, e.place)
	default:
		return fmt.Errorf("%w: an entry of the unknown kind %d", ErrVersion, e.kind)
	}
	return nil
}

// adopt makes what was read the store's, and tells the queue.
func (s *Store) adopt(ctx context.Context, r *recovered) error {
	s.identity = *r.identity
	// What was answered is before a record that is answered now, whatever a new leader says of its
	// end.
	mark, err := keepTrying(ctx, s.log, "write to the payload topic", func() (int64, error) { return s.payloads.log.produce(ctx, []record{{key: ownerKey}}) })
	if err != nil {
		return err
	}
	first, _, err := s.bounds(ctx, s.payloads.log)
	if err != nil {
		return err
	}
	next := mark + 1
	p := s.payloads
	p.next, p.segments = next, r.segments
	for _, pl := range r.since {
		p.addLocked(pl.at, size(&pl), s.cfg.SegmentBytes)
	}
	for len(p.segments) > 1 && p.segments[1].first <= first {
		p.segments = p.segments[1:]
	}
	for i := range p.segments {
		p.segments[i].live = 0
	}
	lost := 0
	for pos, b := range r.batches {
		if b.place.at < first || b.place.at >= mark {
			if b.place.at >= mark {
				lost++
			}
			delete(r.batches, pos) // released, as a rule; else what is pending of it is fetched from the source
		}
	}
	if lost > 0 {
		s.opts.Damage(fmt.Sprintf("the payload topic ends at offset %d, and %d batches were behind it; what is pending of them is read from the source again", mark, lost))
	}
	for _, b := range r.batches {
		p.places = append(p.places, heldPlace{place: b.place})
		p.segmentOfLocked(b.place.at).live += size(&b.place)
	}
	slices.SortFunc(p.places, func(a, b heldPlace) int { return cmp.Compare(a.pos(), b.pos()) })
	s.marks = r.marks
	return s.tell(r)
}

// tell calls Recover with what was there before the snapshot, the snapshot, and what came after
// it.
func (s *Store) tell(r *recovered) error {
	tell := func(kind queue.EntryKind, meta []byte, ref queue.Ref) error {
		if err := s.opts.Recover(queue.Recovered{Kind: kind, Meta: meta, Ref: ref}); err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		return nil
	}
	for _, h := range s.payloads.places {
		if b := r.batches[h.pos()]; b.at0 < r.begin {
			if err := tell(queue.BatchEntry, b.meta, b.ref); err != nil {
				return err
			}
		}
	}
	for _, part := range r.ledger {
		if err := tell(queue.SnapshotEntry, part, queue.Ref{}); err != nil {
			return err
		}
	}
	for _, f := range r.order {
		if f.at < r.begin {
			continue
		}
		if f.pos < 0 {
			if err := tell(queue.ChangeEntry, f.meta, queue.Ref{}); err != nil {
				return err
			}
		} else if b := r.batches[f.pos]; b != nil {
			if err := tell(queue.BatchEntry, b.meta, b.ref); err != nil {
				return err
			}
		}
	}
	return nil
}
