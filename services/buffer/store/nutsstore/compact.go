package nutsstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A segment of which little is live is rewritten in its place: batches that are released go, and
// so do its snapshots and changes, which two newer segments supersede. Groups keep their numbers
// and rows, so that every Ref stays what it is; those that are empty now remain as a header, so
// that no number is missing. On a crash, the old file or the new one is there.

// goneEntry is the kind of an entry of which only its row is left.
const goneEntry queue.EntryKind = 0

// movedGroup is where a group is in a segment that was rewritten since nutsdb read its hint file.
type movedGroup struct {
	number uint64
	at     int64 // of the group itself
	size   int64
}

var errNotSound = errors.New("it is damaged, and stays as it is")

// takeSparse returns a segment that is worth rewriting, or nil. As long as there is space, it is
// one that others have overtaken: one that is being drained will be gone soon.
func (s *Store) takeSparse() *segment {
	quarters := int64(1) // of its size may be live
	if s.short.Load() {
		quarters = 3
	}
	gain := min(1<<20, s.cfg.SegmentBytes/8)
	s.mu.Lock()
	defer s.mu.Unlock()
	var best *segment
	newer, overtaken, above := 0, s.short.Load(), int64(0)
	for i := len(s.segments) - 1; i >= 0; i-- {
		seg := s.segments[i]
		if newer < snapshotsAhead {
			if seg.snapshot > 0 {
				newer++
			}
			above = seg.id
			continue
		}
		overtaken = overtaken || above > seg.id+1 // newer ones were removed
		above = seg.id
		live := seg.batches.bytes
		if live == 0 || live > seg.diskBytes/4*quarters || seg.diskBytes-live < gain {
			continue
		}
		if overtaken && seg.sealed && (seg.notBelow == 0 || live < seg.notBelow) && (best == nil || live < best.batches.bytes) {
			best = seg
		}
		overtaken = true
	}
	return best
}

// compact rewrites a segment. When it cannot, the segment stays as it is until more of it is
// released.
func (s *Store) compact(seg *segment) error {
	s.mu.Lock()
	live := seg.batches.bytes
	seg.notBelow = live
	s.mu.Unlock()

	var moved []movedGroup
	var tmp *newFile
	err := s.reserve.with(live, func() (err error) {
		if tmp != nil {
			tmp.abandon()
		}
		moved, tmp, err = s.rewrite(seg)
		return err
	})
	if tmp != nil {
		defer tmp.abandon()
	}
	if err != nil {
		return err
	}
	if err := s.replace(seg, tmp, moved); err != nil {
		return err
	}
	err = s.reserve.with(sidecarBytes, func() error {
		_, err := seal(s.dir, seg.id, s.opts.Damage)
		return err
	})
	used := diskBytes(s.dir, seg.id)
	s.mu.Lock()
	keys := seg.batches.withBatches()
	seg.batches.dropReleased()
	seg.sealed, seg.sealFailed, seg.diskBytes = err == nil, err != nil, used
	s.mu.Unlock()
	return errors.Join(err, s.forgetAll(keys))
}

// rewrite writes what is live of a segment to a new file, and syncs it. It also returns the file
// when it fails.
func (s *Store) rewrite(seg *segment) (moved []movedGroup, tmp *newFile, err error) {
	data, err := os.Open(segmentPath(s.dir, seg.id, dataSuffix))
	if err != nil {
		return nil, nil, fmt.Errorf("open segment: %w", err)
	}
	defer data.Close()
	info, err := data.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("open segment: %w", err)
	}
	if tmp, err = createFile(segmentPath(s.dir, seg.id, dataSuffix)); err != nil {
		return nil, nil, err
	}
	sc := scanner{segment: seg.id, w: window{r: data, size: info.Size()}, through: math.MaxUint64}
	sc.damage = func(int64, int64, string) { err = errNotSound }
	moved = []movedGroup{} // not nil, even when nothing is left
	var at int64
	var kept []queue.Ref
	var b []byte
	sc.found = func(f found) error {
		if err != nil || !f.intact {
			return errNotSound
		}
		entries, refs := s.liveEntries(seg, &f.group)
		key := uint64(ledgerKey)
		if len(refs) > 0 {
			key = f.number
			kept = append(kept, refs...)
		}
		value := appendGroup(nil, seg.id, f.number, entries)
		b = f.head.encode(b[:0], keyOf(key), value)
		if len(refs) > 0 {
			size := int64(len(value))
			moved = append(moved, movedGroup{f.number, at + int64(len(b)) - size, size})
		}
		at += int64(len(b))
		_, err := tmp.Write(b)
		return err
	}
	if _, scanErr := sc.scan(); scanErr != nil {
		return nil, tmp, scanErr
	}
	if err != nil { // of damage behind the last group
		return nil, tmp, err
	}
	s.mu.Lock()
	lost := seg.batches.liveBut(kept)
	s.mu.Unlock()
	if lost {
		return nil, tmp, errNotSound
	}
	if err := tmp.Flush(); err != nil {
		return nil, tmp, fmt.Errorf("write segment: %w", err)
	}
	if err := tmp.file.Truncate(info.Size()); err != nil { // nutsdb cannot read the end of a file that is not longer
		return nil, tmp, fmt.Errorf("write segment: %w", err)
	}
	if err := tmp.file.Sync(); err != nil {
		return nil, tmp, fmt.Errorf("sync segment: %w", err)
	}
	return moved, tmp, nil
}

