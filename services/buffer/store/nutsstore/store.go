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
// nutsdb's own recovery, merging and index files lose data, so that none of them is used: every
// data file ("segment") that exists when the store is opened was scanned by this package and is
// opened through a hint file that this package wrote; writing always goes to a file that began
// empty.
//
// Segments are removed as a whole, and rewritten when little in them is live (compact.go). Each
// one begins with a snapshot of the ledger, a large one in a file that is written while groups go
// on (ledger.go). A segment may go when all its batches are released and two newer segments have a
// readable snapshot: one of them can then still be damaged, and all changes since the other one
// are there.
//
// A full file system is met before nutsdb writes: then batches are refused, and changes go on,
// into space kept in reserve (space.go).
//
// One goroutine, the keeper, seals segments that are no longer written to, rewrites those of which
// little is left, and removes those that are done with. It ends with Close. nutsdb leaves a
// goroutine behind for each Open.
//
// Lock order: writing, then mu; a segment's reading, then mu. Neither mu nor the cache's lock is
// held during I/O, so that Release never waits for the disk, and Snapshot may call it.
package nutsstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// DefaultSegmentBytes is the size of a segment when the Config has none.
	DefaultSegmentBytes = 128 << 20
	// MinSegmentBytes is the smallest size of a segment. It leaves room for a group of 48 MiB and
	// a snapshot.
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
	// ErrGone means that the directory is not what it was: it was removed, replaced or unmounted.
	ErrGone = errors.New("the store's directory was removed, replaced or unmounted while it was in use")
)

// Config is how a store lays out its files. It may differ from one Open to the next.
type Config struct {
	// SegmentBytes is where a segment ends; 0 is DefaultSegmentBytes. On a small file system most
	// of them end earlier. Space is used in steps of 4 MiB.
	SegmentBytes int64
	// ReserveBytes is kept for changes and restarts on a full disk; 0 is DefaultReserveBytes.
	ReserveBytes int64
	// Existing says that the directory was a store before. Without one in it, Open fails with
	// ErrGone instead of beginning anew.
	Existing bool
	// Log takes what the keeper cannot return; nil discards.
	Log *slog.Logger
}

// Store implements queue.Store.
type Store struct {
	dir  string
	cfg  Config
	opts queue.StoreOptions
	lock *os.File
	// segmentEnd is where a segment ends, unless its snapshot is large; the last group may go
	// beyond.
	segmentEnd int64

	writing sync.Mutex // held for every write through nutsdb; guards the next eight
	engine  *engine
	data    *dataFile // of the active segment
	next    uint64    // number of the next group
	failed  error     // why nothing more can be written
	buf     []byte
	// snapshotBytes is the size of the last snapshot.
	snapshotBytes int64
	ledger        *ledgerWriter // the snapshot that goes on
	opened        bool          // the first snapshot since Open is on disk

	reserve *reserve
	short   atomic.Bool // the file system was full; set while writing is held

	mu       sync.Mutex
	segments []*segment // ascending; the last one is active
	numbers  groupNumbers

	cache cache
	reads chan struct{} // has room for readsAtOnce
	told  groupNumbers  // what the file says; only for the keeper

	kick chan struct{} // has room for one: there is work for the keeper
	stop chan struct{} // closed to end the keeper
	done chan struct{} // closed when it ended
}

// Append implements queue.Store. After an error that is neither ErrTooLarge nor queue.ErrNoSpace,
// every further call fails. Groups without batches may use the reserve.
func (s *Store) Append(entries []queue.Entry) ([]queue.Ref, error) {
	batches := false
	for i := range entries {
		e := &entries[i]
		if e.Kind != queue.BatchEntry && (e.Kind != queue.ChangeEntry || len(e.Payload) > 0) {
			return nil, fmt.Errorf("append entry %d: kind %d cannot be stored, or not with a payload", i, e.Kind)
		}
		batches = batches || e.Kind == queue.BatchEntry
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return nil, fmt.Errorf("append group: %w", s.failed)
	}
	var refs []queue.Ref
	var err error
	if batches && s.short.Load() {
		err = s.reserve.fill() // first
	}
	if err == nil {
		refs, err = s.appendGroup(entries, batches)
	}
	if isNoSpace(err) && s.failed == nil {
		s.becomeShort(err)
		err = fmt.Errorf("%w: %w", queue.ErrNoSpace, err)
	}
	if err != nil {
		return nil, fmt.Errorf("append group: %w", err)
	}
	if batches && s.short.Load() {
		s.short.Store(false)
		s.cfg.Log.Info("there is space again", "dir", s.dir)
	}
	return refs, nil
}

// OnCommit has note called after each transaction of nutsdb with the time that it took to be
// appended and synced, which nutsdb does in one. It is to be called before the store is used.
func (s *Store) OnCommit(note func(time.Duration)) { s.engine.committed = note }

