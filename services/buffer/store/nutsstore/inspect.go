package nutsstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// Inspection is what lies in the directory of a store that nobody has open. It implements
// queue.Store so that a queue can rebuild its ledger from it, but it writes nothing: what is
// appended is dropped, what is released only counts. The directory is locked until Close.
type Inspection struct {
	Dir      string
	Segments []SegmentReport
	Damage   []Damage
	// Files are those that do not belong to a segment and are wrong, and sidecars without one.
	Files []string

	lock    *os.File // nil when there is none
	numbers groupNumbers
	missing []span
	told    []queue.Recovered
	groups  uint64 // the last one
	tail    int    // 1 + the index of the damage that the segment before ended with, 0: of none
}

// SegmentReport is what is in one segment.
type SegmentReport struct {
	Segment    int64  `json:"segment"`
	DiskBytes  int64  `json:"disk_bytes"`
	DataBytes  int64  `json:"data_bytes"`
	FirstGroup uint64 `json:"first_group"` // 0: none
	LastGroup  uint64 `json:"last_group"`
	Groups     int    `json:"groups"`
	Changes    int    `json:"changes"`
	Snapshots  int    `json:"snapshots"`
	Batches    int    `json:"batches"`
	BatchBytes int64  `json:"batch_bytes"`
	// Live are those of the batches that somebody still waits for; known after Release.
	LiveBatches int   `json:"live_batches"`
	LiveBytes   int64 `json:"live_bytes"`
	// Sealed says that its sidecars are right: it is not the one that was written to last.
	Sealed bool `json:"sealed"`

	live    batches
	through uint64 // the last group that was complete when it was sealed
	// noLedger says that it has a ledger file that is not readable.
	noLedger bool
}

// Damage is bytes that are wrong, or groups that are missing.
type Damage struct {
	Segment int64  `json:"segment,omitempty"` // 0: of no segment that is there
	From    int64  `json:"from,omitempty"`    // bytes of its data file
	To      int64  `json:"to,omitempty"`
	What    string `json:"what"`
	// Unfinished says that it ends a segment and no group is missing after it: most likely it is
	// a write that was never acknowledged.
	Unfinished bool `json:"unfinished_write,omitempty"`
}

func (d Damage) String() string {
	if d.Segment == 0 {
		return d.What
	}
	return fmt.Sprintf("segment %d, bytes %d to %d: %s", d.Segment, d.From, d.To, d.What)
}

