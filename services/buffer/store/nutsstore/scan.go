package nutsstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/nutsdb/nutsdb"
)

const (
	scanChunk = 4 << 20
	skimChunk = 16 << 10
	// minDataHeader is nutsdb's shortest header: a checksum and nine uvarints.
	minDataHeader = nutsdb.MinEntryHeaderSize
	maxDataHeader = nutsdb.MaxEntryHeaderSize
)

// found is a group that a scan found. Its memory is only valid until the scan goes on.
type found struct {
	group
	raw []byte // what it was decoded from
	// at is where nutsdb's entry begins, and head and key are what it consists of. They are only
	// set when the whole entry is intact, so that nutsdb can read it.
	intact bool
	at     int64
	head   dataEntry
	key    []byte
}

// scanner reads a nutsdb data file without nutsdb, which would give up, panic or lose entries at
// the first wrong byte. Damage is bounded: after it, the scan goes on at the next group.
type scanner struct {
	segment int64
	w       window
	// through is the last group that is known to have been complete. A later one at the end of
	// the data may be an unfinished write and counts whole or not at all; of groups before it,
	// which were acknowledged, every readable entry counts.
	through uint64
	found   func(found) error // may return errStop
	damage  func(from, to int64, what string)
}

var errStop = errors.New("stop")

// scan reads a data file and returns where its data ends. It fails when it cannot read, or meets a
// group of an unknown version.
func (s *scanner) scan() (end int64, err error) {
	if end, err = s.w.dataEnd(); err != nil {
		return 0, err
	}
	at := int64(0)
	for at < end && err == nil {
		at, err = s.step(at, end)
	}
	if errors.Is(err, errStop) {
		err = nil
	}
	return max(at, end), err
}

// step handles what begins at a byte, and returns where the next thing begins.
func (s *scanner) step(at, end int64) (next int64, err error) {
	e, b, err := s.dataEntry(at)
	if err != nil {
		return 0, err
	}
	if b == nil {
		return s.resync(at, end)
	}
	next = at + e.size()
	if e.isTombstone() {
		return next, nil
	}
	key, value := b[e.headerSize:e.headerSize+keySize], b[e.headerSize+keySize:]
	g, err := decodeGroup(value)
	switch {
	case errors.Is(err, errVersion):
		return 0, err
	case err != nil:
		s.damage(at, next, err.Error())
	case !e.isGroup() || g.segment != s.segment || g.size != len(value):
		s.damage(at, next, "an entry that does not belong here")
	default:
		return next, s.found(found{group: g, raw: value, intact: true, at: at, head: e, key: key})
	}
	return next, nil
}

// errUnexpected ends a skim.
var errUnexpected = errors.New("not what was written")

// skim is scan for a file of which this process wrote all bytes up to end and knows that they are
// on disk. It reads headers, tables and metas, but no payload, and fails at whatever it does not
// expect.
func (s *scanner) skim(end int64) error {
	s.w.chunk = skimChunk
	for at := int64(0); at < end; {
		b, err := s.w.bytes(at, maxDataHeader+keySize+headerSize)
		if err != nil {
			return err
		}
		e, ok := parseDataEntry(b)
		if !ok || at+e.size() > end {
			return errUnexpected
		}
		if e.isTombstone() {
			at += e.size()
			continue
		}
		value := at + e.headerSize + keySize
		if int64(len(b)) < value-at+headerSize {
			return errUnexpected
		}
		f := found{intact: true, at: at, head: e, key: slices.Clone(b[value-at-keySize : value-at])}
		size, tableEnd, err := groupExtent(b[value-at:])
		if err != nil || size != int64(e.valueSize) || !e.isGroup() {
			return errUnexpected
		}
		if b, err = s.w.bytes(value, tableEnd); err != nil {
			return err
		}
		if f.group, err = decodeTable(b); err != nil || f.segment != s.segment {
			return errUnexpected
		}
		meta := value + tableEnd
		for i := range f.entries {
			entry := &f.entries[i]
			if b, err = s.w.bytes(meta, int64(entry.metaSize)); err != nil {
				return err
			}
			entry.meta = slices.Clone(b)
			meta += entry.size()
		}
		if err := s.found(f); err != nil {
			return err
		}
		at += e.size()
	}
	return nil
}

// dataEntry reads and checks nutsdb's entry at a byte; b is nil when there is none that is intact.
func (s *scanner) dataEntry(at int64) (e dataEntry, b []byte, err error) {
	if b, err = s.w.bytes(at, maxDataHeader); err != nil {
		return e, nil, err
	}
	e, ok := parseDataEntry(b)
	if !ok || at+e.size() > s.w.size {
		return e, nil, nil
	}
	if b, err = s.w.bytes(at, e.size()); err != nil {
		return e, nil, err
	}
	if crc32.ChecksumIEEE(b[4:]) != binary.LittleEndian.Uint32(b) {
		return e, nil, nil
	}
	return e, b, nil
}

