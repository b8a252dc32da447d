package kafkastore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// checkEvery is how often the topics' settings are looked at again.
	checkEvery = time.Minute
	// movedAtOnce bounds how many payloads are moved in one go.
	movedAtOnce = 64
)

// keep gives space back, and watches the settings of the topics, until the store ends.
func (s *Store) keep() {
	defer close(s.done)
	defer func() {
		s.journal.close()
		s.payloads.log.close()
	}()
	checks := time.NewTicker(checkEvery)
	defer checks.Stop()
	told, failing := "", ""
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-checks.C:
			told = s.checkSettings(told)
			s.checkEnd()
		case <-s.kick:
			err := s.giveBack()
			if now := text(err); now != failing && s.ctx.Err() == nil {
				if failing = now; err != nil {
					s.log.Warn("the store cannot give space back; it is tried again after each write", "error", err)
				} else {
					s.log.Info("recovered: the store gives space back")
				}
			}
		}
	}
}

// checkSettings looks whether the topics are still what they must be. A setting that was changed
// is an alarm, once; another topic ends the store.
func (s *Store) checkSettings(told string) string {
	if s.settings == nil {
		return ""
	}
	err := s.settings(s.ctx)
	switch {
	case errors.Is(err, ErrReplaced):
		s.fail(err)
	case errors.Is(err, ErrSettings), errors.Is(err, ErrIdentity):
		if err.Error() != told {
			s.log.Error("the store's topics have changed; set them back before records are lost: the store cannot be opened again like this", "error", err)
		}
		return err.Error()
	case err == nil && told != "":
		s.log.Info("recovered: the store's topics are as they must be")
	case err != nil:
		return told // nobody answers
	}
	return ""
}

// checkEnd looks whether what the owner wrote last is still where it was stored. A log that lost
// its end may have been filled up to there by others meanwhile, so that no answer tells.
func (s *Store) checkEnd() {
	s.w.Lock()
	last := s.owner // as it is now
	s.w.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, askTimeout)
	defer cancel()
	_, err := s.journal.read(ctx, last.next-1, func(offset int64, r record) error {
		f, err := parseFrame(r.key, r.value)
		if offset == last.next-1 && !(err == nil && last.wrote(&f)) {
			return fmt.Errorf("%w: what was stored at offset %d is there no more", ErrReplaced, offset)
		}
		return nil
	})
	if errors.Is(err, ErrReplaced) {
		s.fail(err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// giveBack ends the snapshot that is under way, and trims the topics as far as nothing there is
// needed.
func (s *Store) giveBack() error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	for {
		if more, err := s.snapshotNext(); err != nil {
			return err
		} else if !more {
			break
		}
	}
	for {
		moved, err := s.moveOn()
		if err != nil {
			return err
		}
		if err := s.trimPayloads(); err != nil {
			return err
		}
		if !moved {
			break
		}
	}
	return s.trimJournal()
}

// trimJournal deletes what is before the second newest snapshot. That one ended, and counts: so
// whoever opens the journal, now or later, begins there.
func (s *Store) trimJournal() error {
	s.mu.Lock()
	n := len(s.marks) - 2
	if n <= 0 {
		s.mu.Unlock()
		return nil
	}
	before := s.marks[n].begin
	s.mu.Unlock()
	if err := s.trim(s.journal, before); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = slices.Delete(s.marks, 0, n)
	return nil
}

func (s *Store) trim(l partitionLog, before int64) error {
	ctx, cancel := context.WithTimeout(s.ctx, 2*askTimeout)
	defer cancel()
	return l.trim(ctx, before)
}

func (s *Store) trimPayloads() error {
	before, segments := s.payloads.empty()
	if segments == 0 {
		return nil
	}
	if err := s.trim(s.payloads.log, before); err != nil {
		return err
	}
	s.payloads.trimmed(segments)
	return nil
}

// moveOn copies what is left in the oldest segment of payloads to the end, so that the segment can
// go, and says whether there was anything. The copies keep their refs.
func (s *Store) moveOn() (bool, error) {
	old := s.payloads.movable(movedAtOnce)
	if len(old) == 0 {
		return false, nil
	}
	var all [][]byte
	var of []place
	bytes := 0
	for _, pl := range old {
		if bytes > 0 && bytes+int(pl.ref.Length) > 4<<20 {
			break
		}
		b, err := s.payloads.read(s.ctx, pl.ref, s.try("read payloads"))
		if _, held := s.payloads.where(pl.ref); !held {
			continue // released meanwhile
		}
		if err != nil {
			return false, err
		}
		bytes += len(b)
		all, of = append(all, b), append(of, pl)
	}
	if len(all) == 0 {
		return true, nil
	}
	s.w.Lock()
	defer s.w.Unlock()
	if err := s.failed(); err != nil {
		return false, err
	}
	places, err := s.putPayloads(all)
	var stream []byte
	for i := range places {
		places[i].ref = of[i].ref
		stream = appendEntry(stream, movedEntry, places[i].append(nil), nil)
	}
	if err == nil {
		err = s.putStream(groupFrame, stream)
	}
	if err != nil {
		s.fail(err)
		return false, err
	}
	for _, pl := range places {
		s.payloads.moved(pl, s.cfg.SegmentBytes)
	}
	return true, nil
}