// IsStore says whether a directory looks like a store's.
func IsStore(dir string) bool {
	for _, pattern := range []string{lockName, "*" + dataSuffix} {
		if found, err := filepath.Glob(filepath.Join(dir, pattern)); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// DiskBytes is what the files of a store's directory take on disk.
func DiskBytes(dir string) (bytes int64) {
	files, _ := os.ReadDir(dir) // of a directory that cannot be read it is nothing
	for _, f := range files {
		if info, err := f.Info(); err == nil && info.Mode().IsRegular() {
			bytes += allocatedBytes(info)
		}
	}
	return bytes
}

// Inspect reads all of a store: every byte of its segments, which Open does not. It writes
// nothing, and fails with ErrLocked when the store is open.
func Inspect(dir string) (_ *Inspection, err error) {
	in := &Inspection{Dir: dir}
	if in.lock, err = os.Open(filepath.Join(dir, lockName)); err == nil {
		err = takeLock(in.lock)
	} else if errors.Is(err, os.ErrNotExist) {
		in.lock, err = nil, nil
	}
	if err == nil {
		err = in.read()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inspect store: %w", err), in.Close())
	}
	return in, nil
}

func (in *Inspection) read() error {
	files, err := listDir(in.Dir)
	if err != nil {
		return err
	}
	for _, name := range files.leftovers {
		if filepath.Ext(name) != tmpSuffix {
			in.Files = append(in.Files, name)
		}
	}
	for _, id := range files.orphans {
		in.Damage = append(in.Damage, Damage{What: fmt.Sprintf("segment %d: its data file is missing", id)})
	}
	in.numbers, err = readGroupNumbers(in.Dir, func(d string) {
		in.Files = append(in.Files, retiredName)
		in.Damage = append(in.Damage, Damage{What: d})
	})
	if err != nil {
		return err
	}
	for _, id := range files.segments {
		if err := in.segment(id); err != nil {
			return err
		}
	}
	in.lost(span{in.groups + 1, in.numbers.known})
	if len(in.told) > 0 && !slices.ContainsFunc(in.told, func(e queue.Recovered) bool { return e.Kind == queue.SnapshotEntry }) {
		in.Damage = append(in.Damage, Damage{What: "no snapshot of the ledger is readable"})
	}
	return nil
}

// lost notes groups that should be there.
func (in *Inspection) lost(numbers span) {
	for _, s := range in.numbers.missing(numbers) {
		if in.tail > 0 {
			in.Damage[in.tail-1].Unfinished = false
		}
		in.missing = append(in.missing, s)
		in.Damage = append(in.Damage, Damage{What: fmt.Sprintf("groups %d to %d are missing", s.first, s.last)})
	}
}

// segment scans a segment.
func (in *Inspection) segment(id int64) error {
	r := SegmentReport{Segment: id, DiskBytes: diskBytes(in.Dir, id)}
	sum, err := readSummary(in.Dir, id)
	if r.Sealed = err == nil; r.Sealed {
		r.through = sum.last
	}
	damaged := len(in.Damage)
	r.DataBytes, err = scanSegment(in.Dir, id, r.through, func(f found) error {
		if f.number <= in.groups {
			in.Damage = append(in.Damage, Damage{Segment: id, From: f.at, To: f.at, What: fmt.Sprintf("group %d comes after group %d", f.number, in.groups)})
			return nil
		}
		in.lost(span{in.groups + 1, f.number - 1})
		in.groups, in.tail = f.number, 0
		r.group(&f.group)
		for i := range f.entries {
			in.entry(&r, &f.group, i)
		}
		damaged = len(in.Damage)
		return nil
	}, func(from, to int64, what string) {
		in.Damage = append(in.Damage, Damage{Segment: id, From: from, To: to, What: what})
	})
	if err != nil {
		return fmt.Errorf("segment %d: %w", id, err)
	}
	if len(in.Damage) > damaged { // after the last group
		in.Damage[len(in.Damage)-1].Unfinished, in.tail = true, len(in.Damage)
	}
	in.Segments = append(in.Segments, r)
	return nil
}

func (r *SegmentReport) group(g *group) {
	if r.FirstGroup == 0 {
		r.FirstGroup = g.number
	}
	r.LastGroup = g.number
	r.Groups++
	for i := range g.entries {
		e := &g.entries[i]
		if !e.inIndex() {
			continue
		}
		switch e.kind {
		case queue.BatchEntry:
			r.Batches++
			r.BatchBytes += int64(len(e.payload))
			r.live.add(entryRef(g.number, i, e.payloadSize))
		case queue.ChangeEntry:
			r.Changes++
		case queue.SnapshotEntry, wholeEntry:
			r.Snapshots++
		}
	}
}

// entry keeps what a queue is told: all batches, the newest snapshot, and the changes after it.
func (in *Inspection) entry(r *SegmentReport, g *group, i int) {
	e := &g.entries[i]
	if !e.inIndex() {
		return
	}
	switch e.kind {
	case queue.SnapshotEntry:
		in.snapshot([][]byte{slices.Clone(e.meta)})
	case wholeEntry:
		ledger, err := readWhole(in.Dir, r.Segment, e.meta)
		in.ledger(r, [][]byte{ledger}, err)
	case ledgerEntry:
		if _, err := os.Stat(segmentPath(in.Dir, r.Segment, ledgerSuffix)); errors.Is(err, os.ErrNotExist) && !isSnapshot(e) {
			return // it was not finished
		}
		var parts [][]byte
		err := readLedger(in.Dir, r.Segment, g.number, func(part []byte) error { parts = append(parts, part); return nil })
		if err == nil {
			r.Snapshots++
		}
		in.ledger(r, parts, err)
	default:
		told := queue.Recovered{Kind: e.kind, Meta: slices.Clone(e.meta)}
		if e.kind == queue.BatchEntry {
			told.Ref = entryRef(g.number, i, e.payloadSize)
		}
		in.told = append(in.told, told)
	}
}

// ledger takes a snapshot from a file that may not be readable.
func (in *Inspection) ledger(r *SegmentReport, parts [][]byte, err error) {
	if err != nil {
		r.noLedger = true
		in.Damage = append(in.Damage, Damage{Segment: r.Segment, What: fmt.Sprintf("its ledger file is not readable: %v", err)})
		return
	}
	in.snapshot(parts)
}

// snapshot replaces the snapshot and the changes before it.
func (in *Inspection) snapshot(parts [][]byte) {
	in.told = slices.DeleteFunc(in.told, func(r queue.Recovered) bool { return r.Kind != queue.BatchEntry })
	for _, part := range parts {
		in.told = append(in.told, queue.Recovered{Kind: queue.SnapshotEntry, Meta: part})
	}
}

// Damaged says whether there is more than an unfinished write.
func (in *Inspection) Damaged() bool {
	return len(in.Files) > 0 || slices.ContainsFunc(in.Damage, func(d Damage) bool { return !d.Unfinished })
}

// Open tells a queue what the store has, and returns the Inspection as its store.
func (in *Inspection) Open(opts queue.StoreOptions) (queue.Store, error) {
	for _, e := range in.told {
		if err := opts.Recover(e); err != nil {
			return nil, fmt.Errorf("recover: %w", err)
		}
	}
	return in, nil
}

// Append implements queue.Store, and forgets it.
func (in *Inspection) Append(entries []queue.Entry) ([]queue.Ref, error) {
	return make([]queue.Ref, len(entries)), nil
}

// Continue implements queue.Store.
func (in *Inspection) Continue() (more bool, err error) { return false, nil }

// Read implements queue.Store.
func (in *Inspection) Read(queue.Ref) ([]byte, error) {
	return nil, errors.New("an inspection has no payloads")
}

// Release implements queue.Store: what is released is not live.
func (in *Inspection) Release(refs []queue.Ref) {
	for _, ref := range refs {
		for i := range in.Segments {
			in.Segments[i].live.release(ref)
		}
	}
}

// CountLive brings LiveBatches and LiveBytes up to date with what was released.
func (in *Inspection) CountLive() {
	for i := range in.Segments {
		r := &in.Segments[i]
		r.LiveBatches, r.LiveBytes = r.live.live, r.live.bytes
	}
}

// Stats implements queue.Store.
func (in *Inspection) Stats() queue.StoreStats {
	stats := queue.StoreStats{Segments: len(in.Segments)}
	for i := range in.Segments {
		stats.DiskBytes += in.Segments[i].DiskBytes
	}
	return stats
}

// Close gives the lock back.
func (in *Inspection) Close() error {
	if in.lock == nil {
		return nil
	}
	lock := in.lock
	in.lock = nil
	return lock.Close()
}

// scanSegment scans the data file of a segment, and returns where its data ends. Groups up to
// through are known to have been complete.
func scanSegment(dir string, id int64, through uint64, found func(found) error, damage func(from, to int64, what string)) (int64, error) {
	data, err := os.Open(segmentPath(dir, id, dataSuffix))
	if err != nil {
		return 0, fmt.Errorf("open segment: %w", err)
	}
	defer data.Close()
	info, err := data.Stat()
	if err != nil {
		return 0, fmt.Errorf("open segment: %w", err)
	}
	s := scanner{segment: id, w: window{r: data, size: info.Size()}, through: through, found: found, damage: damage}
	return s.scan()
}
