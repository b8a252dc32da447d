package nutsstore

import (
	"errors"
	"fmt"
)

const (
	// forgetAtOnce bounds how long the keeper keeps Append from writing.
	forgetAtOnce = 4096
	// snapshotsAhead is how many newer segments have a readable snapshot when a segment's changes
	// go.
	snapshotsAhead = 2
)

// keep is the keeper: it removes segments that are done with, seals those that are full, and
// rewrites those of which little is left.
func (s *Store) keep() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		}
		if s.tidy() {
			s.wake()
		}
	}
}

// tidy does one piece of work, and says whether there may be more.
func (s *Store) tidy() (more bool) {
	if seg := s.takeRetired(); seg != nil {
		if err := s.remove(seg); err != nil && !errors.Is(err, ErrClosed) {
			s.cfg.Log.Error("segment cannot be removed", "dir", s.dir, "segment", seg.id, "error", err)
		}
		return true
	}
	if seg := s.unsealed(); seg != nil {
		err := s.reserve.with(sidecarBytes, func() error {
			_, err := sealWritten(s.dir, seg.id, seg.written, s.opts.Damage)
			return err
		})
		if err != nil {
			s.cfg.Log.Error("segment cannot be sealed; the next start does it", "dir", s.dir, "segment", seg.id, "error", err)
		}
		used := diskBytes(s.dir, seg.id)
		s.mu.Lock()
		defer s.mu.Unlock()
		seg.sealed, seg.sealFailed, seg.diskBytes = err == nil, err != nil, used
		return true
	}
	if seg := s.takeSparse(); seg != nil {
		if err := s.compact(seg); err != nil && !errors.Is(err, ErrClosed) {
			s.cfg.Log.Warn("segment cannot be rewritten without what is released", "dir", s.dir, "segment", seg.id, "error", err)
		}
		return true
	}
	s.tellNumbers()
	_ = s.reserve.fill() // when there is space again
	return false
}

// takeRetired takes a segment out that is not needed any more: all its batches are released, and
// the ledger can be rebuilt from either of two newer snapshots.
func (s *Store) takeRetired() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	newer := 0 // segments with a snapshot above the one looked at
	for i := len(s.segments) - 1; i >= 0; i-- {
		seg := s.segments[i]
		if newer < snapshotsAhead {
			if seg.snapshot > 0 {
				newer++
			}
			continue
		}
		if seg.batches.live > 0 {
			continue
		}
		s.segments = append(s.segments[:i:i], s.segments[i+1:]...)
		if seg.groups.first > 0 {
			s.numbers.retire(seg.groups)
		}
		// What was lost below the oldest group is no news any more.
		for _, seg := range s.segments {
			if seg.groups.first > 0 {
				if seg.groups.first > 1 {
					s.numbers.retire(span{1, seg.groups.first - 1})
				}
				break
			}
		}
		return seg
	}
	return nil
}

// unsealed returns a segment that is to be sealed, or nil.
func (s *Store) unsealed() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.segments[:len(s.segments)-1] {
		if !seg.sealed && !seg.sealFailed {
			return seg
		}
	}
	return nil
}

// remove removes the files of a segment that was taken out.
func (s *Store) remove(seg *segment) error {
	// Nobody reads it from here on: nutsdb would create the file anew.
	seg.reading.Lock()
	seg.removed = true
	seg.reading.Unlock()
	// On disk before the files go, so that their groups are not told as missing. A full disk must
	// not stand in the way of making room: then it is written afterwards.
	s.tellNumbers()
	if err := removeData(s.dir, seg.id); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	return s.forgetAll(seg.batches.withBatches())
}

// forgetAll makes nutsdb forget keys, piece by piece.
func (s *Store) forgetAll(keys []uint64) error {
	for len(keys) > 0 {
		n := min(len(keys), forgetAtOnce)
		if err := s.forget(keys[:n]); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

func (s *Store) forget(keys []uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return fmt.Errorf("forget keys: %w", s.failed)
	}
	keys, err := s.engine.known(keys)
	if err != nil {
		return fmt.Errorf("forget keys: %w", err)
	}
	if len(keys) == 0 { // of a damaged or rewritten segment
		return nil
	}
	n := int64(len(keys)) * entryOverhead
	rotate := s.full(n)
	if err := s.write(rotate, n, true, func(int64) error { return s.engine.forget(keys, rotate) }); err != nil {
		return fmt.Errorf("forget keys: %w", err)
	}
	return nil
}

// tellNumbers writes down which groups there are, when that changed. Without it, groups may be
// told as missing that were removed on purpose, and nothing else happens.
func (s *Store) tellNumbers() {
	s.mu.Lock()
	for _, seg := range s.segments {
		s.numbers.known = max(s.numbers.known, seg.groups.first)
	}
	n := s.numbers.clone()
	s.mu.Unlock()
	if n.equal(s.told) {
		return
	}
	if err := s.reserve.with(sidecarBytes, func() error { return n.write(s.dir) }); err != nil {
		s.cfg.Log.Error("numbers of removed groups cannot be written down", "dir", s.dir, "error", err)
		return
	}
	s.told = n
}
