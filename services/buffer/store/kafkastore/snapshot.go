package kafkastore

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// snapshot is a snapshot that is being written, frame by frame between groups. Its stream: the
// identity, the segments of the payload topic, the ledger as it was when it began, part by part,
// and the batches that are needed still and were written before it began. The queue hands out the
// parts and so writes them, in Continue; the keeper writes the batches.
//
// It counts for readers as soon as the ledger is whole. Once it has ended, what was written before
// the snapshot before it can go.
type snapshot struct {
	begin   int64 // its first frame; -1: none yet
	bytes   int64 // of its own frames
	journal int64 // written to the journal since it began, groups included
	pending []byte
	parts   queue.Snapshot // of the ledger; nil: all of them are in pending, or written
	ledger  bool           // the ledger is written
	from    int64          // where batches are looked for next, up to begin
	reader  *replay
}

// snapshotDue says whether a snapshot is to begin.
func (s *Store) snapshotDue() bool {
	return s.fresh || s.since >= max(s.cfg.SegmentBytes, 4*s.last) || time.Since(s.lastAt) >= snapshotEvery
}

// snapshotFirst begins a snapshot when one is due: it is of what was written before, so its first
// frame stands before the next group. The keeper writes the others. Only the first snapshot of a
// store has its ledger written before the group: what the queue makes of its configuration is in
// no group.
func (s *Store) snapshotFirst() error {
	if s.snapshot != nil || !s.snapshotDue() {
		return nil
	}
	if err := s.beginSnapshot(); err != nil {
		return err
	}
	for {
		if err := s.snapshotFrame(); err != nil {
			return err
		}
		if !s.fresh || s.snapshot == nil || s.snapshot.ledger {
			return nil
		}
	}
}

// Continue implements queue.Store.
func (s *Store) Continue() (more bool, err error) {
	s.w.Lock()
	defer s.w.Unlock()
	if s.snapshot == nil || s.snapshot.ledger || s.failed() != nil {
		return false, nil
	}
	if err := s.snapshotFrame(); err != nil {
		s.fail(err)
		return false, fmt.Errorf("continue snapshot: %w", err)
	}
	if s.snapshot != nil && !s.snapshot.ledger {
		return true, nil
	}
	s.wake() // the keeper goes on
	return false, nil
}

// snapshotNext writes the next frame of a snapshot whose ledger is written, and says whether there
// are more.
func (s *Store) snapshotNext() (more bool, err error) {
	s.w.Lock()
	defer s.w.Unlock()
	if s.snapshot == nil || !s.snapshot.ledger || s.failed() != nil {
		return false, nil
	}
	if err := s.snapshotFrame(); err != nil {
		s.fail(err)
		return false, err
	}
	return s.snapshot != nil, nil
}

func (s *Store) beginSnapshot() error {
	identity, err := json.Marshal(s.identity)
	if err != nil {
		return err
	}
	s.mu.Lock()
	from := s.marks[len(s.marks)-1].begin
	s.mu.Unlock()
	n := &snapshot{begin: -1, from: from, parts: s.opts.Snapshot()}
	n.pending = appendEntry(n.pending, identityEntry, nil, identity)
	n.pending = appendEntry(n.pending, segmentsEntry, nil, s.payloads.encodeSegments())
	n.reader = newReplay(from, s.log)
	newest := from
	n.reader.entry = func(at int64, inSnapshot bool, e entry) error {
		if e.kind != batchEntry || inSnapshot && at != newest { // a snapshot that did not end has copies
			return nil
		}
		if pl, ok := s.payloads.where(e.place.ref); ok {
			n.pending = appendEntry(n.pending, batchEntry, pl.append(nil), e.body)
		}
		return nil
	}
	s.snapshot, s.since, s.lastAt = n, 0, time.Now()
	return nil
}

// takeParts takes parts of the ledger until there is enough for a frame.
func (n *snapshot) takeParts() {
	for n.parts != nil && len(n.pending) < frameBytes {
		part := n.parts.Next()
		if part == nil {
			n.pending = appendEntry(n.pending, wholeEntry, nil, nil)
			n.parts = nil
			return
		}
		n.pending = appendEntry(n.pending, ledgerEntry, nil, part)
	}
}

// snapshotFrame reads on for the snapshot, once, or writes its next frame. It ends the snapshot
// when there is nothing more.
func (s *Store) snapshotFrame() error {
	n := s.snapshot
	n.takeParts()
	if n.ledger && len(n.pending) < frameBytes && n.from < n.begin {
		return s.collect()
	}
	size := min(len(n.pending), frameBytes)
	flags, whole := byte(0), n.parts == nil && size == len(n.pending)
	if n.begin < 0 {
		flags |= firstFlag
	}
	if n.begin >= 0 && whole && n.from >= n.begin {
		flags |= lastFlag
	}
	at, err := s.putFrame(snapshotFrame, flags, n.pending[:size])
	if err != nil {
		return err
	}
	if n.begin < 0 {
		n.begin = at
	}
	n.bytes += int64(frameKeyBytes + size)
	n.pending = n.pending[size:]
	n.ledger = n.ledger || whole // batches are looked for from now on
	if flags&lastFlag != 0 {
		s.endSnapshot()
	}
	return nil
}

// collect reads on in the journal for batches that are needed.
func (s *Store) collect() error {
	n := s.snapshot
	from, err := s.try("read the journal")(func() (int64, error) {
		return s.journal.read(s.ctx, n.from, func(offset int64, r record) error {
			if offset >= n.begin || offset < n.from {
				return nil
			}
			if err := n.reader.record(offset, r); err != nil {
				return fmt.Errorf("%w: %w", errRecord, err)
			}
			n.from = offset + 1
			return nil
		})
	})
	if errors.Is(err, errTrimmed) { // nobody but a later owner does that
		err = fmt.Errorf("%w, and has trimmed the journal", ErrFenced)
	}
	n.from = max(n.from, from)
	return err
}

// endSnapshot notes that the journal before the snapshot that came before this one can go.
func (s *Store) endSnapshot() {
	n := s.snapshot
	s.snapshot, s.last = nil, n.bytes
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks[len(s.marks)-1].bytes -= n.journal
	s.marks = append(s.marks, mark{n.begin, n.journal})
}
