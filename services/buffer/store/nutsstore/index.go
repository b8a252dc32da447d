package nutsstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A segment that is no longer written to is sealed: it gets two sidecars, which make it
// unnecessary to read it when the store is opened. N.hint is nutsdb's, for the groups that have a
// batch. N.index has what the queue recovers from. All numbers are big-endian.
//
//	header, 20 bytes            group, 13 bytes           entry of it, 13 bytes and the meta
//	 0  8  magic "SPWINDEX"      0  1  'G'                 0  1  kind
//	 8  4  version, 1            1  8  number              1  4  length of the meta
//	12  8  segment number        9  4  number of entries   5  4  offset of its Ref
//	                                                       9  4  length of the payload
//	damage, 5 bytes and text
//	 0  1  'D'                  trailer, 49 bytes
//	 1  4  length of the text    0  1  'E'
//	                             1  8  first group (0: none)
//	                             9  8  last group
//	                            17  8  last group with a snapshot (0: none)
//	                            25  8  where the data ends in N.dat
//	                            33  8  length of N.hint
//	                            41  4  CRC32C of N.hint
//	                            45  4  CRC32C of all before it
//
// Entries whose bytes are damaged or gone are not in it.
const (
	indexMagic   = "SPWINDEX"
	indexVersion = 1

	indexHeaderSize  = 20
	indexTrailerSize = 49

	// sidecarBytes is what sidecars need, as a guess: when it is not enough, they are tried again.
	sidecarBytes = 256 << 10
)

// summary is what an index says of its segment as a whole.
type summary struct {
	first, last uint64 // groups; 0 when there is none
	snapshot    uint64 // the last group with a readable snapshot; 0 when there is none
	dataEnd     int64  // of the data file; what follows is zero
	hintSize    int64
	hintCRC     uint32
}

// seal reads a segment and writes its sidecars. Damage is both told and kept in the index. What
// it finds is on disk: a group can be in the kernel's cache only, when its writer was killed
// before its fsync or the fsync failed.
func seal(dir string, id int64, damage func(string)) (summary, error) {
	return sealWith(dir, id, damage, func(s *scanner, data *os.File) (end int64, err error) {
		if err := data.Sync(); err != nil {
			return 0, fmt.Errorf("sync segment: %w", err)
		}
		if err := dropCache(data); err != nil {
			return 0, fmt.Errorf("drop cache of segment: %w", err)
		}
		return s.scan()
	})
}

// sealWritten is seal for a segment whose bytes up to end this process wrote and synced.
func sealWritten(dir string, id, end int64, damage func(string)) (summary, error) {
	sum, err := sealWith(dir, id, damage, func(s *scanner, _ *os.File) (int64, error) { return end, s.skim(end) })
	if errors.Is(err, errUnexpected) {
		return seal(dir, id, damage)
	}
	return sum, err
}

