package nutsstore

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A snapshot of the ledger that is large has a file of its own, N.ledger, beside the segment that
// begins with it. In the segment's first group there is an entry of another kind in its place.
// All numbers are big-endian.
//
//	 0  8  magic "SPWLEDGR"          28  each part: 4 bytes length, and the part
//	 8  4  version, 2                    4 bytes zero
//	12  8  segment number                4 bytes CRC32C of all before
//	20  8  number of that group
//
// The first snapshot of an opened store is on disk before its group. The others are written part
// by part while groups go on, and the file gets its name when it is complete: without it, the
// snapshot before counts.
//
// In version 1 the file was always written before the group, had the whole snapshot behind byte
// 20, and the entry, of another kind still, had as its meta 8 bytes length of the snapshot and 4
// bytes CRC32C of the file.
const (
	ledgerMagic       = "SPWLEDGR"
	ledgerVersion     = 2
	wholeVersion      = 1
	ledgerHeaderSize  = 28
	wholeHeaderSize   = 20
	ledgerTrailerSize = 8

	// wholeEntry is the kind of an entry that stands for a snapshot in a file of version 1.
	wholeEntry queue.EntryKind = 4
	// ledgerEntry is the kind of an entry that stands for a snapshot in a file of its own.
	ledgerEntry queue.EntryKind = 5
	// ledgerComplete is its meta when the file was complete before the group; else it has none.
	ledgerComplete = "\x01"
	// ledgerShare is the part of a segment that a snapshot in it may take up.
	ledgerShare = 8
	// ledgerSync is how many bytes of a snapshot are written between two fsyncs.
	ledgerSync = 1 << 20
)

// ledgerWriter writes a snapshot to a file.
type ledgerWriter struct {
	dir      string
	segment  *segment // nil before its group is written
	snapshot queue.Snapshot
	parts    [][]byte // that are to be written next
	file     *newFile
	bytes    int64 // written
	synced   int64 // of these
}

// beginLedger creates the file of a segment that is to begin with a group. Parts have been taken
// of the snapshot.
func beginLedger(dir string, segment int64, group uint64, snapshot queue.Snapshot, parts [][]byte) (*ledgerWriter, error) {
	f, err := createFile(segmentPath(dir, segment, ledgerSuffix))
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32([]byte(ledgerMagic), ledgerVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(segment))
	w := &ledgerWriter{dir: dir, snapshot: snapshot, parts: parts, file: f}
	w.file.Write(binary.BigEndian.AppendUint64(b, group)) // an error sticks, and is seen when it is flushed
	w.bytes = ledgerHeaderSize
	return w, nil
}

// step writes the next part, and says whether that was all. It may use a reserve, and after an
// error of a full file system, or any other, the snapshot can only be abandoned.
func (w *ledgerWriter) step(r *reserve) (done bool, err error) {
	if len(w.parts) == 0 {
		w.parts = append(w.parts, w.snapshot.Next())
	}
	part := w.parts[0]
	w.parts = w.parts[1:]
	size := int64(4 + len(part))
	if part == nil {
		size = ledgerTrailerSize
	}
	if err := r.with(size, func() error { return preallocate(w.file.file, w.bytes, size) }); err != nil {
		return false, fmt.Errorf("allocate space: %w", err)
	}
	w.bytes += size
	w.file.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
	w.file.Write(part)
	crc, err := w.file.checksum()
	if err != nil {
		return false, err
	}
	if part != nil {
		if w.bytes-w.synced < ledgerSync {
			return false, nil
		}
		w.synced = w.bytes
		if err := w.file.file.Sync(); err != nil {
			return false, fmt.Errorf("sync %s: %w", w.file.path, err)
		}
		return false, nil
	}
	w.file.Write(binary.BigEndian.AppendUint32(nil, crc))
	if err := w.file.commit(); err != nil {
		return false, err
	}
	return true, syncDir(w.dir)
}

// abandon gives the snapshot up, unless it is complete.
func (w *ledgerWriter) abandon() {
	w.snapshot.Abandon()
	w.file.abandon()
}

