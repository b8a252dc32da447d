// Package nutsstore keeps a queue on disk, in nutsdb. docs/storage-format.md describes the bytes.
//
// What it guarantees:
//   - A group that Append returned is on disk and survives SIGKILL and, as far as the disk keeps what
//     it confirmed, a power cut. A group that was not acknowledged is there whole or not at all.
//   - Damage costs what is damaged and nothing else, and is named: opening the store never fails or
//     stays silent because of wrong bytes in it. Missing groups are named too.
//   - Opening it reads no payload but those of the segment that was active: seconds for any backlog.
//   - Panics in nutsdb are errors.
//
// nutsdb's own recovery, merging and index files lose data, so that none of them is used: every data
// file ("segment") that exists when the store is opened was scanned by this package and is opened
// through a hint file that this package wrote; writing always goes to a file that began empty.
//
// Segments are removed as a whole. Each one's first group begins with a snapshot of the ledger. A
// segment may go when all its batches are released and two newer segments have a readable snapshot:
// one of them can then still be damaged, and all changes since the other one are there.
//
// One goroutine, the keeper, seals segments that are no longer written to, and removes those that are
// done with. It ends with Close. nutsdb leaves one goroutine and one descriptor behind per Open.
//
// Lock order: writing, then mu; a segment's reading, then nothing. Neither mu nor the cache's lock is
// held during I/O, so that Release never waits for the disk, and Snapshot may call it.
package nutsstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// DefaultSegmentBytes is the size of a segment when the Config has none.
	DefaultSegmentBytes = 128 << 20
	// MinSegmentBytes is the smallest size of a segment. It leaves room for a group of 48 MiB and a snapshot.
	MinSegmentBytes = 64 << 20

	// groupsPerSegment bounds the changes that are replayed when a store is opened.
	groupsPerSegment = 1 << 16
	// keepBuffer is how much memory for encoding groups is kept between them.
	keepBuffer = 4 << 20
)

var (
	// ErrClosed means that the store is closed.
	ErrClosed = errors.New("store is closed")
	// ErrTooLarge means that a group does not fit into a segment. Nothing was written.
	ErrTooLarge = errors.New("group is larger than a segment")
)

// Config is how a store lays out its files. It may differ from one Open to the next.
type Config struct {
	// SegmentBytes is where a segment ends; 0 is DefaultSegmentBytes. Space is used as it is written.
	SegmentBytes int64
	// Log takes what the keeper cannot return; nil discards.
	Log *slog.Logger
}

// Store implements queue.Store.
type Store struct {
	dir  string
	cfg  Config
	opts queue.StoreOptions
	lock *os.File

	writing sync.Mutex // held for every write through nutsdb; guards the next four
	engine  *engine
	next    uint64 // number of the next group
	failed  error  // why nothing more can be written
	buf     []byte

	mu       sync.Mutex
	segments []*segment // ascending; the last one is active
	numbers  groupNumbers

	cache cache
	told  groupNumbers // what the file says; only for the keeper

	kick chan struct{} // has room for one: there is work for the keeper
	stop chan struct{} // closed to end the keeper
	done chan struct{} // closed when it ended
}