func sealWith(dir string, id int64, damage func(string), scan func(*scanner, *os.File) (end int64, err error)) (summary, error) {
	data, err := os.OpenFile(segmentPath(dir, id, dataSuffix), os.O_RDWR, 0)
	if err != nil {
		return summary{}, fmt.Errorf("open segment: %w", err)
	}
	defer data.Close()
	info, err := data.Stat()
	if err != nil {
		return summary{}, fmt.Errorf("open segment: %w", err)
	}
	index, err := createFile(segmentPath(dir, id, indexSuffix))
	if err != nil {
		return summary{}, err
	}
	defer index.abandon()
	hint, err := createFile(segmentPath(dir, id, hintSuffix))
	if err != nil {
		return summary{}, err
	}
	defer hint.abandon()

	// Errors of the buffered writers stick, and are seen when they are flushed.
	var sum summary
	b := append([]byte(indexMagic), 0, 0, 0, indexVersion)
	index.Write(binary.BigEndian.AppendUint64(b, uint64(id)))
	s := scanner{segment: id, w: window{r: data, size: info.Size()}}
	tell := func(text string) {
		damage(text)
		b := binary.BigEndian.AppendUint32([]byte{'D'}, uint32(len(text)))
		index.Write(append(b, text...))
	}
	s.damage = func(from, to int64, what string) {
		tell(fmt.Sprintf("segment %d, bytes %d to %d: %s", id, from, to, what))
	}
	s.found = func(f found) error {
		if f.number <= sum.last {
			tell(fmt.Sprintf("segment %d: group %d comes after group %d", id, f.number, sum.last))
			return nil
		}
		if sum.first == 0 {
			sum.first = f.number
		}
		sum.last = f.number
		if writeIndexGroup(index.Writer, &f.group) {
			sum.snapshot = f.number
		}
		if f.intact && binary.BigEndian.Uint64(f.key) != ledgerKey {
			hint.Write(f.head.hint(id, f.at, f.key))
			sum.hintSize += int64(len(f.head.hint(id, f.at, f.key)))
		}
		return nil
	}
	if sum.dataEnd, err = scan(&s, data); err != nil {
		return summary{}, fmt.Errorf("scan segment %d: %w", id, err)
	}
	_ = punch(data, sum.dataEnd, info.Size()-sum.dataEnd) // what was allocated and never used; it is only space
	if sum.hintCRC, err = hint.checksum(); err != nil {
		return summary{}, err
	}
	index.Write(sum.encode())
	crc, err := index.checksum()
	if err != nil {
		return summary{}, err
	}
	index.Write(binary.BigEndian.AppendUint32(nil, crc))
	if err := errors.Join(hint.commit(), index.commit()); err != nil {
		return summary{}, err
	}
	return sum, syncDir(dir)
}

// writeIndexGroup writes the readable entries of a group, and says whether a snapshot is among
// them.
func writeIndexGroup(w *bufio.Writer, g *group) (snapshot bool) {
	readable := uint32(0)
	for i := range g.entries {
		if g.entries[i].inIndex() {
			readable++
		}
	}
	b := binary.BigEndian.AppendUint64([]byte{'G'}, g.number)
	w.Write(binary.BigEndian.AppendUint32(b, readable))
	for i := range g.entries {
		e := &g.entries[i]
		if !e.inIndex() {
			continue
		}
		snapshot = snapshot || isSnapshot(e)
		ref := entryRef(g.number, i, e.payloadSize)
		b := binary.BigEndian.AppendUint32([]byte{byte(e.kind)}, uint32(len(e.meta)))
		b = binary.BigEndian.AppendUint32(b, ref.Offset)
		w.Write(binary.BigEndian.AppendUint32(b, ref.Length))
		w.Write(e.meta)
	}
	return snapshot
}

func (e *groupEntry) inIndex() bool { return !e.damaged && e.kind != goneEntry }

func (s *summary) encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{'E'}, s.first)
	b = binary.BigEndian.AppendUint64(b, s.last)
	b = binary.BigEndian.AppendUint64(b, s.snapshot)
	b = binary.BigEndian.AppendUint64(b, uint64(s.dataEnd))
	b = binary.BigEndian.AppendUint64(b, uint64(s.hintSize))
	return binary.BigEndian.AppendUint32(b, s.hintCRC)
}

// readSummary checks both sidecars of a segment against their checksums, and the data file's
// length.
func readSummary(dir string, id int64) (summary, error) {
	crc, tail, err := checksumFile(segmentPath(dir, id, indexSuffix), indexTrailerSize)
	if err != nil {
		return summary{}, err
	}
	if len(tail) < indexTrailerSize || tail[0] != 'E' || binary.BigEndian.Uint32(tail[45:]) != crc {
		return summary{}, fmt.Errorf("index of segment %d is damaged", id)
	}
	s := summary{
		first:    binary.BigEndian.Uint64(tail[1:]),
		last:     binary.BigEndian.Uint64(tail[9:]),
		snapshot: binary.BigEndian.Uint64(tail[17:]),
		dataEnd:  int64(binary.BigEndian.Uint64(tail[25:])),
		hintSize: int64(binary.BigEndian.Uint64(tail[33:])),
		hintCRC:  binary.BigEndian.Uint32(tail[41:]),
	}
	hint, err := os.ReadFile(segmentPath(dir, id, hintSuffix))
	if err != nil {
		return summary{}, fmt.Errorf("read hint: %w", err)
	}
	if int64(len(hint)) != s.hintSize || crc32.Checksum(hint, castagnoli) != s.hintCRC {
		return summary{}, fmt.Errorf("hint of segment %d is damaged", id)
	}
	info, err := os.Stat(segmentPath(dir, id, dataSuffix))
	if err != nil {
		return summary{}, fmt.Errorf("stat segment: %w", err)
	}
	if info.Size() < s.dataEnd {
		return summary{}, fmt.Errorf("segment %d is cut short", id)
	}
	return s, nil
}