// liveEntries returns what is left of a group, and the Refs of its batches.
func (s *Store) liveEntries(seg *segment, g *group) (entries []queue.Entry, refs []queue.Ref) {
	entries = make([]queue.Entry, len(g.entries))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range g.entries {
		e := &g.entries[i]
		if ref := entryRef(g.number, i, e.payloadSize); e.kind == queue.BatchEntry && seg.batches.isLive(ref) {
			entries[i] = queue.Entry{Kind: e.kind, Meta: e.meta, Payload: e.payload}
			refs = append(refs, ref)
		}
	}
	if len(refs) == 0 {
		return nil, nil
	}
	return entries, refs
}

// replace puts a rewritten file in the place of a segment's. Its sidecars go first: those of the
// old file must not be found beside the new one.
func (s *Store) replace(seg *segment, tmp *newFile, moved []movedGroup) error {
	seg.reading.Lock()
	defer seg.reading.Unlock()
	path := segmentPath(s.dir, seg.id, dataSuffix)
	old, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	defer old.Close()
	s.mu.Lock()
	seg.sealed, seg.sealFailed = false, true // until it is sealed again
	s.mu.Unlock()
	for _, suffix := range []string{indexSuffix, hintSuffix} {
		if err := os.Remove(segmentPath(s.dir, seg.id, suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove sidecar: %w", err)
		}
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	if err := tmp.commit(); err != nil {
		return err
	}
	seg.moved = moved
	s.mu.Lock()
	seg.snapshot = 0
	s.mu.Unlock()
	if err := os.Remove(segmentPath(s.dir, seg.id, ledgerSuffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove ledger: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	if err := old.Truncate(0); err != nil { // nutsdb may hold it open for long; only now it cannot come back
		return fmt.Errorf("empty the old file: %w", err)
	}
	return nil
}

// readMoved reads a group of a segment that was rewritten. The caller holds reading.
func readMoved(dir string, seg *segment, number uint64) (*group, error) {
	i, ok := slices.BinarySearchFunc(seg.moved, number, func(m movedGroup, n uint64) int { return cmp.Compare(m.number, n) })
	if !ok {
		return nil, errors.New("it was released")
	}
	f, err := os.Open(segmentPath(dir, seg.id, dataSuffix))
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	defer f.Close()
	b := make([]byte, seg.moved[i].size)
	if _, err := f.ReadAt(b, seg.moved[i].at); err != nil {
		return nil, fmt.Errorf("read segment: %w", err)
	}
	g, err := decodeGroup(b)
	if err != nil || g.number != number || g.segment != seg.id {
		return nil, fmt.Errorf("%w: another group, or none: %v", queue.ErrDamaged, err)
	}
	return &g, nil
}

// encode appends an entry with the header e, but for its sizes, behind b, which must be empty.
func (e *dataEntry) encode(b, key, value []byte) []byte {
	b = append(b, 0, 0, 0, 0) // checksum, below
	for _, field := range []uint64{e.timestamp, uint64(len(key)), uint64(len(value)), e.flag, e.ttl, e.status, e.structure, e.txID, e.bucket} {
		b = binary.AppendUvarint(b, field)
	}
	b = append(append(b, key...), value...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
	return b
}