// appendGroup is Append with space for it, or not. The caller holds writing.
func (s *Store) appendGroup(entries []queue.Entry, batches bool) (_ []queue.Ref, err error) {
	active := s.active()
	rotate := s.full(groupSize(entries)) || s.short.Load() && s.worthRotating()
	snapshots := 0
	var ledger *ledgerWriter
	if s.ledger == nil && (rotate || active.groups.last == 0) {
		if entries, rotate, ledger, err = s.newSnapshot(rotate, entries); err != nil {
			return nil, err
		}
		snapshots = 1
		defer func() {
			if err != nil && ledger != nil {
				ledger.abandon()
			}
		}()
	}
	size := groupSize(entries)
	if size+entryOverhead > s.cfg.SegmentBytes {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrTooLarge)
	}

	number, key := s.next, uint64(ledgerKey)
	refs := make([]queue.Ref, len(entries))
	for i := range entries {
		if entries[i].Kind == queue.BatchEntry {
			refs[i] = entryRef(number, i, uint32(len(entries[i].Payload)))
			key = number
		}
	}
	err = s.write(rotate, size+entryOverhead, !batches, func(id int64) error {
		s.buf = appendGroup(s.buf[:0], id, number, entries)
		return s.engine.put(key, s.buf, rotate)
	})
	if cap(s.buf) > keepBuffer {
		s.buf = nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.here(); err != nil { // on disk it may be, but nobody will find it
		s.failed = err
		return nil, err
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
	if ledger != nil && s.opened {
		ledger.segment, active.begun = active, true
		s.ledger = ledger
	} else if snapshots > 0 {
		active.snapshot, s.opened = number, true
	}
	for _, ref := range refs {
		if ref.Group != 0 {
			active.batches.add(ref)
		}
	}
	return refs[snapshots:], nil
}

// Check implements queue.Checker. After an error every further call of Append fails.
func (s *Store) Check() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed == nil {
		s.failed = s.here()
	}
	return s.failed
}

// here checks that the active segment is still found where it was made. The caller holds writing.
func (s *Store) here() error {
	info, err := os.Stat(s.data.Name())
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("look for the active segment: %w", err)
	case err != nil || !os.SameFile(info, s.data.info):
		return fmt.Errorf("%w: %s is not there, or another one", ErrGone, s.data.Name())
	}
	return nil
}

func (s *Store) active() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segments[len(s.segments)-1]
}

// full says whether a value of that size needs a new segment.
func (s *Store) full(size int64) bool {
	groups, used := s.active().groups, s.engine.used()
	return used > 0 && used+size+entryOverhead > s.cfg.SegmentBytes ||
		groups.last > 0 && (groups.last-groups.first+1 >= groupsPerSegment || used >= max(s.segmentEnd, 16*s.snapshotBytes))
}

// write runs a write of at most n bytes, in a new segment when it rotates. With dip it may use the
// reserve. After an error it is either failed or nothing was written. The caller holds writing.
func (s *Store) write(rotate bool, n int64, dip bool, do func(segment int64) error) error {
	if s.failed != nil {
		return s.failed
	}
	var r *reserve
	if dip {
		r = s.reserve
	}
	id, data, used := s.active().id, s.data, s.engine.used()
	end := used + n
	if rotate {
		id++
		end = n
		err := r.with(smallAllocStep, func() (err error) {
			data, err = s.createData(id, s.engine.nominal)
			return err
		})
		if err != nil {
			return s.failUnlessNoSpace(err)
		}
	}
	if err := data.allocate(end, r); err != nil {
		if rotate {
			err = errors.Join(err, data.Close(), removeData(s.dir, id))
		}
		return s.failUnlessNoSpace(err)
	}
	if err := do(id); err != nil {
		if rotate {
			err = errors.Join(err, data.Close())
		}
		s.failed = err
		return err
	}
	if !rotate {
		return nil
	}
	_ = punch(s.data.File, used, s.data.size-used) // what was allocated and never used; it is only space
	if err := s.data.Close(); err != nil {
		s.cfg.Log.Error("segment cannot be closed", "dir", s.dir, "segment", id-1, "error", err)
	}
	s.data = data
	old := s.active()
	oldBytes := diskBytes(s.dir, old.id)
	s.mu.Lock()
	old.diskBytes, old.written = oldBytes, used
	s.segments = append(s.segments, &segment{id: id})
	s.mu.Unlock()
	s.wake()
	return nil
}

// failUnlessNoSpace makes every later write fail: nobody knows what is on disk.
func (s *Store) failUnlessNoSpace(err error) error {
	if !isNoSpace(err) {
		s.failed = err
	}
	return err
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
	stats.DiskBytes += diskBytes(s.dir, active.id) + s.reserve.have.Load()
	return stats
}

// Close implements queue.Store. A second Close does nothing.
func (s *Store) Close() error {
	s.writing.Lock()
	closed := errors.Is(s.failed, ErrClosed)
	s.failed = ErrClosed
	if s.ledger != nil {
		s.ledger.abandon()
		s.ledger = nil
	}
	s.writing.Unlock()
	if closed {
		return nil
	}
	close(s.stop)
	<-s.done
	if err := errors.Join(s.engine.close(), s.data.Close(), s.lock.Close()); err != nil {
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