// Append implements queue.Store. After an error that is not ErrTooLarge, every further call fails.
func (s *Store) Append(entries []queue.Entry) ([]queue.Ref, error) {
	for i := range entries {
		e := &entries[i]
		if e.Kind != queue.BatchEntry && (e.Kind != queue.ChangeEntry || len(e.Payload) > 0) {
			return nil, fmt.Errorf("append entry %d: kind %d cannot be stored, or not with a payload", i, e.Kind)
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return nil, fmt.Errorf("append group: %w", s.failed)
	}
	active := s.active()
	rotate := s.full(groupSize(entries))
	snapshots := 0
	if rotate || active.groups.last == 0 {
		entries = append([]queue.Entry{{Kind: queue.SnapshotEntry, Meta: s.opts.Snapshot()}}, entries...)
		snapshots = 1
		rotate = s.full(groupSize(entries)) // an active segment without groups can have tombstones
	}
	if size := groupSize(entries); size+entryOverhead > s.cfg.SegmentBytes {
		return nil, fmt.Errorf("append group of %d bytes: %w", size, ErrTooLarge)
	}

	number, key := s.next, uint64(ledgerKey)
	refs := make([]queue.Ref, len(entries))
	for i := range entries {
		if entries[i].Kind == queue.BatchEntry {
			refs[i] = entryRef(number, i, entries[i].Payload)
			key = number
		}
	}
	err := s.write(rotate, func(id int64) error {
		s.buf = appendGroup(s.buf[:0], id, number, entries)
		return s.engine.put(key, s.buf, rotate)
	})
	if cap(s.buf) > keepBuffer {
		s.buf = nil
	}
	if err != nil {
		return nil, fmt.Errorf("append group: %w", err)
	}
	s.next++

	s.mu.Lock()
	defer s.mu.Unlock()
	active = s.segments[len(s.segments)-1]
	if active.groups.first == 0 {
		active.groups.first = number
		s.wake() // its snapshot may make an old segment removable
	}
	active.groups.last = number
	if snapshots > 0 {
		active.snapshot = number
	}
	for _, ref := range refs {
		if ref.Group != 0 {
			active.batches.add(ref)
		}
	}
	return refs[snapshots:], nil
}

func (s *Store) active() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segments[len(s.segments)-1]
}

// full says whether a value of that size needs a new segment.
func (s *Store) full(size int64) bool {
	groups := s.active().groups
	return s.engine.used() > 0 && s.engine.used()+size+entryOverhead > s.cfg.SegmentBytes ||
		groups.last > 0 && groups.last-groups.first+1 >= groupsPerSegment
}

// write runs a write, in a new segment when it rotates, and never again after one that failed:
// nobody knows what is on disk then. The caller holds writing.
func (s *Store) write(rotate bool, do func(segment int64) error) error {
	if s.failed != nil {
		return s.failed
	}
	id := s.active().id
	var err error
	if rotate {
		id++
		err = createData(s.dir, id, s.engine.nominal)
	}
	if err == nil {
		err = do(id)
	}
	if err != nil {
		s.failed = err
		return err
	}
	if rotate {
		old := s.active()
		used := diskBytes(s.dir, old.id)
		s.mu.Lock()
		old.diskBytes = used
		s.segments = append(s.segments, &segment{id: id})
		s.mu.Unlock()
		s.wake()
	}
	return nil
}

// Release implements queue.Store. Refs that are unknown or already released do nothing.
func (s *Store) Release(refs []queue.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if seg := s.segmentOfLocked(ref.Group); seg != nil {
			seg.batches.release(ref)
			if seg.batches.live == 0 && seg != s.segments[len(s.segments)-1] {
				s.wake()
			}
		}
	}
}

// segmentOfLocked returns the segment that has a group, or nil.
func (s *Store) segmentOfLocked(group uint64) *segment {
	for i := len(s.segments) - 1; i >= 0; i-- {
		if seg := s.segments[i]; seg.groups.first != 0 && seg.groups.first <= group {
			if group > seg.groups.last {
				return nil
			}
			return seg
		}
	}
	return nil
}

// Stats implements queue.Store. DiskBytes leaves out a few small files, together less than 64 KiB.
func (s *Store) Stats() queue.StoreStats {
	s.mu.Lock()
	active := s.segments[len(s.segments)-1]
	stats := queue.StoreStats{Segments: len(s.segments)}
	for _, seg := range s.segments {
		stats.DiskBytes += seg.diskBytes
	}
	s.mu.Unlock()
	stats.DiskBytes += diskBytes(s.dir, active.id)
	return stats
}

// Close implements queue.Store. A second Close does nothing.
func (s *Store) Close() error {
	s.writing.Lock()
	closed := errors.Is(s.failed, ErrClosed)
	s.failed = ErrClosed
	s.writing.Unlock()
	if closed {
		return nil
	}
	close(s.stop)
	<-s.done
	if err := errors.Join(s.engine.close(), s.lock.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// wake tells the keeper that there may be work.
func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}