// newSnapshot begins a snapshot in front of a group of entries, in the active segment or with
// rotate in the next, unless one goes on. It returns what is to stand for it in the group; small:
// that is the snapshot itself. Otherwise w writes it. The first one since the store was opened is
// complete on return. The caller holds writing.
func (s *Store) newSnapshot(rotate bool, entries []queue.Entry) (all []queue.Entry, again bool, w *ledgerWriter, err error) {
	snapshot := s.opts.Snapshot()
	first := snapshot.Next()
	second := snapshot.Next()
	n, others := int64(len(first)), groupSize(entries)
	small := second == nil && n <= s.cfg.SegmentBytes/ledgerShare && others+n+rowSize+entryOverhead <= s.cfg.SegmentBytes
	if small {
		others += n
	}
	rotate = rotate || s.engine.used() > 0 && s.full(others)
	entry := queue.Entry{Kind: ledgerEntry}
	if small {
		s.snapshotBytes = n
		entry = queue.Entry{Kind: queue.SnapshotEntry, Meta: first}
	} else if w, err = s.newLedger(rotate, snapshot, [][]byte{first, second}); err != nil {
		snapshot.Abandon()
		return nil, false, nil, fmt.Errorf("write ledger: %w", err)
	} else if !s.opened {
		entry.Meta = []byte(ledgerComplete)
	}
	return append([]queue.Entry{entry}, entries...), rotate, w, nil
}

func (s *Store) newLedger(rotate bool, snapshot queue.Snapshot, parts [][]byte) (*ledgerWriter, error) {
	segment := s.active().id
	if rotate {
		segment++ // an active segment without groups can have tombstones
	}
	w, err := beginLedger(s.dir, segment, s.next, snapshot, parts)
	for done := s.opened; err == nil && !done; {
		done, err = w.step(s.reserve)
	}
	if err == nil && !s.opened {
		s.snapshotBytes = w.bytes
	}
	if err != nil && w != nil {
		w.abandon()
	}
	return w, err
}