// resync finds the next group at or after a byte at which no intact entry begins.
func (s *scanner) resync(from, end int64) (next int64, err error) {
	for p := from; ; p++ {
		if p, err = s.w.find(p, end, groupMagic); err != nil {
			return 0, err
		}
		if p < 0 {
			s.damage(from, end, "no readable group; an unfinished write, when the newest segment ends here")
			return end, nil
		}
		// The group may be the value of an intact entry...
		for header := int64(minDataHeader); header <= maxDataHeader; header++ {
			at := p - keySize - header
			if at <= from {
				break
			}
			e, b, err := s.dataEntry(at)
			if err != nil {
				return 0, err
			}
			if b != nil && e.headerSize == header {
				s.damage(from, at, "no readable group")
				return at, nil
			}
		}
		// ...or of a damaged one, and readable in parts.
		next, err := s.salvage(from, p, end)
		if err != nil || next > 0 {
			return next, err
		}
	}
}

// salvage takes what is readable of the group at p, in a damaged entry that begins at or after
// from. It returns 0 when there is no group.
func (s *scanner) salvage(from, p, end int64) (next int64, err error) {
	b, err := s.w.bytes(p, headerSize)
	if err != nil {
		return 0, err
	}
	size, _, err := groupExtent(b)
	if err != nil {
		return 0, nil
	}
	if b, err = s.w.bytes(p, size); err != nil { // shorter when the file ends before the group
		return 0, err
	}
	g, err := decodeGroup(b)
	if err != nil || g.segment != s.segment {
		return 0, nil
	}
	next = p + size
	damaged := slices.ContainsFunc(g.entries, func(e groupEntry) bool { return e.damaged })
	if damaged && next >= end && g.number > s.through {
		s.damage(from, end, fmt.Sprintf("group %d, the last one: an unfinished write, unless it was damaged later", g.number))
		return next, nil
	}
	at := p + headerSize + rowSize*int64(len(g.entries))
	for i := range g.entries {
		if g.entries[i].damaged {
			s.damage(at, at+g.entries[i].size(), fmt.Sprintf("entry %d of group %d", i, g.number))
		}
		at += g.entries[i].size()
	}
	if !damaged || p-from > keySize+maxDataHeader {
		s.damage(from, p, fmt.Sprintf("what precedes group %d", g.number))
	}
	return next, s.found(found{group: g, raw: b})
}

// window reads a file through a buffer that grows to the longest thing asked for.
type window struct {
	r    io.ReaderAt
	size int64 // of the file
	// chunk is the least that is read at once; 0: scanChunk.
	chunk int64
	buf   []byte
	at    int64 // of buf in the file
}

// ahead returns at least n bytes at off, fewer at the end of the file, until the next call.
func (w *window) ahead(off, n int64) ([]byte, error) {
	n = min(n, w.size-off)
	if n <= 0 {
		return nil, nil
	}
	if off < w.at || off+n > w.at+int64(len(w.buf)) {
		want := min(max(n, cmp.Or(w.chunk, scanChunk)), w.size-off)
		w.buf, w.at = slices.Grow(w.buf[:0], int(want))[:want], off
		if _, err := io.ReadFull(io.NewSectionReader(w.r, off, want), w.buf); err != nil {
			w.buf = w.buf[:0]
			return nil, fmt.Errorf("read bytes %d to %d: %w", off, off+want, err)
		}
	}
	return w.buf[off-w.at:], nil
}

// bytes returns the n bytes at off, fewer at the end of the file, until the next call.
func (w *window) bytes(off, n int64) ([]byte, error) {
	b, err := w.ahead(off, n)
	return b[:min(n, int64(len(b)))], err
}

// find returns where s begins for the first time in [off, end), or -1.
func (w *window) find(off, end int64, s string) (int64, error) {
	for off < end {
		b, err := w.ahead(off, int64(len(s)))
		if err != nil {
			return 0, err
		}
		if i := bytes.Index(b, []byte(s)); i >= 0 {
			return off + int64(i), nil
		}
		if len(b) < len(s) {
			break
		}
		off += int64(len(b) - len(s) + 1)
	}
	return -1, nil
}

// dataEnd returns where the zeros begin that the file ends with.
func (w *window) dataEnd() (int64, error) {
	for end := w.size; end > 0; {
		from := max(0, end-scanChunk)
		b, err := w.bytes(from, end-from)
		if err != nil {
			return 0, err
		}
		if n := len(bytes.TrimRight(b, "\x00")); n > 0 {
			return from + int64(n), nil
		}
		end = from
	}
	return 0, nil
}
