package nutsstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nutsdb/nutsdb"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

const quarantineName = "quarantine"

// Repair makes a store free of the damage that was found in it, so that it opens without a word.
// The files as they were are moved to a directory of their own below "quarantine", with a note of
// what was lost. What is readable stays, under the Refs it has. It returns that directory, or ""
// when there was nothing to do. The Inspection is over then, but for Close.
func (in *Inspection) Repair() (quarantine string, err error) {
	if len(in.Damage)+len(in.Files) == 0 {
		return "", nil
	}
	quarantine = filepath.Join(in.Dir, quarantineName, time.Now().UTC().Format("20060102T150405.000Z"))
	if err := os.MkdirAll(quarantine, 0o755); err != nil {
		return "", fmt.Errorf("repair store: %w", err)
	}
	if err := in.repair(quarantine); err != nil {
		return quarantine, fmt.Errorf("repair store: %w", err)
	}
	return quarantine, nil
}

func (in *Inspection) repair(quarantine string) error {
	// First the note: it says what is about to happen if this goes wrong half way.
	if err := in.writeNote(filepath.Join(quarantine, "NOTE.txt")); err != nil {
		return err
	}
	last := uint64(0)
	for i := range in.Segments {
		id := in.Segments[i].Segment
		if slices.ContainsFunc(in.Damage, func(d Damage) bool { return d.Segment == id }) {
			if err := in.cure(&in.Segments[i], last, quarantine); err != nil {
				return err
			}
		}
		last = max(last, in.Segments[i].LastGroup)
	}
	for _, name := range in.Files {
		if err := os.Rename(filepath.Join(in.Dir, name), filepath.Join(quarantine, name)); err != nil {
			return fmt.Errorf("move %s: %w", name, err)
		}
	}
	numbers := in.numbers.clone()
	if slices.Contains(in.Files, retiredName) && len(in.Segments) > 0 && in.Segments[0].FirstGroup > 1 {
		numbers.retire(span{1, in.Segments[0].FirstGroup - 1})
	}
	for _, s := range in.missing {
		numbers.retire(s)
	}
	numbers.known = max(numbers.known, in.groups)
	if err := numbers.write(in.Dir); err != nil {
		return err
	}
	return syncDir(quarantine)
}

func (in *Inspection) writeNote(path string) error {
	var note strings.Builder
	fmt.Fprintf(&note, "Damage that spillway inspect --repair found in %s on %s.\nThe files beside this note are as they were before.\n\n", in.Dir, time.Now().UTC().Format(time.RFC3339))
	for _, d := range in.Damage {
		fmt.Fprintln(&note, d)
		if d.Unfinished {
			fmt.Fprintln(&note, "  (an unfinished write, most likely: it was never acknowledged)")
		}
	}
	for _, name := range in.Files {
		fmt.Fprintf(&note, "file %s: it belongs to nothing, or is wrong\n", name)
	}
	fmt.Fprint(&note, "\nBatches that were lost are read from Kafka again, as far as Kafka has them. What lost changes had settled is delivered again.\n")
	return ensureFile(path, []byte(note.String()))
}

// cure writes a segment without what is damaged, and puts it in the place of the old one, which
// is linked to the quarantine before: at any moment, the segment is there whole or cured. The
// group before it is last.
func (in *Inspection) cure(r *SegmentReport, last uint64, quarantine string) error {
	id := r.Segment
	path := segmentPath(in.Dir, id, dataSuffix)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("stat segment: %w", err)
	}
	tmp, err := createFile(path)
	if err != nil {
		return err
	}
	defer tmp.abandon()
	_, err = scanSegment(in.Dir, id, r.through, func(f found) error {
		if f.number <= last {
			return nil
		}
		last = f.number
		_, err := tmp.Write(curedEntry(id, &f, r.noLedger))
		return err
	}, func(int64, int64, string) {})
	if err == nil {
		err = tmp.Flush()
	}
	if err == nil {
		err = tmp.file.Truncate(max(info.Size(), MinSegmentBytes)) // nutsdb cannot read the end of a file that is not longer
	}
	if err != nil {
		return fmt.Errorf("write segment %d: %w", id, err)
	}
	if err := os.Link(path, filepath.Join(quarantine, filepath.Base(path))); err != nil {
		return fmt.Errorf("move segment %d: %w", id, err)
	}
	suffixes := []string{indexSuffix, hintSuffix}
	if r.noLedger {
		suffixes = append(suffixes, ledgerSuffix)
	}
	for _, suffix := range suffixes {
		sidecar := segmentPath(in.Dir, id, suffix)
		if err := os.Rename(sidecar, filepath.Join(quarantine, filepath.Base(sidecar))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move sidecar: %w", err)
		}
	}
	if err := errors.Join(syncDir(quarantine), syncDir(in.Dir)); err != nil {
		return err
	}
	if err := tmp.commit(); err != nil {
		return err
	}
	_, err = seal(in.Dir, id, func(string) {})
	return err
}

// curedEntry is a nutsdb entry with what is readable of a group, and without its ledger when that
// is not.
func curedEntry(segment int64, f *found, noLedger bool) []byte {
	key := uint64(ledgerKey)
	entries := make([]queue.Entry, len(f.entries))
	for i := range f.entries {
		e := &f.entries[i]
		if e.inIndex() && !(noLedger && (e.kind == wholeEntry || e.kind == ledgerEntry)) {
			entries[i] = queue.Entry{Kind: e.kind, Meta: e.meta, Payload: e.payload}
			if e.kind == queue.BatchEntry {
				key = f.number
			}
		}
	}
	head := f.head
	if !f.intact { // its header may be what is damaged
		head = dataEntry{timestamp: uint64(time.Now().UnixMilli()), flag: uint64(nutsdb.DataSetFlag), ttl: uint64(nutsdb.Persistent),
			status: uint64(nutsdb.Committed), structure: uint64(nutsdb.DataStructureBTree), txID: f.number, bucket: bucketID}
	}
	return head.encode(nil, keyOf(key), appendGroup(nil, segment, f.number, entries))
}