// Continue implements queue.Store. When the file system is full, the snapshot is given up, and the
// next segment begins with one.
func (s *Store) Continue() (more bool, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	w := s.ledger
	if w == nil {
		return false, nil
	}
	if err = s.failed; err == nil {
		var done bool
		if done, err = w.step(s.reserve); err == nil && !done {
			return true, nil
		}
	}
	s.ledger = nil
	if err != nil {
		w.abandon()
		if isNoSpace(err) {
			s.cfg.Log.Warn("there is no space for a snapshot of the ledger; the one before counts, and older segments stay", "dir", s.dir, "segment", w.segment.id, "error", err)
			return false, nil
		}
		s.failed = err
		return false, fmt.Errorf("write ledger of segment %d: %w", w.segment.id, err)
	}
	s.snapshotBytes = w.bytes
	used := diskBytes(s.dir, w.segment.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.segment.snapshot = w.segment.groups.first
	if w.segment != s.segments[len(s.segments)-1] {
		w.segment.diskBytes = used
	}
	s.wake() // it may make an old segment removable
	return false, nil
}

// isSnapshot says whether an entry is, or stands for, a snapshot that was complete with its
// group. Of others the file tells.
func isSnapshot(e *groupEntry) bool {
	return e.kind == queue.SnapshotEntry || e.kind == wholeEntry || e.kind == ledgerEntry && string(e.meta) == ledgerComplete
}

// ledgerGroup returns the number of the group that a segment's ledger file belongs to, or 0 when
// there is none, or none of this version.
func ledgerGroup(dir string, segment int64) (uint64, error) {
	f, err := os.Open(segmentPath(dir, segment, ledgerSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, ledgerHeaderSize)
	if _, err := io.ReadFull(f, b); err != nil || string(b[:8]) != ledgerMagic {
		return 0, nil // damaged: what needs it says so
	}
	switch v := binary.BigEndian.Uint32(b[8:]); {
	case v > ledgerVersion:
		return 0, fmt.Errorf("%w: ledger of segment %d has %d, this program knows %d", errVersion, segment, v, ledgerVersion)
	case v < ledgerVersion || int64(binary.BigEndian.Uint64(b[12:])) != segment:
		return 0, nil
	}
	return binary.BigEndian.Uint64(b[20:]), nil
}

// readLedger calls tell with the parts of a snapshot in a file, in fresh memory. It checks all of
// the file before.
func readLedger(dir string, segment int64, group uint64, tell func(part []byte) error) error {
	path := segmentPath(dir, segment, ledgerSuffix)
	if g, err := ledgerGroup(dir, segment); err != nil || g != group {
		return cmp.Or(err, errors.New("it is not that of its group, or damaged"))
	}
	crc, trailer, err := checksumFile(path, ledgerTrailerSize)
	if err != nil {
		return err
	}
	if len(trailer) < ledgerTrailerSize || binary.BigEndian.Uint32(trailer[4:]) != crc {
		return errors.New("it has a wrong checksum")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(ledgerHeaderSize, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, 64<<10)
	for length := make([]byte, 4); ; {
		if _, err := io.ReadFull(r, length); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(length)
		if n == 0 {
			return nil
		}
		part := make([]byte, n) // the checksum is right, and so are the lengths
		if _, err := io.ReadFull(r, part); err != nil {
			return err
		}
		if err := tell(part); err != nil {
			return err
		}
	}
}

// readWhole returns the snapshot that an entry of kind wholeEntry stands for.
func readWhole(dir string, segment int64, meta []byte) ([]byte, error) {
	if len(meta) != 12 {
		return nil, errors.New("its entry is malformed")
	}
	b, err := os.ReadFile(segmentPath(dir, segment, ledgerSuffix))
	if err != nil {
		return nil, err
	}
	if want := binary.BigEndian.Uint64(meta) + wholeHeaderSize; uint64(len(b)) != want {
		return nil, fmt.Errorf("it has %d bytes, not %d", len(b), want)
	}
	if crc32.Checksum(b, castagnoli) != binary.BigEndian.Uint32(meta[8:]) || string(b[:8]) != ledgerMagic || int64(binary.BigEndian.Uint64(b[12:])) != segment {
		return nil, errors.New("it has a wrong checksum")
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != wholeVersion {
		return nil, fmt.Errorf("%w: it has %d, not %d", errVersion, v, wholeVersion)
	}
	return b[wholeHeaderSize:], nil
}

// teller hands out the parts of a snapshot.
type teller func(tell func(part []byte) error) error

// ledgerOf returns what reads the snapshot that a segment begins with when it has a file of its
// own, which it has checked; nil: it has none.
func ledgerOf(dir string, seg *segment) (teller, error) {
	group, err := ledgerGroup(dir, seg.id)
	if err != nil {
		return nil, err
	}
	if group != 0 && group == seg.snapshot {
		read := func(tell func([]byte) error) error { return readLedger(dir, seg.id, group, tell) }
		if err := read(func([]byte) error { return nil }); err != nil {
			return nil, fmt.Errorf("%w: %w", queue.ErrDamaged, err)
		}
		return read, nil
	}
	if _, err := os.Stat(segmentPath(dir, seg.id, ledgerSuffix)); errors.Is(err, os.ErrNotExist) && seg.snapshot == 0 {
		return nil, nil
	}
	var meta []byte
	v := indexVisitor{damage: func(string) {}}
	v.group = func(number uint64) bool { return number == seg.snapshot }
	v.entry = func(e queue.Recovered) error {
		switch e.Kind {
		case wholeEntry:
			meta = e.Meta
		case ledgerEntry:
			return fmt.Errorf("%w: it is missing, or not that of its group", queue.ErrDamaged)
		}
		return errStop // a snapshot is the first entry of the first group
	}
	if err := readIndex(dir, seg.id, v); err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	if meta == nil {
		return nil, nil
	}
	snapshot, err := readWhole(dir, seg.id, meta)
	if err != nil {
		if !errors.Is(err, errVersion) {
			err = fmt.Errorf("%w: %w", queue.ErrDamaged, err)
		}
		return nil, err
	}
	return func(tell func([]byte) error) error { return tell(snapshot) }, nil
}