// checksumFile returns the CRC32C of a file without its last four bytes, and its last n bytes.
func checksumFile(path string, n int64) (crc uint32, tail []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, fmt.Errorf("open index: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, nil, fmt.Errorf("open index: %w", err)
	}
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, io.LimitReader(f, info.Size()-4)); err != nil {
		return 0, nil, fmt.Errorf("read index: %w", err)
	}
	tail = make([]byte, min(n, info.Size()))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return 0, nil, fmt.Errorf("read index: %w", err)
	}
	return h.Sum32(), tail, nil
}

// indexVisitor takes what is in an index.
type indexVisitor struct {
	group  func(number uint64) (wanted bool) // begins a group
	entry  func(queue.Recovered) error       // of the group that was begun and wanted
	damage func(string)
}

// readIndex reads an index whose checksum is right. Metas are fresh memory.
func readIndex(dir string, id int64, v indexVisitor) error {
	f, err := os.Open(segmentPath(dir, id, indexSuffix))
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	r := &indexReader{r: bufio.NewReaderSize(f, 64<<10), size: info.Size()}
	header := r.fixed(indexHeaderSize)
	if r.err == nil {
		if v := binary.BigEndian.Uint32(header[8:]); v != indexVersion {
			return fmt.Errorf("%w: index of segment %d has %d, this program knows %d", errVersion, id, v, indexVersion)
		}
		if string(header[:8]) != indexMagic || int64(binary.BigEndian.Uint64(header[12:])) != id {
			return fmt.Errorf("%s is not the index of segment %d", f.Name(), id)
		}
	}
	for r.err == nil {
		switch kind := r.fixed(1)[0]; {
		case r.err != nil:
		case kind == 'G':
			if err := r.group(v); err != nil {
				return err
			}
		case kind == 'D':
			if text := r.bytes(int(binary.BigEndian.Uint32(r.fixed(4)))); r.err == nil {
				v.damage(string(text))
			}
		case kind == 'E':
			return nil
		default:
			return fmt.Errorf("read index of segment %d: unknown record %#x", id, kind)
		}
	}
	return fmt.Errorf("read index of segment %d: %w", id, r.err)
}

// indexReader remembers its first error, and from then on reads zeros.
type indexReader struct {
	r       io.Reader
	size    int64 // of the file; nothing in it is longer
	err     error
	scratch [indexHeaderSize]byte
}

// group reads a group up to an error of the visitor or its own.
func (r *indexReader) group(v indexVisitor) error {
	b := r.fixed(12)
	number, entries := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
	wanted := r.err == nil && v.group(number)
	for range entries {
		b := r.fixed(13)
		e := queue.Recovered{Kind: queue.EntryKind(b[0])}
		if e.Kind == queue.BatchEntry {
			e.Ref = queue.Ref{Group: number, Offset: binary.BigEndian.Uint32(b[5:]), Length: binary.BigEndian.Uint32(b[9:])}
		}
		e.Meta = r.bytes(int(binary.BigEndian.Uint32(b[1:])))
		if r.err != nil {
			return nil
		}
		if wanted {
			if err := v.entry(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// fixed returns the next n bytes, at most the index's header, until the next call.
func (r *indexReader) fixed(n int) []byte {
	b := r.scratch[:n]
	clear(b)
	if r.err == nil {
		_, r.err = io.ReadFull(r.r, b)
	}
	return b
}

func (r *indexReader) bytes(n int) []byte {
	if r.err == nil && int64(n) > r.size {
		r.err = io.ErrUnexpectedEOF
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	_, r.err = io.ReadFull(r.r, b)
	return b
}
